"""The problems of a stage that is under way, on disk: in memory 9 bytes of each, whatever their number.

Every step reads those that live, in order, and drops some of them by their position. A line of the file is
that of problems.jsonl, so what lives at the end is copied. sqlite and DuckDB would hold the same and more;
positions in one file need neither keys nor queries.
"""

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.records import Problem, from_json, to_json


class Held:
    """Problems by position, from 0 in the order in which they were appended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._read = path.open("rb")
        self._offsets = array("Q")
        self._alive = bytearray()
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._read.close()

    def append(self, problem: Problem) -> None:
        line = f"{to_json(problem)}\n".encode("utf-8", "surrogatepass")
        self._offsets.append(self._end)
        self._alive.append(1)
        self._file.write(line)
        self._end += len(line)

    def __getitem__(self, position: int) -> Problem:
        """The problem, whether it lives or not."""
        self._file.flush()
        self._read.seek(self._offsets[position])
        return from_json(Problem, self._read.readline())

    def drop(self, position: int) -> None:
        self._alive[position] = 0

    @property
    def num_living(self) -> int:
        return self._alive.count(1)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Position and line of those that live, in order; a position may be dropped on the way."""
        self._file.flush()
        with self._path.open("rb") as file:
            for position, line in enumerate(file):
                if self._alive[position]:
                    yield position, line

    def living(self) -> Iterator[tuple[int, Problem]]:
        for position, line in self.lines():
            yield position, from_json(Problem, line)


class Drops:
    """dropped.jsonl, written as the drops come, and what the manifest says of them."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", errors="surrogatepass")
        self.total = 0
        self.reasons: Counter[str] = Counter()
        self.by_source: Counter[tuple[str, str]] = Counter()
        self.rules: Counter[str] = Counter()
        self.details: dict[str, str] = {}  # reason -> the first detail of it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        """A row with `reason` and `source`; what JSON has no form for is written as Python shows it."""
        self._file.write(json.dumps(row, ensure_ascii=False, default=repr) + "\n")
        self.total += 1
        self.reasons[row["reason"]] += 1
        self.by_source[row["source"], row["reason"]] += 1
        if row["reason"] == "contaminated":
            self.rules[row["rule"]] += 1
        if row.get("detail"):
            self.details.setdefault(row["reason"], row["detail"])
