"""Ask for a second opinion on a sample of verdicts: how often may the verifier be mistaken?

`python -m pipeline audit --recipe R`. Reads problems, traces and verdicts of a run; changes nothing.

The second opinion comes from mathematics. On a verdict of math it comes from layers that did not decide it:
math-verify for our own layers, our own layers for math-verify. On a verdict of reasoning_gym it comes from
all layers, where the gold is a number. There is none on verdicts of choice, text and json, nor on those of
reasoning_gym whose gold is a grid, a path or a word: they are not mathematics. For `any` the verifier that
it compares with decides.

The rates are what the errors would be if the second opinion were always right; read the examples before
believing them.
"""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.recipe.cards import Tags
from pipeline.records import Problem, Record, Trace, Verdict
from pipeline.render import split_response
from pipeline.rows import json_lines
from pipeline.verify.basis import basis_of, tags_digest
from pipeline.verify.confusion import share_line
from pipeline.verify.pool import Row, VerifierPool
from pipeline.verify.table import comparing

MAX_SHOWN = 120  # characters of a text in an example
OWN_LAYERS = ["string", "values"]
NO_SECOND = "no second opinion"
NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


@dataclass(frozen=True, slots=True)
class Opinion:
    """A verdict, what the second opinion says (None where there can be none), and the gold between them."""

    verdict: Verdict
    second: Verdict | None
    gold: str

    @property
    def accepted(self) -> bool:
        return self.verdict.status == "correct"

    @property
    def against(self) -> bool | None:
        """Whether the second opinion speaks against the verdict; None where it says nothing."""
        if self.second is None or self.second.status == "unverifiable":
            return None
        return (self.second.status == "correct") is not self.accepted


def audit_run(context: Context, sample: int = 400, workers: int | None = None) -> str:
    """The report on the run of a recipe, with one worker process for each core where `workers` is None.

    Raises StageError where the run has no verdicts, RecipeError where none are asked for.
    """
    if sample < 1:
        raise RecipeError(f"--sample {sample}: at least 1 verdict must be asked about; 400 is usual")
    problems, generate = context.directory("problems") / "problems.jsonl", context.directory("generate")
    verdicts = generate / "verdicts.jsonl"
    missing = [path for path in (problems, verdicts) if not path.is_file()]
    if missing:
        raise nothing_to_audit(context, f"{missing[0]} does not exist")
    tags = context.teacher.tags
    with VerifierPool(workers) as pool:
        opinions = audit(
            choose(current(records(Verdict, [verdicts]), tags), sample, context.recipe.seed),
            records(Problem, [problems]),
            records(Trace, sorted(generate.glob("traces-*.jsonl"))),
            tags,
            pool,
        )
    if not opinions:
        raise nothing_to_audit(context, f"{verdicts} holds no verdict on a trace of this run")
    return audit_report(opinions)


def nothing_to_audit(context: Context, found: str) -> StageError:
    return StageError(
        f"{found}: generate has not run, there is nothing to audit yet. "
        f"Run: make generate RECIPE={context.start.recipe}"
    )


def records(kind: type[Record], paths: list[Path]) -> Iterator[Record]:
    """The records of files, streamed. A line that an interruption cut off, which generate repairs, is passed
    over; StageError where a whole line is not such a record."""
    for path in paths:
        for line in json_lines(path):
            if line.values is None:
                continue
            try:
                yield kind(**line.values)
            except TypeError as error:
                raise StageError(f"{line.where}: is not a {kind.__name__.lower()} ({error})") from None


def current(verdicts: Iterable[Verdict], tags: Tags) -> Iterator[Verdict]:
    """Without verdicts on responses that were split by other tags than those of today's card."""
    digest = tags_digest(tags)
    return (verdict for verdict in verdicts if verdict.basis.endswith(f"-{digest}"))


