"""Problems without a gold answer: the majority of their own samples becomes the gold, before the rules look.

Reads the traces once more, for the answers of these problems alone, which are held in memory; the samples of
one problem stand in any order. A share that changes in the recipe asks no teacher again.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.filter.joins import TRACE, VERDICT, Inputs, Item, Joined
from pipeline.recipe.cards import Tags
from pipeline.records import PROBLEM, STOP, Problem, Verdict, to_json
from pipeline.verify.majority import LAYER, Comparison, Majority, majority_of
from pipeline.verify.table import comparing

if TYPE_CHECKING:
    from pipeline.verify import VerifierPool

log = logging.getLogger(__name__)

VERIFIER = "majority"
MARK = b'"verifier": "majority"'  # as problems.jsonl holds it
GOLD_FROM = "majority"


@dataclass(slots=True)
class Majorities:
    """What became of each problem without a gold answer, by its position in the index."""

    found: dict[int, Majority] = field(default_factory=dict)
    by_source: dict[str, Counter[str]] = field(default_factory=dict)

    def settled(self, item: Item) -> Item:
        """The item with the majority as its gold and the verdict that follows; any other as it is."""
        majority = self.found.get(item.position)
        if majority is None or not item.verdict:
            return item
        problem, verdict = PROBLEM.decode(item.problem), VERDICT.decode(item.verdict)
        return item._replace(
            problem=to_json(settled_problem(problem, majority)).encode(),
            verdict=to_json(settled_verdict(verdict, item.sample, majority)).encode(),
        )

    def to_json(self) -> dict[str, dict[str, int]]:
        """Problems by source: with a majority, or why they have none."""
        return {source: dict(sorted(counts.items())) for source, counts in sorted(self.by_source.items())}


def settled_problem(problem: Problem, majority: Majority) -> Problem:
    """The problem with the majority for its gold, marked as such; its id and lot-by-question stay."""
    metadata = {**problem.metadata, "gold_from": GOLD_FROM, "votes": majority.text}
    return replace(problem, gold=majority.gold or "", metadata=metadata)


def settled_verdict(verdict: Verdict, sample: int, majority: Majority) -> Verdict:
    """Correct where the sample is one of the majority; nothing can be told where there is none."""
    if verdict.reason == "no_answer":
        return verdict
    if majority.gold is None:
        return replace(verdict, status="unverifiable", reason=majority.lacking, layer=LAYER)
    if sample in majority.members:
        return replace(verdict, status="correct", reason="equal", layer=LAYER)
    if verdict.extracted is None:
        return verdict
    return replace(verdict, status="wrong", reason="different", layer=LAYER)


def find_majorities(inputs: Inputs, tags: Tags, workers: int) -> Majorities:
    """Group the answers of every problem without a gold answer by its verifier's own equality.

    A response that was cut counts as a sample and has no answer; so does one that is not there, because its
    request failed or because the traces were imported and are fewer.
    """
    answers: dict[int, list[tuple[int, str | None]]] = defaultdict(list)
    problems: dict[int, Problem] = {}
    with Joined(inputs, tags, workers) as joined:
        for chunk in joined.chunks():
            for item in chunk:
                if MARK not in item.problem or not item.verdict:
                    continue
                if item.position not in problems:
                    problem = PROBLEM.decode(item.problem)
                    if problem.verifier != VERIFIER:  # the mark stands in its metadata
                        continue
                    problems[item.position] = problem
                finished = TRACE.decode(item.trace).finish_reason == STOP
                answer = VERDICT.decode(item.verdict).extracted if finished else None
                answers[item.position].append((item.sample, answer))
        groupings = {
            position: majority_of(
                answers[position], inputs.min_shares[problem.source], int(problem.metadata["of"])
            )
            for position, problem in problems.items()
        }
        found = driven(groupings, problems, joined.pool()) if groupings else {}
    majorities = Majorities(found)
    for position, majority in found.items():
        counts = majorities.by_source.setdefault(problems[position].source, Counter())
        counts[majority.lacking or "majority"] += 1
    log.info("filter: problems without a gold answer: %s", majorities.to_json())
    return majorities


def driven(
    groupings: dict[int, Generator[Comparison, bool, Majority]],
    problems: dict[int, Problem],
    pool: "VerifierPool",
) -> dict[int, Majority]:
    """Drive all groupings side by side: in each round the comparisons of all that are not done."""
    found: dict[int, Majority] = {}

    def advance(position: int, equal: bool | None) -> Comparison | None:
        try:
            grouping = groupings[position]
            return next(grouping) if equal is None else grouping.send(equal)
        except StopIteration as end:
            found[position] = end.value
            return None

    def asked(told: Iterable[tuple[int, bool | None]]) -> dict[int, Comparison]:
        pairs = ((position, advance(position, equal)) for position, equal in told)
        return {position: comparison for position, comparison in pairs if comparison is not None}

    waiting = asked((position, None) for position in groupings)
    while waiting:
        rows = (
            (
                (problem.id, 0),
                comparing(VERIFIER, problem.metadata),
                gold,
                f"\\boxed{{{answer}}}",
                problem.metadata,
            )
            for position, (answer, gold) in waiting.items()
            for problem in [problems[position]]
        )
        equal = [verdict.status == "correct" for verdict in pool.map(rows)]
        waiting = asked(list(zip(waiting, equal, strict=True)))
    return found
