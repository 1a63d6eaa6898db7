"""Checks that a teacher can say what it thinks of a student's tokens, before the first round.

Student and teacher must read the same ids as the same text, from the same prompt: the public reproductions of
on-policy distillation that failed had other templates, another end of turn or an untrained student, and no
error. Each check finds nothing or a fault; all faults come in one RecipeError. First what both are is
compared (Pair), then what both write (Trial).
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from transformers import PreTrainedModel

from pipeline.errors import RecipeError
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.prompts import Chat
from pipeline.records import Problem
from pipeline.sampling.prompts import ChatPrompts
from students.format import Format
from students.sampler import Draw, draw
from students.scoring import score_here

log = logging.getLogger(__name__)

Subject = TypeVar("Subject")

MARK = "retort-marks-the-answer"
NUM_TRIED = 16  # chats that both answer before the first round; of every source so many are compared
# Of greedy responses. The embedded teacher gives 0.99 to its own; its student gives them 0.97, the base
# 0.001.
MAX_CUT_SHARE, MIN_OWN, MIN_BY_STUDENT = 0.5, 0.5, 0.1
GOLD = (
    "Distillation across tokenizers is another method: GOLD (Hugging Face, 2025, TRL's GOLDTrainer in "
    "trl.experimental.gold), which builds on ULD (arXiv 2402.12030). Choose a teacher and a student of one "
    "family, or leave polish out"
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A student's and a teacher's way to write. `vocabularies` are the rows of their heads, None where
    sampled tokens alone are compared; `positions` are the teacher's, by `limit` if that is a server, and
    `student_positions` the student's; `chats` are some of the prompts that rounds ask, of every source, and
    the first of them are tried out; `longest` is the tokens of the longest with its response."""

    style: Format
    student: SampledModel
    teacher: SampledModel
    teacher_tokenizer: Any
    vocabularies: tuple[int, int] | None
    positions: int
    student_positions: int
    chats: Sequence[Chat]
    longest: int
    limit: str = ""

    @property
    def teacher_prompts(self) -> ChatPrompts:
        return ChatPrompts(self.teacher_tokenizer, self.teacher)


def some_of_each(problems: Iterable[Problem]) -> list[Problem]:
    """The first of them, then the first of every source: a source may have a prompt of its own."""
    given = list(problems)
    taken, first = Counter[str](), {problem.id for problem in given[:NUM_TRIED]}
    chosen = []
    for problem in given:
        taken[problem.source] += 1
        if taken[problem.source] <= NUM_TRIED and problem.id not in first:
            chosen.append(problem)
    return given[:NUM_TRIED] + chosen


def same_tokens(pair: Pair) -> str | None:
    ours, theirs = pair.style.tokenizer.get_vocab(), pair.teacher_tokenizer.get_vocab()
    other = sorted(token for token, number in ours.items() if theirs.get(token) != number)
    if not other:
        return None
    token = other[0]
    return (
        f"{len(other):,} of the student's {len(ours):,} tokens have another id at the teacher ({token!r} is "
        f"{ours[token]} and {theirs.get(token, 'unknown')}), so a response cannot be scored. {GOLD}"
    )


def same_vocabulary(pair: Pair) -> str | None:
    student, teacher = pair.vocabularies or (0, 0)
    if student == teacher:
        return None
    return (
        f"the student's head has {student:,} rows and the teacher's {teacher:,}: a padded vocabulary. Their "
        "distributions can be compared over equal rows alone; use divergence: sampled, or a student that is "
        "padded alike"
    )


def same_turn_end(pair: Pair) -> str | None:
    """What each template writes after an assistant's message begins with the same token."""
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": MARK}]
    after = [
        prompts.text(chat, generation_prompt=False).partition(MARK)[2].lstrip()
        for prompts in (pair.style.prompts, pair.teacher_prompts)
    ]
    end = pair.style.turn_end
    if after[1].startswith(end) or (not after[1] and end == pair.teacher_tokenizer.eos_token):
        return None
    return (
        f"the student ends its turn with {end!r} and the teacher's template with {after[1][:24]!r}: the "
        "teacher would push the student past its end. Name one template in both cards, or `eos` in the "
        "student's"
    )


def same_tags(pair: Pair) -> str | None:
    student, teacher = pair.style.tags, pair.teacher.tags
    if (student.open, student.close) == (teacher.open, teacher.close):
        return None
    return (
        f"the student thinks between {student.open} and {student.close}, the teacher between {teacher.open} "
        f"and {teacher.close}, so it would score the student's tags as nonsense. Give the student the "
        "teacher's tags (thinking in its card) and train it anew"
    )


def same_prompts(pair: Pair) -> str | None:
    for chat in pair.chats:
        ours, theirs = pair.style.prompts.ids(chat), pair.teacher_prompts.ids(chat)
        if ours != theirs:
            place = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            said = [
                prompts.decode(ids[max(place - 4, 0) : place + 8])
                for prompts, ids in ((pair.style.prompts, ours), (pair.teacher_prompts, theirs))
            ]
            return (
                f"the same question is rendered differently from token {place} on: the student reads "
                f"{said[0]!r}, the teacher {said[1]!r}. Name the teacher's template as `template` in the "
                "student's card, with the same template_options, and train it anew"
            )
    return None


def scored_tokens(pair: Pair) -> int:
    """Of the longest prompt with its response; an engine that scores writes a token after the last one."""
    return pair.longest + (pair.vocabularies is None)


