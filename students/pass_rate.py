"""The share of held-out problems that a student answers rightly while it trains: `train.stop_on: pass_rate`.

Reads runs/<name>/problems/problems.jsonl; writes runs/<name>/train/evaluations/00200/, what the student
answered after 200 steps, as polish does for its rounds (students/rounds.py). It is sampled by the process
that trains it, at temperature 1 and with the same random numbers in each evaluation.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from pipeline.context import Context
from pipeline.errors import StageError
from pipeline.recipe.cards import SampledModel
from pipeline.records import Problem, ProblemFile
from pipeline.sampling.prompts import ChatPrompts
from pipeline.verify import VerifierPool
from pipeline.verify.table import DEFERRED
from students.format import Format
from students.model import padded_attention
from students.rounds import Asker, Questions, digest_of, parted, prompts_of
from students.sampler import batch_of, draw
from students.train import PROBLEMS

log = logging.getLogger(__name__)

EVALUATIONS = "evaluations"
MAX_ASKED = 128  # held-out problems: a rate of one half has a standard error of 4 points then


@dataclass(frozen=True, slots=True)
class PassRate:
    """`student` is what is trained, `trained` the same with its adapter, where it has one."""

    asker: Asker
    student: PreTrainedModel
    trained: Any

    def __call__(self, step: int) -> float:
        """Ask the student as it is after `step` steps. What was answered before a kill is taken."""
        student: Any = self.student
        packed = student.config._attn_implementation
        student.set_attn_implementation(padded_attention(packed))  # the sampler's batches are padded
        try:
            found = self.asker.held_out(step, digest_of(self.trained))
        finally:
            student.set_attn_implementation(packed)
        rate = sum(response.correct for response in found) / len(found)
        log.info("train: after step %d %.1f%% of %d answers are right", step, 100 * rate, len(found))
        return rate


@contextmanager
def measured(
    context: Context, model: SampledModel, style: Format, student: PreTrainedModel, trained: Any
) -> Iterator[Callable[[int], float] | None]:
    """What measures the student, with its verifier; None where the recipe does not stop on it."""
    recipe = context.recipe
    if recipe.train.stop_on != "pass_rate":
        yield None
        return
    style = replace(style, prompts=ChatPrompts(style.tokenizer, model), tags=model.tags)
    asked = held_out_problems(context)
    prompts, max_tokens = prompts_of(asked, style, context.prompt), recipe.eval_sampling.max_tokens
    longest = max(map(len, prompts.values())) + max_tokens
    if longest > context.student_card.max_positions:
        raise StageError(
            f"train.stop_on: pass_rate asks for responses of at most {max_tokens:,} tokens, as eval does; "
            f"with the longest prompt those are {longest:,}, where the student has "
            f"{context.student_card.max_positions:,} positions. Lower eval.sampling.max_tokens"
        )
    batch = batch_of(student.device.type, longest)
    sampler = partial(
        draw, trained, end=style.turn_end_id, max_tokens=max_tokens, temperature=1.0, batch=batch
    )
    directory = context.directory("train") / EVALUATIONS
    questions = Questions([], asked, prompts)
    with VerifierPool(workers=1) as pool:
        asker = Asker(
            directory, max_tokens, recipe.seed, model, style, context.prompt, questions, sampler, batch, pool
        )
        yield PassRate(asker, student, trained)


def held_out_problems(context: Context) -> list[Problem]:
    """At most MAX_ASKED of the problems that train holds out. StageError where there are none.

    Without those that a judge or a majority decides: no response to them is right before that.
    """
    problems = ProblemFile(context.directory("problems") / PROBLEMS)
    decided = [problem for problem in problems if problem.verifier not in DEFERRED]
    share = context.recipe.train.held_out_share
    _, asked = parted(decided, share, context.recipe.seed)
    if not asked:
        raise StageError(
            f"train.stop_on: pass_rate asks problems with an answer that a verifier can check, and none of "
            f"{len(decided):,} is held out by train.held_out_share {share:g}. Raise it, or set stop_on: loss"
        )
    return asked[:MAX_ASKED]
