"""Lines of JSON, one object a line: the form in which stages write rows, and most people keep theirs."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MAX_SHOWN = 60  # characters of a broken line that an error repeats


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a file: `number` counts from 1, `fault` says why `values` is None."""

    file: str
    number: int
    values: dict[str, Any] | None
    fault: str = ""

    @property
    def where(self) -> str:
        return f"{self.file}:{self.number}"


def json_lines(path: Path) -> Iterator[Line]:
    """All lines that are not blank. Broken JSON, bad UTF-8 and anything but an object come as faults."""
    with path.open("rb") as file:
        yield from lines_in(str(path), file)


def lines_in(name: str, file: IO[bytes] | Iterable[bytes]) -> Iterator[Line]:
    for number, raw in enumerate(file, 1):
        if raw.strip():
            yield parse_line(name, number, raw)


def parse_line(file: str, number: int, raw: bytes) -> Line:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        shown = raw[:MAX_SHOWN].decode("utf-8", "replace").strip()
        return Line(file, number, None, f"is not valid JSON ({error}): {shown!r}")
    if not isinstance(values, dict):
        return Line(file, number, None, f"holds {type(values).__name__}, not an object")
    return Line(file, number, values)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line; how many there were."""
    count = 0
    with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=repr) + "\n")
            count += 1
    return count
