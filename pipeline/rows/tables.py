"""The rows of files of every kind, one after the other; every fault names the file and the row.

JSON, as lines or as one array, is read a row at a time: `datasets` and pyarrow find one type for a whole
column, so that a gold is a number in one row and text in the next no longer, and a key that a row lacks is
null. CSV is read by Python's csv, strictly: pyarrow takes what follows a quote that nobody closes for one
cell, to the end of the file, and names no line. Its cells are text: 007 and 0.50 stay what they are. Parquet,
Arrow and what `datasets` saved to disk are read by pyarrow, a batch at a time.

Compressed JSON and CSV are streams too. Only an array and a compressed Parquet file are held whole.
"""

import codecs
import csv
import io
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from pipeline.errors import RecipeError, in_one_line
from pipeline.rows.files import files_of, kind_of, require_file
from pipeline.rows.lines import Line, lines_in, parse_line

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1024
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_rows(paths: Path | Sequence[str]) -> Iterator[Line]:
    """The rows of all files that the paths name. RecipeError where there is none or a row is broken."""
    for line in table_lines(paths):
        if line.values is None:
            raise RecipeError(f"{line.where}: {line.fault}. Correct or remove that line, then run again")
        yield line


def table_lines(paths: Path | Sequence[str]) -> Iterator[Line]:
    """As read_rows; a row of JSON that is broken comes as a fault."""
    for file in [str(paths)] if isinstance(paths, Path) else files_of(paths):
        require_file(Path(file))
        kind, compression = kind_of(file)
        yield from READERS[kind](file, compression)


def count_rows(paths: Path | Sequence[str]) -> int:
    """How many rows the files have; of lines of JSON and of Parquet without reading them. RecipeError as
    read_rows."""
    total = 0
    for file in [str(paths)] if isinstance(paths, Path) else files_of(paths):
        require_file(Path(file))
        kind, compression = kind_of(file)
        if kind == "parquet" and not compression:
            total += _parquet_size(file)
        elif kind == "json" and not _is_array(file, compression):
            with closing(_opened(file, compression)) as stream:
                total += sum(1 for line in _text_lines(stream) if line.strip())
        else:
            total += sum(1 for _ in READERS[kind](file, compression))
    return total


