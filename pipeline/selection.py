"""Selection: which of the traces that passed the rules become examples; deterministic by seed.

Memory per problem, not per trace: of each problem only its best `per_problem` traces are held, as numbers in
flat arrays (24 bytes each). Everything after that works on those.
"""

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.recipe import Bucket, Select

if TYPE_CHECKING:
    import numpy

    Ints = numpy.ndarray[Any, numpy.dtype[Any]]

NONE = 2**64 - 1
MASK = 2**64 - 1


def mix_bits(value: int) -> int:
    """splitmix64 (Steele, Lea and Flood 2014): an even scatter of 64 bits, the same on every machine."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


@dataclass(frozen=True, slots=True)
class Passed:
    """A trace that passed all rules: its place in the file of those, and what selection goes by."""

    position: int
    problem_id: int
    sample: int
    tokens: int
    ordinal: int
    offset: int


class BestTraces:
    """The `per_problem` preferred traces of each problem, seen one by one in any order."""

    def __init__(self, num_problems: int, select: Select, seed: int) -> None:
        self.depth = select.per_problem
        self.prefer = select.prefer
        self.seed = mix_bits(seed)
        slots = num_problems * self.depth
        self.ranks = array("Q", [NONE]) * slots
        self.tokens = array("I", [0]) * slots
        self.ordinals = array("I", [0]) * slots
        self.offsets = array("Q", [0]) * slots

    def add(self, passed: Passed) -> None:
        """Insert by rank; what is pushed off the end was not preferred."""
        start = passed.position * self.depth
        rank = self._rank(passed)
        slot = start + self.depth
        while slot > start and rank < self.ranks[slot - 1]:
            slot -= 1
        if slot == start + self.depth:
            return
        for column, value in (
            (self.ranks, rank),
            (self.tokens, passed.tokens),
            (self.ordinals, passed.ordinal),
            (self.offsets, passed.offset),
        ):
            end = start + self.depth
            column[slot + 1 : end] = column[slot : end - 1]
            column[slot] = value

    def _rank(self, passed: Passed) -> int:
        if self.prefer == "shortest":
            return (min(passed.tokens, 2**32 - 1) << 31) | (passed.sample & 0x7FFFFFFF)
        if self.prefer == "first":
            return passed.sample
        return mix_bits(self.seed ^ mix_bits(passed.problem_id ^ mix_bits(passed.sample))) >> 1


@dataclass(frozen=True, slots=True)
class Selected:
    """The examples in their final order, and for each trace that passed its reason (index into REASONS)."""

    offsets: "Ints"
    tokens: "Ints"
    reasons: "Ints"


REASONS = ("not_preferred", "kept", "off_difficulty", "off_length", "over_source_cap", "over_token_budget")
NOT_PREFERRED, KEPT, OFF_DIFFICULTY, OFF_LENGTH, OVER_SOURCE_CAP, OVER_TOKEN_BUDGET = range(len(REASONS))


@dataclass(frozen=True, slots=True)
class ByPosition:
    """What selection knows of the problems, in the order of their ids; `sources` are indices into `names`."""

    ids: "Ints"
    pass_rates: "Ints"
    sources: "Ints"
    names: list[str]


def select_examples(best: BestTraces, select: Select, num_passed: int, problems: ByPosition) -> Selected:
    """Choose among the best traces.

    Order: each problem's first trace before any problem's second, problems in an order that depends on seed
    and id alone. So a smaller budget takes a part of what a larger one takes, and two recipes that differ in
    a rule see problems in the same order.
    """
    import numpy

    ranks = numpy.frombuffer(best.ranks, dtype=numpy.uint64)
    taken = numpy.flatnonzero(ranks != NONE)
    position, turn = taken // best.depth, taken % best.depth
    with numpy.errstate(over="ignore"):
        draw = mix_array(problems.ids[position] ^ numpy.uint64(best.seed))
    order = numpy.lexsort((draw, turn))
    taken, position = taken[order], position[order]
    tokens = numpy.frombuffer(best.tokens, dtype=numpy.uint32)[taken].astype(numpy.int64)
    reason = numpy.full(len(taken), KEPT, dtype=numpy.uint8)
    if select.difficulty:
        _fill_shares(reason, problems.pass_rates[position], select.difficulty, OFF_DIFFICULTY)
    if select.lengths:
        _fill_shares(reason, tokens, select.lengths, OFF_LENGTH)
    if select.per_source:
        for name, limit in select.per_source.items():
            code = problems.names.index(name) if name in problems.names else -1
            held = numpy.flatnonzero((reason == KEPT) & (problems.sources[position] == code))
            reason[held[limit:]] = OVER_SOURCE_CAP
    if select.max_tokens is not None:
        _fill_budget(reason, tokens, select.max_tokens)
    reasons = numpy.zeros(num_passed, dtype=numpy.uint8)
    reasons[numpy.frombuffer(best.ordinals, dtype=numpy.uint32)[taken]] = reason
    kept = reason == KEPT
    return Selected(numpy.frombuffer(best.offsets, dtype=numpy.uint64)[taken][kept], tokens[kept], reasons)


def mix_array(values: "Ints") -> "Ints":
    """`mix_bits` of each value."""
    import numpy

    u = numpy.uint64
    values = values + u(0x9E3779B97F4A7C15)
    values = (values ^ (values >> u(30))) * u(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> u(27))) * u(0x94D049BB133111EB)
    return values ^ (values >> u(31))


def _fill_shares(reason: "Ints", values: "Ints", buckets: list[Bucket], code: int) -> None:
    """Cut every bucket down, from the end of the order, to the largest total that has the stated shares."""
    import numpy

    held = [numpy.flatnonzero((reason == KEPT) & _inside(values, bucket)) for bucket in buckets]
    total = min(len(rows) / bucket.share for rows, bucket in zip(held, buckets, strict=True))
    keep = numpy.zeros(len(reason), dtype=bool)
    for rows, bucket in zip(held, buckets, strict=True):
        keep[rows[: round(total * bucket.share)]] = True
    reason[(reason == KEPT) & ~keep] = code


def _inside(values: "Ints", bucket: Bucket) -> "Ints":
    import numpy

    inside = numpy.ones(len(values), dtype=bool)
    if bucket.above is not None:
        inside &= values > bucket.above
    if bucket.up_to is not None:
        inside &= values <= bucket.up_to
    return inside


def _fill_budget(reason: "Ints", tokens: "Ints", budget: int) -> None:
    """Take examples in order while they fit; one that does not fit is passed over, and the next is tried."""
    import numpy

    left = budget
    for row in numpy.flatnonzero(reason == KEPT):
        size = int(tokens[row])
        if size > left:
            reason[row] = OVER_TOKEN_BUDGET
            continue
        left -= size
