"""Read rows of JSONL and Parquet files as streams; every fault names the file and the line.

A file that a recipe names is read strictly (`read_rows`: the first broken line is a RecipeError). A file that
a stage wrote line by line is read with `json_lines`, which hands broken lines to the caller to count.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError

MAX_SHOWN = 60  # characters of a broken line that an error repeats


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a JSONL file: `number` counts from 1, `fault` says why `values` is None."""

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
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield parse_line(str(path), number, raw)


def parse_line(file: str, number: int, raw: bytes) -> Line:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        shown = raw[:MAX_SHOWN].decode("utf-8", "replace").strip()
        return Line(file, number, None, f"is not valid JSON ({error}): {shown!r}")
    if not isinstance(values, dict):
        return Line(file, number, None, f"holds {type(values).__name__}, not an object")
    return Line(file, number, values)


def read_rows(path: Path) -> Iterator[Line]:
    """The rows of a .jsonl or .parquet file. RecipeError where there is no such file or a row is broken."""
    require_file(path)
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    if path.suffix not in (".jsonl", ".json"):
        raise RecipeError(f"{path}: files of rows are .jsonl or .parquet, found '{path.suffix}'")
    for line in json_lines(path):
        if line.values is None:
            raise RecipeError(f"{line.where}: {line.fault}. Correct or remove that line, then run again")
        yield line


def require_file(path: Path) -> Path:
    """The path itself; RecipeError, with what is there instead, where it is not a file."""
    if os.path.isfile(path):  # Path.is_file raises on a name that is too long
        return path
    if not os.path.isdir(path.parent):
        raise RecipeError(f"{path}: there is no such file; there is no directory {path.parent} either")
    there = ", ".join(sorted(p.name for p in path.parent.iterdir())[:8]) or "nothing"
    raise RecipeError(f"{path}: there is no such file; {path.parent} holds: {there}")


def count_rows(path: Path) -> int:
    """How many rows a .jsonl or .parquet file has, without reading them as JSON. RecipeError as read_rows."""
    require_file(path)
    if path.suffix != ".parquet":
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise _no_parquet(path, error) from None


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line; how many there were."""
    count = 0
    with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=repr) + "\n")
            count += 1
    return count


def _parquet_rows(path: Path) -> Iterator[Line]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Line(str(path), number, values)
    except (pyarrow.ArrowException, OSError) as error:
        raise _no_parquet(path, error) from None


def _no_parquet(path: Path, error: Exception) -> RecipeError:
    return RecipeError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}")