def _opened(file: str, compression: str) -> IO[bytes]:
    if not compression:
        return open(file, "rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(file, compression=compression))


def _fault(file: str, what: str, error: Exception) -> RecipeError:
    return RecipeError(f"{file}: cannot be read as {what}: {in_one_line(error)}")


def _text_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines as UTF-8 without a mark in front, from UTF-8 or, where such a mark says so, UTF-16."""
    head = stream.peek(4)[:4]  # type: ignore[attr-defined]
    if head[:2] in UTF16:
        for line in io.TextIOWrapper(stream, encoding="utf-16", newline="\n"):
            yield line.encode("utf-8", "surrogatepass")
        return
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    yield from stream


def _json_rows(file: str, compression: str) -> Iterator[Line]:
    try:
        with closing(_opened(file, compression)) as stream:
            lines, blank = _text_lines(stream), []
            for first in lines:
                if first.strip():
                    break
                blank.append(first)
            else:
                return
            lines = itertools.chain(blank, [first], lines)
            if first.lstrip()[:1] == b"[":
                yield from _array(file, b"".join(lines))
            elif first.strip() == b"{":
                yield from _array_within(file, b"".join(lines))
            else:
                yield from lines_in(file, lines)
    except (OSError, UnicodeError, EOFError) as error:
        raise _fault(file, "JSON", error) from None


def _array(file: str, text: bytes) -> Iterator[Line]:
    """The elements of one array; only the text is held whole."""
    try:
        elements = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        if (held := _as_python_writes(text)) is not None:
            yield from (
                parse_line(file, place, json.dumps(one).encode()) for place, one in enumerate(held, 1)
            )
            return
        first = parse_line(file, 1, text.lstrip().split(b"\n", 1)[0])
        if first.fault.startswith("holds"):  # lines of JSON, whose first one is a list
            yield from lines_in(file, io.BytesIO(text))
            return
        raise _fault(file, "an array of JSON", error) from None
    for number, element in enumerate(elements, 1):
        yield parse_line(file, number, bytes(element))


def _as_python_writes(text: bytes) -> Any:
    """The list or object in a text with NaN or Infinity, which are no JSON but what json.dump writes; None
    where it is not even that."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _array_within(file: str, text: bytes) -> Iterator[Line]:
    """An object over several lines is no row a line; where it holds one list, that has the rows."""
    held: dict[str, Any]
    try:
        held = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        python = _as_python_writes(text)
        if not isinstance(python, dict):
            raise RecipeError(
                f"{file}: is neither one object a line nor an array of objects ({error}). Of objects that "
                f"are written over several lines `jq -c . {file}` makes lines"
            ) from None
        held = {key: json.dumps(value).encode() for key, value in python.items()}
    lists = [bytes(value) for value in held.values() if bytes(value)[:1] == b"["]
    if len(lists) != 1:
        raise RecipeError(
            f"{file}: is one object with the keys {', '.join(held) or 'none'}, not rows: write one object a "
            "line, or an array of objects"
        )
    yield from _array(file, lists[0])


def _is_array(file: str, compression: str) -> bool:
    try:
        with closing(_opened(file, compression)) as stream:
            first = next((line for line in _text_lines(stream) if line.strip()), b"")
    except (OSError, UnicodeError, EOFError) as error:
        raise _fault(file, "JSON", error) from None
    return first.lstrip()[:1] == b"[" or first.strip() == b"{"


def _csv_rows(file: str, compression: str) -> Iterator[Line]:
    csv.field_size_limit(sys.maxsize)  # a trace is longer than the 131,072 characters of the default
    try:
        with closing(_opened(file, compression)) as stream:
            utf16 = stream.peek(2)[:2] in UTF16  # type: ignore[attr-defined]
            text = io.TextIOWrapper(stream, encoding="utf-16" if utf16 else "utf-8-sig", newline="")
            first = text.readline()
            table = csv.reader(itertools.chain([first], text), delimiter=_separator(file, first), strict=True)
            names = next(table, [])
            _check_header(file, names)
            yield from _cells(file, names, table)
    except UnicodeError as error:
        raise RecipeError(
            f"{file}: is not UTF-8 ({error}); save it as UTF-8, for example with "
            f"`iconv -f WINDOWS-1252 -t UTF-8 {file}`"
        ) from None
    except csv.Error as error:
        raise RecipeError(f"{file}: cannot be read as CSV: {error}") from None
    except (OSError, EOFError) as error:
        raise _fault(file, "CSV", error) from None


def _separator(file: str, header: str) -> str:
    """Tabs in a .tsv; else the one of comma, semicolon and tab that the header has most of."""
    if ".tsv" in file.lower():
        return "\t"
    return max(",;\t", key=header.count)


def _check_header(file: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"{file}: two columns are called '{name}'; rename one in the first line")


def _cells(file: str, names: list[str], table: Any) -> Iterator[Line]:
    while True:
        before = table.line_num
        try:
            cells = next(table, None)
        except csv.Error as error:
            raise RecipeError(
                f"{file}:{before + 1}: cannot be read as CSV: {error}. A quote that opens a cell must close "
                "it, and one inside of it is doubled"
            ) from None
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) != len(names):
            raise RecipeError(
                f"{file}:{before + 1}: has {len(cells)} cells, the first line names {len(names)} columns "
                f"({', '.join(names)}). A cell with the separator in it needs quotes around it"
            )
        yield Line(file, before + 1, dict(zip(names, cells, strict=True)))


def _parquet_size(file: str) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise _fault(file, "Parquet", error) from None


def _parquet_rows(file: str, compression: str) -> Iterator[Line]:
    import pyarrow
    import pyarrow.parquet

    try:
        held = _held(file, compression) if compression else file
        with pyarrow.parquet.ParquetFile(held) as table:
            yield from _batches(file, table.iter_batches(batch_size=BATCH_ROWS))
    except (pyarrow.ArrowException, OSError) as error:
        raise _fault(file, "Parquet", error) from None


def _arrow_rows(file: str, compression: str) -> Iterator[Line]:
    """The stream that `datasets` writes, or a file of Feather."""
    import pyarrow

    try:
        held = _held(file, compression) if compression else pyarrow.memory_map(file)
        try:
            table = pyarrow.ipc.open_file(held)
            batches = (table.get_batch(place) for place in range(table.num_record_batches))
        except pyarrow.ArrowInvalid:
            held.seek(0)
            batches = iter(pyarrow.ipc.open_stream(held))
        yield from _batches(file, batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise _fault(file, "Arrow", error) from None


def _held(file: str, compression: str) -> "pyarrow.BufferReader":
    import pyarrow

    with pyarrow.input_stream(file, compression=compression) as stream:
        return pyarrow.BufferReader(stream.read())


def _batches(file: str, batches: "Iterator[pyarrow.RecordBatch]") -> Iterator[Line]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for values in batch.slice(start, BATCH_ROWS).to_pylist():
                number += 1
                yield Line(file, number, values)


READERS = {"json": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows, "arrow": _arrow_rows}
