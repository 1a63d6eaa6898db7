"""Selection: which of the traces that passed the rules become examples; deterministic by seed.

Memory per problem, not per trace: of each problem only its best `per_problem` traces are held, as numbers in
flat arrays (24 bytes each). Everything after that works on those.
"""

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.recipe.schema import Bucket, Select

if TYPE_CHECKING:
    import numpy

    Ints = numpy.ndarray[Any, numpy.dtype[Any]]

NONE = MASK = 2**64 - 1
REASONS = ("not_preferred", "kept", "off_difficulty", "off_length", "over_source_cap", "over_token_budget")
# the first one is what a trace has that is not among the best of its problem
KEPT, OFF_DIFFICULTY, OFF_LENGTH, OVER_SOURCE_CAP, OVER_TOKEN_BUDGET = range(1, len(REASONS))

MAX_WEIGHT = 1e4  # nats a token, beyond which weights are alike

Bits = TypeVar("Bits", int, "Ints")


def mix_bits(value: Bits) -> Bits:
    """splitmix64 (Steele, Lea and Flood 2014): an even scatter of 64 bits, the same on every machine.

    Of one number, or of each in an array of uint64.
    """
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


@dataclass(frozen=True, slots=True)
class Selected:
    """The examples in their final order, each with its problem's position, and for each trace that passed its
    reason (index into REASONS)."""

    offsets: "Ints"
    tokens: "Ints"
    positions: "Ints"
    reasons: "Ints"


class Selection:
    """Of each problem how often it was solved and its `per_problem` preferred traces, seen in any order.

    Problems are named by their position; `lots` has the number of each for random draws (Problem.lot).
    """

    def __init__(self, lots: "Ints", select: Select, seed: int) -> None:
        self.lots = lots
        self.select = select
        self.seed = mix_bits(seed)
        self.num_passed = 0
        self.tries = array("I", [0]) * len(lots)
        self.correct = array("I", [0]) * len(lots)
        self.sources = array("H", [0]) * len(lots)
        self.source_names: list[str] = []
        slots = len(lots) * select.per_problem
        self.ranks = array("Q", [NONE]) * slots
        self.tokens = array("I", [0]) * slots
        self.ordinals = array("I", [0]) * slots
        self.offsets = array("Q", [0]) * slots

    def saw(self, position: int, source: str, correct: bool) -> None:
        """Count a trace, whether it passed the rules or not."""
        if source not in self.source_names:
            self.source_names.append(source)
        self.tries[position] += 1
        self.correct[position] += correct
        self.sources[position] = self.source_names.index(source)

    def add(self, position: int, sample: int, tokens: int, offset: int, weight: float = 0.0) -> None:
        """Insert the next trace that passed by its rank; what is pushed off the end was not preferred.

        `offset` is its place in the file of those that passed, `weight` what a model says of it.
        """
        ordinal, rank = self.num_passed, self.rank(position, sample, tokens, weight)
        self.num_passed += 1
        start, end = position * self.select.per_problem, (position + 1) * self.select.per_problem
        slot = end
        while slot > start and rank < self.ranks[slot - 1]:
            slot -= 1
        if slot == end:
            return
        for column, value in (
            (self.ranks, rank),
            (self.tokens, tokens),
            (self.ordinals, ordinal),
            (self.offsets, offset),
        ):
            column[slot + 1 : end] = column[slot : end - 1]
            column[slot] = value

    def rank(self, position: int, sample: int, tokens: int, weight: float = 0.0) -> int:
        """The lowest is preferred: by a model the highest weight, of equal ones the first sample."""
        if self.select.prefer in ("likely", "surprising"):
            held = max(-MAX_WEIGHT, min(weight, MAX_WEIGHT))
            return (round((MAX_WEIGHT - held) * 2**31) << 16) | min(sample, 2**16 - 1)
        if self.select.prefer == "shortest":
            return (min(tokens, 2**32 - 1) << 31) | (sample & 0x7FFFFFFF)
        if self.select.prefer == "first":
            return sample
        return mix_bits(self.seed ^ mix_bits(int(self.lots[position]) ^ mix_bits(sample))) >> 1

    def choose(self) -> Selected:
        """Choose among the best traces.

        Order: each problem's first trace before any problem's second, problems in an order that depends on
        seed and lot alone. So a smaller budget takes a part of what a larger one takes, and two recipes that
        differ in a rule see problems in the same order.
        """
        import numpy

        select = self.select
        taken = numpy.flatnonzero(numpy.frombuffer(self.ranks, dtype=numpy.uint64) != NONE)
        position, turn = taken // select.per_problem, taken % select.per_problem
        order = numpy.lexsort((mix_bits(self.lots[position] ^ self.seed), turn))
        taken, position = taken[order], position[order]
        tokens = numpy.frombuffer(self.tokens, dtype=numpy.uint32)[taken].astype(numpy.int64)
        reason = numpy.full(len(taken), KEPT, dtype=numpy.uint8)
        if select.difficulty:
            tries, correct = (
                numpy.frombuffer(held, dtype=numpy.uint32)[position] for held in (self.tries, self.correct)
            )
            _fill_shares(reason, correct / tries, select.difficulty, OFF_DIFFICULTY)
        if select.lengths:
            _fill_shares(reason, tokens, select.lengths, OFF_LENGTH)
        sources = numpy.frombuffer(self.sources, dtype=numpy.uint16)[position]
        for name, limit in select.per_source.items():
            code = self.source_names.index(name) if name in self.source_names else -1
            held = numpy.flatnonzero((reason == KEPT) & (sources == code))
            reason[held[limit:]] = OVER_SOURCE_CAP
        if select.max_tokens is not None:
            _fill_budget(reason, tokens, select.max_tokens)
        reasons = numpy.zeros(self.num_passed, dtype=numpy.uint8)
        reasons[numpy.frombuffer(self.ordinals, dtype=numpy.uint32)[taken]] = reason
        kept = reason == KEPT
        offsets = numpy.frombuffer(self.offsets, dtype=numpy.uint64)[taken][kept]
        return Selected(offsets, tokens[kept], position[kept], reasons)


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
    above = float("-inf") if bucket.above is None else bucket.above
    up_to = float("inf") if bucket.up_to is None else bucket.up_to
    return (values > above) & (values <= up_to)


def _fill_budget(reason: "Ints", tokens: "Ints", budget: int) -> None:
    """Take examples in order while they fit; one that does not fit is passed over, and the next is tried."""
    import numpy

    rows = numpy.flatnonzero(reason == KEPT)
    for row, size in zip(rows, tokens[rows].tolist(), strict=True):
        if size > budget:
            reason[row] = OVER_TOKEN_BUDGET
        else:
            budget -= size
