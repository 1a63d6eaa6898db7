"""A round's responses: the student asked through the same loop and store as every model, and what came back.

rounds/00007/ holds what the student answered after 7 rounds: traces-*.jsonl, verdicts.jsonl and
failures.jsonl, as generate's directory does, held_out.samples-*.jsonl of the held-out problems, scores.jsonl
of a teacher that scores elsewhere, and round.json. A request carries the hash of the weights that were asked:
a round that a kill cut short is completed, and nothing of it is asked for twice.

round.json, and a line of metrics.jsonl, is a `Row`: what the student is after so many rounds, and what its
next round took. A key is left out where there is no such figure:

    round                number of rounds done; the row of the last one has held_out alone
    held_out             share of the held-out problems that it answers rightly; every `evaluate_every` rounds
    pass_rate            the same of the round's own responses
    divergence           of student and teacher, nats a token, as the recipe names it
    mean_length          tokens a response, and cut_share of them at max_tokens
    entropy              of the student, nats a token
    importance_ratio     mean over tokens, before clipping; with divergence: sampled
    loss, learning_rate, grad_norm
    prompt_tokens, sampled_tokens, scored_tokens, held_out_tokens
    sampling_seconds, held_out_seconds, scoring_seconds, training_seconds
"""

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from pipeline.errors import StageError
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.prompts import Chat, Prompt
from pipeline.recipe.schema import Polish, Samples, Sampling
from pipeline.records import STOP, Key, Problem, Tokens, is_correct, trace_key
from pipeline.run.contract import fingerprint
from pipeline.sampling import (
    Completion,
    Job,
    Options,
    Request,
    Store,
    adopted,
    collect,
)
from pipeline.sampling.job import requests_of, sample_seed
from pipeline.sampling.prompts import ChatPrompts
from pipeline.verify import VerifierPool
from pipeline.verify.table import DEFERRED
from students.examples import is_held_out
from students.format import Format
from students.sampler import Draw, Drawn

log = logging.getLogger(__name__)

ROUNDS = "rounds"
ROUND = "round.json"
BEGIN_ANEW = (
    "Rename the directory polish to polish.1, or another free number, and run the same command again: what "
    "was sampled and scored is taken from there, and the updates are made again"
)
TRAINED_ON, HELD_OUT = "traces", "held_out.samples"  # prefixes of the stores of a round
Sampler = Callable[[Sequence[Draw]], list[Drawn]]


class Row(msgspec.Struct, omit_defaults=True, kw_only=True):
    """round.json; this module's docstring says what each figure is."""

    round: int
    held_out: float | None = None
    pass_rate: float | None = None
    divergence: float | None = None
    mean_length: float | None = None
    cut_share: float | None = None
    entropy: float | None = None
    importance_ratio: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    scored_tokens: int = 0
    held_out_tokens: int = 0
    sampling_seconds: float = 0.0
    held_out_seconds: float = 0.0
    scoring_seconds: float = 0.0
    training_seconds: float = 0.0


# of a row: what a round took in all processes, up to the last of these that a kill let it end
SECONDS = ("sampling_seconds", "held_out_seconds", "scoring_seconds", "training_seconds")


def write_row(directory: Path, row: Row) -> None:
    """Write round.json of a round, whole or not at all. `directory` is the one of rounds."""
    path = round_directory(directory, row.round) / ROUND
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{ROUND}.tmp")
    temporary.write_bytes(msgspec.json.encode(row) + b"\n")
    os.replace(temporary, path)


def read_rows(directory: Path) -> list[Row]:
    """The rows of all rounds that have one, in order. StageError for a file that is none."""
    paths = sorted(directory.glob(f"*/{ROUND}"), key=lambda path: int(path.parent.name))
    rows = []
    for path in paths:
        try:
            rows.append(msgspec.json.decode(path.read_bytes(), type=Row))
        except msgspec.DecodeError as error:
            raise StageError(f"{path}: is not the row of a round ({error}). {BEGIN_ANEW}") from None
    return rows


def round_directory(directory: Path, number: int) -> Path:
    return directory / f"{number:05d}"


@dataclass(frozen=True, slots=True)
class Response:
    """One response of a round: its prompt's and its own ids, and what its verdict says. `cut` at
    max_tokens."""

    prompt: list[int]
    ids: list[int]
    logprobs: list[float]
    correct: bool
    cut: bool


