"""Problems that no trace solves: one wrong trace of each is kept, where a recipe has unsolved: keep_one.

A wrong trace that every rule but `correct` lets pass waits in a file until all traces were seen. Then the
preferred one of each problem without a right trace passes, marked as unsolved; the others are dropped by the
rule `correct`, as they are without this. Memory: two numbers for each problem that has such a trace.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.filter.ledger import Ledger
from pipeline.filter.selection import Selection
from pipeline.records import FILTERED, ProblemIndex, marked_unsolved

WAITING = ".unsolved.jsonl"


class Unsolved:
    """The traces that wait, in the order in which they came."""

    def __init__(self, file: IO[bytes], selection: Selection) -> None:
        self.file = file
        self.selection = selection
        self.best: dict[
            int, tuple[int, int]
        ] = {}  # a problem's position: rank and offset of its preferred trace

    def wait(self, row: bytes, position: int, sample: int, tokens: int) -> None:
        candidate = self.selection.rank(position, sample, tokens), self.file.tell()
        self.best[position] = min(candidate, self.best.get(position, candidate))
        self.file.write(row)

    def settle(
        self, path: Path, index: ProblemIndex, ledger: Ledger
    ) -> Iterator[tuple[int, int, int, bytes]]:
        """Position, sample, tokens and row of each that passes; the others go to the ledger."""
        self.file.flush()
        offset = 0
        with path.open("rb") as lines:
            for line in lines:
                row = FILTERED.decode(line)
                position = index.position(row.problem_id)
                assert position is not None, "a trace of no problem was never applied to rules"
                if self.selection.correct[position] == 0 and self.best[position][1] == offset:
                    yield position, row.sample, row.trained_tokens, marked_unsolved(line)
                else:
                    ledger.drop(line, row.rule, row.reason, row.source)
                offset += len(line)
