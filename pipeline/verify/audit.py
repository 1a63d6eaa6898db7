"""Ask the other layers for a second opinion on a sample of verdicts: how often may the verifier be mistaken?

`python -m pipeline audit --recipe R`. Reads problems, traces and verdicts of a run; changes nothing. A
verdict of the value layers is put to math-verify and the reverse; one of another verifier is put to math. The
rates are what the error would be if the second opinion were always right, so they are upper guides, and the
examples are there to be read.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RecipeError, StageError
from pipeline.records import Problem, Record, Trace, Verdict, from_json
from pipeline.rows import json_lines
from pipeline.stage import Context
from pipeline.verify.confusion import share_line
from pipeline.verify.pool import VerifierPool

MAX_SHOWN = 120  # characters of a text in an example
OWN_LAYERS = ["string", "values"]


@dataclass(frozen=True, slots=True)
class Opinion:
    """A verdict, what the second opinion says, and the gold answer between them."""

    verdict: Verdict
    second: Verdict
    gold: str


def audit_run(context: Context, sample: int = 400, workers: int = 2) -> str:
    """The report on the run of a recipe. Raises StageError where it has no verdicts, RecipeError where none
    are asked for."""
    if sample < 1:
        raise RecipeError(f"--sample {sample}: at least 1 verdict must be asked about; 400 is usual")
    problems, generate = context.directory("problems") / "problems.jsonl", context.directory("generate")
    verdicts = generate / "verdicts.jsonl"
    missing = [path for path in (problems, verdicts) if not path.is_file()]
    if missing:
        raise nothing_to_audit(context, f"{missing[0]} does not exist")
    with VerifierPool(workers) as pool:
        opinions = audit(
            records(Problem, [problems]),
            records(Trace, sorted(generate.glob("traces-*.jsonl"))),
            records(Verdict, [verdicts]),
            pool,
            sample,
            context.recipe.seed,
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
    """The records of files of lines; broken lines, which generate repairs, are passed over."""
    for path in paths:
        for line in json_lines(path):
            if line.values is not None:
                yield from_json(kind, json.dumps(line.values))


def audit(
    problems: Iterable[Problem],
    traces: Iterable[Trace],
    verdicts: Iterable[Verdict],
    pool: VerifierPool,
    sample: int = 400,
    seed: int = 0,
) -> list[Opinion]:
    """Second opinions on up to `sample` verdicts, half of them accepted ones; `pool` must be open.

    The sample depends on seed and keys alone, not on the order of the verdicts.
    """
    chosen = {(verdict.problem_id, verdict.sample): verdict for verdict in choose(verdicts, sample, seed)}
    answers = {
        (trace.problem_id, trace.sample): trace.answer
        for trace in traces
        if (trace.problem_id, trace.sample) in chosen
    }
    wanted = {key[0] for key in answers}
    asked = {problem.id: problem for problem in problems if problem.id in wanted}
    keys = sorted(key for key in answers if key[0] in asked)
    rows = (
        (key, "math", asked[key[0]].gold, answers[key], {"layers": other_layers(chosen[key])}) for key in keys
    )
    return [
        Opinion(chosen[key], second, asked[key[0]].gold)
        for key, second in zip(keys, pool.map(rows), strict=True)
    ]


def choose(verdicts: Iterable[Verdict], sample: int, seed: int) -> list[Verdict]:
    """The verdicts of smallest hash, half of them accepted; fewer where there are fewer."""
    accepted: list[tuple[str, int, Verdict]] = []
    rejected: list[tuple[str, int, Verdict]] = []
    for index, verdict in enumerate(verdicts):
        digest = hashlib.sha256(f"{seed}:{verdict.problem_id}:{verdict.sample}".encode()).hexdigest()
        (accepted if verdict.status == "correct" else rejected).append((digest, index, verdict))
        if len(accepted) > 4 * sample or len(rejected) > 4 * sample:
            accepted = heapq.nsmallest(sample, accepted)
            rejected = heapq.nsmallest(sample, rejected)
    half = sample // 2
    num_rejected = min(len(rejected), max(half, sample - len(accepted)))
    few = heapq.nsmallest(sample - num_rejected, accepted) + heapq.nsmallest(num_rejected, rejected)
    return [verdict for _, _, verdict in few]


def other_layers(verdict: Verdict) -> list[str]:
    if verdict.verifier != "math":
        return [*OWN_LAYERS, "math_verify"]
    return OWN_LAYERS if verdict.layer == "math_verify" else ["math_verify"]


def audit_report(opinions: list[Opinion], num_examples: int = 10) -> str:
    """The disagreement table, both rates with Wilson intervals, and examples."""
    table = Counter(
        (opinion.verdict.status, opinion.verdict.layer, opinion.second.status) for opinion in opinions
    )
    lines = [f"{'verdict':>13} {'layer':>14} | {'second opinion':>14} {'count':>7}"]
    for (status, layer, second), count in sorted(table.items()):
        lines.append(f"{status:>13} {layer or '-':>14} | {second:>14} {count:>7,}")
    accepted = [one for one in opinions if one.verdict.status == "correct" and has_opinion(one)]
    rejected = [one for one in opinions if one.verdict.status != "correct" and has_opinion(one)]
    false_accepts = [one for one in accepted if one.second.status == "wrong"]
    false_rejects = [one for one in rejected if one.second.status == "correct"]
    lines += [
        share_line(
            "accepted, but wrong by the second opinion (false accepts)", len(false_accepts), len(accepted)
        ),
        share_line(
            "rejected, but correct by the second opinion (false rejects)", len(false_rejects), len(rejected)
        ),
    ]
    for one in (false_accepts + false_rejects)[:num_examples]:
        lines.append(
            f"  {one.verdict.problem_id} sample {one.verdict.sample}: gold {shown(one.gold)}, answer "
            f"{shown(one.verdict.extracted)}: {one.verdict.status} by {one.verdict.layer or '-'}, "
            f"{one.second.status} by {one.second.layer or '-'}"
        )
    return "\n".join(lines)


def has_opinion(opinion: Opinion) -> bool:
    return opinion.second.status != "unverifiable"


def shown(text: str | None) -> str:
    return repr(text if text is None or len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")
