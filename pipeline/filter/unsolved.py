"""Problems that no trace solves: one wrong trace of each is kept, where a recipe has unsolved: keep_one.

A wrong trace that every rule but `correct` lets pass waits in a file until all traces were seen. Then the
preferred one of each problem without a right trace passes, marked as unsolved; the others are dropped by the
rule `correct`, as they are without this. Where a model says which trace is preferred, it weighs those of the
problems without a right one. Memory: two numbers for each problem that has such a trace.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from pipeline.filter.ledger import Ledger
from pipeline.filter.selection import Selection
from pipeline.filter.weighing import CHUNK, Weigh
from pipeline.records import FILTERED, Filtered, ProblemIndex, marked_unsolved

WAITING = ".unsolved.jsonl"


class Unsolved:
    """The traces that wait, in the order in which they came."""

    def __init__(self, file: IO[bytes], selection: Selection, weigh: Weigh | None = None) -> None:
        self.file = file
        self.selection = selection
        self.weigh = weigh
        # a problem's position: rank and offset of its preferred trace
        self.best: dict[int, tuple[int, int]] = {}

    def wait(self, row: bytes, position: int, sample: int, tokens: int) -> None:
        if self.weigh is None:
            self._prefer(position, self.selection.rank(position, sample, tokens), self.file.tell())
        self.file.write(row)

    def settle(
        self, path: Path, index: ProblemIndex, ledger: Ledger
    ) -> Iterator[tuple[int, int, int, bytes]]:
        """Position, sample, tokens and row of each that passes; the others go to the ledger."""
        self.file.flush()
        if self.weigh is not None:
            self._weigh_all(path, index, self.weigh)
        for offset, position, row, line in waiting(path, index):
            if self.selection.correct[position] == 0 and self.best[position][1] == offset:
                yield position, row.sample, row.trained_tokens, marked_unsolved(line)
            else:
                ledger.drop(line, row.rule, row.reason, row.source)

    def _prefer(self, position: int, rank: int, offset: int) -> None:
        candidate = rank, offset
        self.best[position] = min(candidate, self.best.get(position, candidate))

    def _weigh_all(self, path: Path, index: ProblemIndex, weigh: Weigh) -> None:
        rows = (found for found in waiting(path, index) if self.selection.correct[found[1]] == 0)
        while chunk := list(islice(rows, CHUNK)):
            weights = weigh([line for _, _, _, line in chunk])
            for (offset, position, row, _), weight in zip(chunk, weights, strict=True):
                rank = self.selection.rank(position, row.sample, row.trained_tokens, weight)
                self._prefer(position, rank, offset)


def waiting(path: Path, index: ProblemIndex) -> Iterator[tuple[int, int, Filtered, bytes]]:
    """Offset, position of the problem, row and line of each trace that waits."""
    offset = 0
    with path.open("rb") as lines:
        for line in lines:
            row = FILTERED.decode(line)
            position = index.position(row.problem_id)
            assert position is not None, "a trace of no problem was never applied to rules"
            yield offset, position, row, line
            offset += len(line)
