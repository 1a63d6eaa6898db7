"""majority: a problem without a gold answer. Its samples' own majority becomes the gold, in filter.

In a worker an answer is only read, by the verifier that the metadata names ("math" when absent).
`majority_of` sorts the answers of one problem by that verifier's own equality; it asks for one comparison at
a time, so that whoever drives many problems puts the comparisons of all of them to the pool at once.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pipeline.verify.outcome import Outcome, unverifiable, wrong
from pipeline.verify.table import comparing, function_of

NO_GOLD = "no_gold"  # the reason of a verdict that waits for the majority
NO_MAJORITY = "no_majority"
TOO_FEW = "too_few_samples"  # no majority either, where those that are missing could have made one
LAYER = "majority"  # of a verdict that rests on a majority
# a gold that each verifier can read, for the sake of the answer that it reads beside it
PLACEHOLDERS = {"choice": "A", "json": "null", "math": "0", "text": "0"}

Comparison = tuple[str, str]  # an answer, and the one that is taken for the gold


def verify_majority(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    """What can be told without the other samples: the answer, or that there is none."""
    inner = comparing("majority", metadata)
    outcome = function_of(inner)(response, PLACEHOLDERS[inner], metadata)
    if outcome.reason == "no_answer":
        return wrong(None, "", "no_answer")
    if outcome.extracted is None:
        return unverifiable(outcome.reason)
    return unverifiable(NO_GOLD, outcome.extracted)


@dataclass(frozen=True, slots=True)
class Majority:
    """What the samples of a problem say: `gold` None where no answer has the share, or two have it alike.

    `members` are the samples that gave it; `votes` of the largest group, of `samples` in all. `missing` so
    many were wanted besides, and none of them is a vote.
    """

    gold: str | None
    members: frozenset[int]
    votes: int
    samples: int
    missing: int = 0
    lacking: str = ""  # why there is no gold

    @property
    def text(self) -> str:
        return f"{self.votes} of {self.samples}" + (f" ({self.missing} missing)" if self.missing else "")


def majority_of(
    answers: Sequence[tuple[int, str | None]], min_share: float, of: int = 0
) -> Generator[Comparison, bool, Majority]:
    """The majority of (sample, answer) pairs, where every sample is counted, those without an answer (None)
    and those that are missing of the `of` that were wanted too: a lone sample elects nobody. Yields each
    comparison that it needs and is sent whether the two are equal.

    An answer is compared with the first of each group, in the order of samples. One that does not even equal
    itself, because it cannot be read as a gold, is in no group.
    """
    groups: dict[str, list[int]] = {}
    known: dict[str, str | None] = {}
    for sample, answer in sorted(answers, key=lambda pair: pair[0]):
        if answer is None:
            continue
        if answer not in known:
            known[answer] = None
            for first in groups:
                if (yield answer, first):
                    known[answer] = first
                    break
            else:
                if (yield answer, answer):
                    known[answer] = answer
                    groups[answer] = []
        first_of = known[answer]
        if first_of is not None:
            groups[first_of].append(sample)
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    votes = len(ranked[0][1]) if ranked else 0
    tied = len(ranked) > 1 and len(ranked[1][1]) == votes
    missing = max(of - len(answers), 0)
    needed = Fraction(str(min_share)) * (len(answers) + missing)  # 0.1 as it is written: 3 of 30 are enough
    if votes and not tied and votes >= needed:
        return Majority(ranked[0][0], frozenset(ranked[0][1]), votes, len(answers), missing)
    lacking = TOO_FEW if missing and votes + missing >= needed else NO_MAJORITY
    return Majority(None, frozenset(), votes, len(answers), missing, lacking)