def audit(
    verdicts: Iterable[Verdict],
    problems: Iterable[Problem],
    traces: Iterable[Trace],
    tags: Tags,
    pool: VerifierPool,
) -> list[Opinion]:
    """The opinion on each verdict whose trace and problem are there, in the order of keys.

    `tags` are those of the model that wrote the traces; `pool` must be open.
    """
    chosen = {(verdict.problem_id, verdict.sample): verdict for verdict in verdicts}
    answers = {
        (trace.problem_id, trace.sample): split_response(trace.response, tags).answer
        for trace in traces
        if (trace.problem_id, trace.sample) in chosen
    }
    wanted = {key[0] for key in answers}
    asked = {problem.id: problem for problem in problems if problem.id in wanted}
    digest = tags_digest(tags)
    basis = {key: basis_of(problem, digest) for key, problem in asked.items()}
    # a verdict on a gold that was corrected since says nothing
    keys = sorted(key for key in answers if chosen[key].basis == basis.get(key[0]))
    rows = [second_row(chosen[key], asked[key[0]], answers[key]) for key in keys]
    seconds = pool.map(row for row in rows if row is not None)
    return [
        Opinion(chosen[key], None if row is None else next(seconds), asked[key[0]].gold)
        for key, row in zip(keys, rows, strict=True)
    ]


def second_row(verdict: Verdict, problem: Problem, answer: str) -> Row | None:
    """What is put to the pool for a second opinion; None where mathematics cannot give one."""
    metadata: dict[str, Any]
    if verdict.verifier == "majority":  # there is no gold to compare with
        return None
    match comparing(verdict.verifier, problem.metadata):
        case "math":
            metadata = {"layers": OWN_LAYERS if verdict.layer == "math_verify" else ["math_verify"]}
        case "reasoning_gym" if NUMBER.fullmatch(problem.gold.strip()):
            metadata = {}
        case _:
            return None
    verifier = "any" if verdict.verifier == "any" else "math"
    return (verdict.problem_id, verdict.sample), verifier, problem.gold, answer, metadata


def choose(verdicts: Iterable[Verdict], sample: int, seed: int) -> list[Verdict]:
    """The verdicts of smallest hash, half of them accepted; fewer where there are fewer.

    The sample depends on seed and keys alone, not on the order of the verdicts.
    """
    accepted: list[tuple[str, int, Verdict]] = []
    rejected: list[tuple[str, int, Verdict]] = []
    for index, verdict in enumerate(verdicts):
        digest = hashlib.sha256(f"{seed}:{verdict.problem_id}:{verdict.sample}".encode()).hexdigest()
        few = accepted if verdict.status == "correct" else rejected
        few.append((digest, index, verdict))
        if len(few) > 4 * sample:
            few[:] = heapq.nsmallest(sample, few)
    half = sample // 2
    num_rejected = min(len(rejected), max(half, sample - len(accepted)))
    chosen = heapq.nsmallest(sample - num_rejected, accepted) + heapq.nsmallest(num_rejected, rejected)
    return [verdict for _, _, verdict in chosen]


def audit_report(opinions: list[Opinion], num_examples: int = 10) -> str:
    """The disagreement table, both rates with Wilson intervals, and examples."""
    table = Counter(
        (one.verdict.status, one.verdict.layer, one.second.status if one.second else NO_SECOND)
        for one in opinions
    )
    lines = [f"{'verdict':>13} {'layer':>14} | {'second opinion':>17} {'count':>7}"]
    for (status, layer, second), count in sorted(table.items()):
        lines.append(f"{status:>13} {layer or '-':>14} | {second:>17} {count:>7,}")
    if without := Counter(one.verdict.verifier for one in opinions if one.second is None):
        verifiers = ", ".join(f"{name} {count:,}" for name, count in sorted(without.items()))
        lines.append(f"{NO_SECOND}: {without.total():,} verdicts, which are in no rate ({verifiers})")
    mistaken: list[Opinion] = []
    for accepted, kind in (
        (True, "accepted, but wrong by the second opinion (false accepts)"),
        (False, "rejected, but correct by the second opinion (false rejects)"),
    ):
        decided = [one for one in opinions if one.against is not None and one.accepted is accepted]
        against = [one for one in decided if one.against]
        lines.append(share_line(kind, len(against), len(decided)))
        mistaken += against
    lines += map(example_line, mistaken[:num_examples])
    return "\n".join(lines)


def example_line(opinion: Opinion) -> str:
    verdict, second = opinion.verdict, opinion.second
    against = "" if second is None else f", {second.status} by {second.layer or '-'}"
    return (
        f"  {verdict.problem_id} sample {verdict.sample}: gold {shown(opinion.gold)}, answer "
        f"{shown(verdict.extracted)}: {verdict.status} by {verdict.layer or '-'}{against}"
    )


def shown(text: str | None) -> str:
    return repr(text if text is None or len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")