@dataclass(frozen=True, slots=True)
class Questions:
    """The problems that rounds are made of, with the ids of their prompts; `held_out` are never trained
    on."""

    problems: list[Problem]
    held_out: list[Problem]
    prompts: dict[str, list[int]]

    def of_round(self, number: int, size: int, seed: int) -> list[Problem]:
        """`size` problems, none twice. Rounds walk through one order of all problems after another."""
        lap, start = divmod(number * size, len(self.problems))
        here, after = (
            sorted(self.problems, key=lambda problem: _draw_order(seed, number, problem.id))
            for number in (lap, lap + 1)
        )
        chosen = here[start : start + size]
        taken = {problem.id for problem in chosen}
        return chosen + [problem for problem in after if problem.id not in taken][: size - len(chosen)]


def pick_questions(
    problems: Iterable[Problem],
    recipe: Polish,
    held_out_share: float,
    seed: int,
    style: Format,
    prompt: Prompt,
) -> Questions:
    """Part the problems as train did: an evaluation on what the student was trained on says nothing.

    Those that a judge or a majority decides are left out, for no response to them is right before that.
    StageError where too few are left for a round, or none is held out where some are asked for.
    """
    given = list(problems)
    decided = [problem for problem in given if problem.verifier not in DEFERRED]
    if len(decided) < len(given):
        later = len(given) - len(decided)
        log.info("polish: %d problems are left out, which a judge or a majority decides", later)
    rest, apart = parted(decided, held_out_share, seed)
    held_out = apart[: recipe.held_out]
    if len(rest) < recipe.problems_per_round:
        raise StageError(
            f"polish.problems_per_round: a round asks {recipe.problems_per_round:,} problems, and "
            f"{len(rest):,} of {len(decided):,} are left beside the {len(apart):,} that train.held_out_share "
            "holds out. Lower one of the two, or add problems"
        )
    if recipe.held_out and not held_out:
        raise StageError(
            f"polish.held_out: none of {len(decided):,} problems is held out by train.held_out_share "
            f"{held_out_share:g}. Raise it, or set polish.held_out: 0"
        )
    return Questions(rest, held_out, prompts_of(rest + held_out, style, prompt))


