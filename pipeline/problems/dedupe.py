"""Duplicate questions: the same text, or nearly the same text with the same numbers and the same answer.

Near duplicates are found by MinHash LSH (Broder 1997; datasketch) over runs of 3 words and then measured:
dropped at a Jaccard similarity of at least 0.7. Of 21 pairs at 0.6 or more in MATH and GSM8K, read by eye,
19 had other answers and were other problems ("minimum" for "maximum"), even at 0.9; so the numbers and the
gold answer must be equal too. Procedural sources are left out of this: their questions share a template.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.problems.overlap import NUMBER, squash, words_of
from pipeline.problems.sources import normalise_question
from pipeline.records import Problem

SHINGLE_WORDS = 3
NEAR_SIMILARITY = 0.7
# of the LSH: lower than the rule's own, since 128 permutations estimate with a standard error of 0.04
CANDIDATE_SIMILARITY = 0.6
NUM_PERMUTATIONS = 128


@dataclass(frozen=True, slots=True)
class Duplicate:
    """`rule` is duplicate or near_duplicate; `first` is the problem that stays."""

    rule: str
    first: Problem
    detail: str


def duplicates(problems: list[Problem], procedural: set[str]) -> dict[int, Duplicate]:
    """Position -> what it repeats. The first of equals stays; `procedural` names the procedural sources."""
    found: dict[int, Duplicate] = {}
    first: dict[str, Problem] = {}
    for position, problem in enumerate(problems):
        earlier = first.setdefault(normalise_question(problem.question), problem)
        if earlier is not problem:
            detail = "" if earlier.gold == problem.gold else f"gold {problem.gold!r} against {earlier.gold!r}"
            found[position] = Duplicate("duplicate", earlier, detail)
    written = [
        (position, problem)
        for position, problem in enumerate(problems)
        if position not in found and problem.source not in procedural
    ]
    found.update(_near_duplicates(written))
    return found


def _near_duplicates(problems: list[tuple[int, Problem]]) -> Iterator[tuple[int, Duplicate]]:
    if len(problems) < 2:
        return
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=CANDIDATE_SIMILARITY, num_perm=NUM_PERMUTATIONS)
    kept: dict[int, tuple[Problem, list[str]]] = {}
    for position, problem in problems:
        runs = shingles(problem.question)
        facts = [squash(normalise_question(problem.gold)), *sorted(NUMBER.findall(problem.question))]
        sketch = MinHash(num_perm=NUM_PERMUTATIONS)
        sketch.update_batch([run.encode() for run in runs])
        near = [
            (similarity(runs, shingles(kept[other][0].question)), -other)
            for other in index.query(sketch)
            if kept[other][1] == facts
        ]
        score, other = max(near, default=(0.0, 0))
        if score >= NEAR_SIMILARITY:
            yield position, Duplicate("near_duplicate", kept[-other][0], f"{score:.3f}")
            continue
        kept[position] = (problem, facts)
        index.insert(position, sketch)


def shingles(question: str) -> set[str]:
    """All runs of 3 words; of a shorter question the whole."""
    words = words_of(normalise_question(question))
    if len(words) < SHINGLE_WORDS:
        return {" ".join(words)}
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}


def similarity(one: set[str], other: set[str]) -> float:
    """Jaccard: shared over all."""
    return len(one & other) / len(one | other)
