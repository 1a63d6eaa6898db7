"""Duplicate questions: the same text, or nearly the same text with the same numbers and the same answer.

Near duplicates are found by MinHash LSH (Broder 1997; datasketch) over runs of 3 words and then measured:
dropped at a Jaccard similarity of at least 0.7. Of 21 pairs at 0.6 or more in MATH and GSM8K, read by eye,
19 had other answers and were other problems ("minimum" for "maximum"), even at 0.9; so the numbers and the
gold answer must be equal too. Procedural sources are left out of this: their questions share a template.
"""

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pipeline.problems.held import Held
from pipeline.problems.overlap import NUMBER, squash, words_of
from pipeline.problems.sources import normalise_question
from pipeline.records import Problem

if TYPE_CHECKING:
    import numpy

SHINGLE_WORDS = 3
NEAR_SIMILARITY = 0.7
# of the LSH: lower than the rule's own, since 128 permutations estimate with a standard error of 0.04
CANDIDATE_SIMILARITY = 0.6
NUM_PERMUTATIONS = 128
CACHED_QUESTIONS = 4_096
DIGEST = "S16"


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The problem at `position` repeats the one at `first`, which stays; `rule` is duplicate or
    near_duplicate."""

    position: int
    rule: str
    first: int
    detail: str


def duplicates(held: Held, procedural: set[str]) -> Iterator[Duplicate]:
    """Every problem that repeats an earlier one, by position. `procedural` names the procedural sources.

    In memory are two digests of each problem, and the bands of those that share numbers and gold with
    another; the questions stay on disk.
    """
    import numpy

    positions, texts, facts, written = array("q"), bytearray(), bytearray(), bytearray()
    for position, problem in held.living():
        is_written = problem.source not in procedural
        positions.append(position)
        texts += _digest(normalise_question(problem.question))
        facts += _digest(_facts(problem)) if is_written else bytes(16)
        written.append(is_written)
    if not positions:
        return
    places = numpy.array(positions)
    _, first, inverse = numpy.unique(numpy.frombuffer(texts, DIGEST), return_index=True, return_inverse=True)
    earliest = first[inverse]
    repeats = earliest != numpy.arange(len(places))
    alone = numpy.frombuffer(written, "?") & ~repeats
    near = {
        one.position: one
        for one in _near_duplicates(held, places[alone], numpy.frombuffer(facts, DIGEST)[alone])
    }
    for row in numpy.flatnonzero(repeats | numpy.isin(places, list(near))):
        position = int(places[row])
        if position in near:
            yield near[position]
            continue
        earlier = int(places[earliest[row]])
        gold, other = held[earlier].gold, held[position].gold
        detail = "" if gold == other else f"gold {other!r} against {gold!r}"
        yield Duplicate(position, "duplicate", earlier, detail)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _facts(problem: Problem) -> str:
    """What near duplicates have in common: the gold, and the numbers of the question."""
    numbers = sorted(NUMBER.findall(problem.question))
    return json.dumps([squash(normalise_question(problem.gold)), *numbers])


def _near_duplicates(
    held: Held, places: "numpy.ndarray[Any, Any]", facts: "numpy.ndarray[Any, Any]"
) -> Iterator[Duplicate]:
    """Only problems of equal facts can be near duplicates, so each such group is looked at by itself."""
    import numpy

    if len(places) < 2:
        return
    _, group, size = numpy.unique(facts, return_inverse=True, return_counts=True)
    shared = numpy.flatnonzero(size[group] > 1)
    order = shared[numpy.argsort(group[shared], kind="stable")]
    for _, rows in groupby(order, key=lambda row: int(group[row])):
        yield from _near_within(held, [int(places[row]) for row in rows])


def _near_within(held: Held, places: list[int]) -> Iterator[Duplicate]:
    """MinHash LSH over one group, as datasketch's own index does it, which has 10 KB for each problem: one is
    measured against the kept ones that share a band of its sketch."""
    bands = _shared_bands(held, places)
    kept: dict[tuple[int, int], list[int]] = defaultdict(list)

    @lru_cache(CACHED_QUESTIONS)
    def shingles_at(place: int) -> set[str]:
        return shingles(held[place].question)

    for row, place in enumerate(places):
        buckets = [(band, int(key)) for band, key in enumerate(bands[row]) if key]
        others = {other for bucket in buckets for other in kept[bucket]}
        runs = shingles_at(place) if others else set()
        score, other = max(((similarity(runs, shingles_at(one)), -one) for one in others), default=(0.0, 0))
        if score >= NEAR_SIMILARITY:
            yield Duplicate(place, "near_duplicate", -other, f"{score:.3f}")
            continue
        for bucket in buckets:
            kept[bucket].append(place)


def _shared_bands(held: Held, places: list[int]) -> "numpy.ndarray[Any, Any]":
    """A row for each place: for each band a number from 1 that places of equal bands share, 0 where it is
    alone."""
    import numpy
    from datasketch import MinHash, MinHashLSH

    ranges = MinHashLSH(threshold=CANDIDATE_SIMILARITY, num_perm=NUM_PERMUTATIONS).hashranges
    bands = numpy.empty((len(places), len(ranges)), dtype="u8")
    for row, place in enumerate(places):
        sketch = MinHash(num_perm=NUM_PERMUTATIONS)
        sketch.update_batch([run.encode() for run in shingles(held[place].question)])
        parts = (sketch.hashvalues[start:end].tobytes() for start, end in ranges)
        bands[row] = [int.from_bytes(hashlib.blake2b(p, digest_size=8).digest(), "big") for p in parts]
    for band in range(len(ranges)):
        _, number, size = numpy.unique(bands[:, band], return_inverse=True, return_counts=True)
        bands[:, band] = numpy.where(size[number] > 1, number + 1, 0)
    return bands


def shingles(question: str) -> set[str]:
    """All runs of 3 words; of a shorter question the whole."""
    words = words_of(normalise_question(question))
    if len(words) < SHINGLE_WORDS:
        return {" ".join(words)}
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}


def similarity(one: set[str], other: set[str]) -> float:
    """Jaccard: shared over all."""
    return len(one & other) / len(one | other)