def parted(problems: Iterable[Problem], share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Those that train trains on and those that it holds out, each in an order of the seed."""
    order = sorted(problems, key=lambda problem: _draw_order(seed, -1, problem.id))
    apart = {problem.id for problem in order if is_held_out(problem.id, share, seed)}
    return [one for one in order if one.id not in apart], [one for one in order if one.id in apart]


def prompts_of(problems: Iterable[Problem], style: Format, prompt: Prompt) -> dict[str, list[int]]:
    """The ids of the prompt of each problem."""
    return {
        problem.id: style.prompts.ids(prompt.messages(problem.question, problem.source))
        for problem in problems
    }


@dataclass(slots=True)
class PolicyEngine:
    """The student as an engine of the loop. `draws` are made in batches of `batch`, cut from their own order:
    which of them a kill left to be asked for changes no response."""

    chat: ChatPrompts
    sampler: Sampler
    draws: dict[Key, Draw]
    batch: int
    end: int
    notes: dict[str, Any] = field(default_factory=dict)
    _drawn: dict[int, "asyncio.Future[dict[Key, Drawn]]"] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ready(self) -> None:
        return None

    async def prompts(self) -> ChatPrompts | None:
        return None  # preflight has checked their lengths

    def prompt(self, messages: Chat) -> Any:
        return None  # the draws hold them

    async def tokens_in_flight(self) -> int | None:
        return None  # a batch is drawn as one

    async def sample(self, request: Request) -> Completion:
        keys = list(self.draws)
        number = keys.index(request.key) // self.batch
        if number not in self._drawn:
            batch = keys[number * self.batch : (number + 1) * self.batch]
            self._drawn[number] = asyncio.ensure_future(self._draw(batch))
        found = (await asyncio.shield(self._drawn[number]))[request.key]
        ended = found.ids[-1] == self.end
        return Completion(
            self.chat.decode(found.ids[:-1] if ended else found.ids),
            STOP if ended else "length",
            len(self.draws[request.key].prompt),
            len(found.ids),
            Tokens(found.ids, found.logprobs),
        )

    async def _draw(self, batch: list[Key]) -> dict[Key, Drawn]:
        async with self._turn:  # one model, and one batch of it in memory
            drawn = await asyncio.to_thread(self.sampler, [self.draws[key] for key in batch])
        return dict(zip(batch, drawn, strict=True))


@dataclass(frozen=True, slots=True)
class Asker:
    """All that asking the student needs. `directory` is the one of rounds; `model` says how the student is
    asked, its weights are those of `sampler`, which takes `batch` draws at a time. `aside` are directories of
    rounds that were moved aside: what equal weights answered there is taken."""

    directory: Path
    max_tokens: int
    seed: int
    model: SampledModel
    style: Format
    prompt: Prompt
    questions: Questions
    sampler: Sampler
    batch: int
    pool: VerifierPool
    aside: tuple[Path, ...] = ()

    def round(self, number: int, weights: str, size: int, samples: int = 1) -> list[Response]:
        """`samples` responses to each of the `size` problems of a round, in an order that depends on its
        number alone."""
        chosen = self.questions.of_round(number, size, self.seed)
        return self._ask(number, weights, TRAINED_ON, chosen, samples)

    def held_out(self, number: int, weights: str) -> list[Response]:
        """The student's responses to the held-out problems after `number` rounds."""
        return self._ask(number, weights, HELD_OUT, self.questions.held_out, 1)

    def _ask(
        self, number: int, weights: str, prefix: str, problems: list[Problem], samples: int
    ) -> list[Response]:
        # Rounds differ in their seed, so that a problem that comes again is answered anew. Evaluations share
        # one: with the same random numbers two students differ by what they learnt, and less by chance.
        job = Job(
            model=replace(self.model, identity={"weights": weights}),
            prompt=self.prompt,
            sampling=Sampling(temperature=1.0, max_tokens=self.max_tokens),
            samples=Samples(keep=samples, max=samples),
            seed=self.seed + (number if prefix == TRAINED_ON else 0),
            keep_tokens=True,
        )
        draws = {
            (problem.id, sample): Draw(
                self.questions.prompts[problem.id], sample_seed(job.seed, problem, sample)
            )
            for problem in problems
            for sample in range(samples)
        }
        engine = PolicyEngine(self.style.prompts, self.sampler, draws, self.batch, self.style.turn_end_id)
        directory, requests = round_directory(self.directory, number), set(requests_of(job).values())
        if request_of(directory, prefix) not in {None, *requests}:
            log.info("%s: answered by other weights, sampled again", directory)
            shutil.rmtree(directory)
        elsewhere = [round_directory(path, number) for path in self.aside]
        sources = adopted([path for path in elsewhere if request_of(path, prefix) in requests], job, prefix)
        with ExitStack() as stack:
            for source in sources:
                stack.callback(source.close)
            store = stack.enter_context(Store(directory, prefix))
            options = Options(sources=tuple(sources))
            asyncio.run(collect(job, problems, engine, store, self.pool, options))
            correct = {
                (verdict.problem_id, verdict.sample): verdict.status == "correct"
                for verdict in store.verdicts()
            }
            found = {
                (trace.problem_id, trace.sample): Response(
                    draws[trace.problem_id, trace.sample].prompt,
                    trace.tokens.ids,
                    trace.tokens.logprobs,
                    is_correct(
                        "correct" if correct[trace.problem_id, trace.sample] else "wrong", trace.finish_reason
                    ),
                    trace.finish_reason != STOP,
                )
                for trace in store.traces()
                if trace.tokens is not None
            }
        return [found[key] for key in draws]


def request_of(directory: Path, prefix: str) -> str | None:
    """The request of a round's traces; None where there is none, or a line that a kill tore. Other weights
    than now are found where updates do not repeat bit by bit and a kill went back over more than one
    round."""
    path = directory / f"{prefix}-00000.jsonl"
    if not path.exists():
        return None
    with path.open("rb") as file:
        held = trace_key(file.readline())
    return held[2] if held is not None else None


def _draw_order(seed: int, lap: int, problem_id: str) -> bytes:
    return hashlib.sha256(f"{seed}/{lap}/{problem_id}".encode()).digest()


def digest_of(model: torch.nn.Module, beneath: SampledModel | None = None) -> str:
    """16 hex digits over the weights that are trained, by name, and where others stand beneath them over the
    identity of the checkpoint that has those: a fresh adapter is the same on every student."""
    digest, frozen = hashlib.blake2b(digest_size=8), False
    for name, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
        frozen = frozen or not weight.requires_grad
    if frozen and beneath is not None:
        digest.update(fingerprint(beneath.identity).encode())
    return digest.hexdigest()