def enough_positions(pair: Pair) -> str | None:
    if scored_tokens(pair) <= pair.positions:
        return None
    said = f"the longest prompt with polish.max_tokens has {scored_tokens(pair):,} tokens, and the teacher"
    if pair.limit:
        return (
            f"{said} at {pair.limit} {pair.positions:,} positions (max_model_len). Serve it with as many "
            "(--max-model-len; make serve-teacher takes them from the card), or lower polish.max_tokens"
        )
    return (
        f"{said} {pair.positions:,} positions. Lower polish.max_tokens, or raise engine.max_model_len in the "
        "teacher's card as far as the model allows"
    )


def enough_student_positions(pair: Pair) -> str | None:
    if pair.longest <= pair.student_positions:
        return None
    return (
        f"the longest prompt with polish.max_tokens has {pair.longest:,} tokens, and the student "
        f"{pair.student_positions:,} positions. Lower polish.max_tokens, or raise max_positions in the "
        "student's card as far as the model allows"
    )


CHECKS: dict[str, Callable[[Pair], str | None]] = {
    "tokens": same_tokens,
    "vocabulary": same_vocabulary,
    "end of turn": same_turn_end,
    "thinking tags": same_tags,
    "prompts": same_prompts,
    "positions": enough_positions,
    "the student's positions": enough_student_positions,
}
SERVER_CHECKS: dict[str, Callable[[Pair], str | None]] = {"positions where it is served": enough_positions}


@dataclass(frozen=True, slots=True)
class Trial:
    """What both wrote greedily to the same prompts, and what each thinks of it.

    `cut_share` of the student's responses reached max_tokens; `own` and `by_student` are the mean
    probabilities (geometric, over tokens) that the teacher and the student give to the teacher's responses.
    """

    max_tokens: int
    cut_share: float
    own: float
    by_student: float


def likely_by_teacher(trial: Trial) -> str | None:
    if trial.own >= MIN_OWN:
        return None
    return (
        f"the teacher gives a mean probability of {trial.own:.3f} to the tokens of its own greedy responses, "
        f"which should be above {MIN_OWN}: it is asked through another template than it is scored with, or "
        "other weights score. Serve it with make serve-teacher, without a --chat-template"
    )


def ends_its_answers(trial: Trial) -> str | None:
    if trial.cut_share <= MAX_CUT_SHARE:
        return None
    return (
        f"{trial.cut_share:.0%} of the student's greedy responses do not end within polish.max_tokens "
        f"({trial.max_tokens:,}): it has not learnt to. Train it first (train.epochs, more traces), or raise "
        "polish.max_tokens"
    )


def writes_like_teacher(trial: Trial) -> str | None:
    if trial.by_student >= MIN_BY_STUDENT:
        return None
    return (
        f"the student gives a mean probability of {trial.by_student:.4f} to the tokens of the teacher's "
        f"greedy responses, below {MIN_BY_STUDENT}: it is not a trained one, and what it writes is no place "
        "for the teacher to correct it. Train it first (train.epochs, more traces)"
    )


TRIAL_CHECKS: dict[str, Callable[[Trial], str | None]] = {
    "teacher knows its own": likely_by_teacher,
    "student ends": ends_its_answers,
    "student is trained": writes_like_teacher,
}


def check_pair(pair: Pair) -> list[str]:
    """Names of the checks that passed. RecipeError with every fault where any did not."""
    return check(CHECKS, pair)


def check_served(pair: Pair, limits: dict[str, int]) -> list[str]:
    """The same of what a teacher's servers take: `limits` are their positions by URL, where they say so."""
    url = min(limits, key=lambda name: limits[name], default="")
    if not url or limits[url] >= pair.positions:
        return []
    return check(SERVER_CHECKS, replace(pair, positions=limits[url], limit=url))


def check_trial(trial: Trial) -> list[str]:
    """The same of what both wrote."""
    return check(TRIAL_CHECKS, trial)


def check(checks: dict[str, Callable[[Subject], str | None]], subject: Subject) -> list[str]:
    faults = [f"{name}: {fault}" for name, find in checks.items() if (fault := find(subject)) is not None]
    if faults:
        raise RecipeError(
            f"polish: {len(faults)} of {len(checks)} checks of teacher and student failed, no round was "
            "begun.\n  " + "\n  ".join(faults)
        )
    log.info("polish: checked %s", ", ".join(checks))
    return list(checks)


class Teacher(Protocol):
    """A teacher's own greedy responses to chats, and its log-probabilities of any, as ids."""

    def write(self, chats: Sequence[Chat], max_tokens: int) -> list[list[int]]: ...

    def score(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]: ...


def try_out(pair: Pair, student: PreTrainedModel, teacher: Teacher, max_tokens: int) -> Trial:
    """Have both answer the first of the pair's chats."""
    chats = pair.chats[:NUM_TRIED]
    prompts = [pair.style.prompts.ids(chat) for chat in chats]
    written = list(zip(prompts, teacher.write(chats, max_tokens), strict=True))
    end = pair.style.turn_end_id
    ours = draw(student, [Draw(prompt, 0) for prompt in prompts], end, max_tokens, 0.0, batch=len(prompts))
    cut = sum(drawn.ids[-1] != end for drawn in ours)
    return Trial(
        max_tokens,
        cut / len(ours),
        mean_probability(teacher.score(written)),
        mean_probability(score_here(student, written)),
    )


def mean_probability(scores: Sequence[Sequence[float]]) -> float:
    """The geometric mean over all tokens."""
    logprobs = [logprob for row in scores for logprob in row]
    return math.exp(sum(logprobs) / len(logprobs))
