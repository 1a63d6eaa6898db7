"""Look up the problem and the verdict of a trace without holding either file in memory."""

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import StageError
from pipeline.records import Trace, Verdict
from pipeline.verify.table import VERSIONS

log = logging.getLogger(__name__)

MAX_WAITING_VERDICTS = 50_000  # verdicts read ahead of their traces; about 20 MB
MAX_CACHED_PROBLEMS = 2_000

# msgspec's own error comes for broken JSON and wrong types, UnicodeDecodeError (a ValueError) for bad UTF-8
UNREADABLE = (msgspec.DecodeError, ValueError)

Key = tuple[str, int]


class KeyOf(msgspec.Struct):
    """The key of a trace or verdict line; the rest of the line is skipped, not built."""

    problem_id: str
    sample: int


class IdOf(msgspec.Struct):
    id: str


def line_decoder(kind: type[Trace] | type[Verdict]) -> Callable[[bytes], Any]:
    """Reads a line as this record. A field that the record has not is a fault: filter writes lines on as they
    are, and msgspec skips what it was not asked for, bad UTF-8 included."""
    fields = [(field.name, field.type) for field in dataclasses.fields(kind)]
    return msgspec.json.Decoder(
        msgspec.defstruct(kind.__name__, fields, frozen=True, forbid_unknown_fields=True)
    ).decode


class ProblemIndex:
    """problems.jsonl by id: 16 bytes a problem in memory, the rest read when it is asked for."""

    def __init__(self, path: Path) -> None:
        import numpy

        ids, offsets, decoder, offset = [], [], msgspec.json.Decoder(IdOf), 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    ids.append(int(decoder.decode(line).id, 16))
                except UNREADABLE as error:
                    raise StageError(f"{path}:{number}: is not a problem ({error})") from None
                offsets.append(offset)
                offset += len(line)
        order = numpy.argsort(numpy.array(ids, dtype=numpy.uint64))
        self.ids = numpy.array(ids, dtype=numpy.uint64)[order]
        self._offsets = numpy.array(offsets, dtype=numpy.int64)[order]
        self._file = path.open("rb")
        self._cache: OrderedDict[int, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, problem_id: str) -> int | None:
        """The problem's place in `ids`, which are sorted; None where there is no such problem."""
        try:
            number = int(problem_id, 16)
            place = int(self.ids.searchsorted(self.ids.dtype.type(number)))
        except (ValueError, OverflowError):
            return None
        known = place < len(self.ids) and int(self.ids[place]) == number
        return place if known and problem_id == f"{number:016x}" else None

    def line(self, position: int) -> bytes:
        """The problem's line of JSON."""
        line = self._cache.get(position)
        if line is None:
            self._file.seek(int(self._offsets[position]))
            line = self._cache[position] = self._file.readline()
            if len(self._cache) > MAX_CACHED_PROBLEMS:
                self._cache.popitem(last=False)
        return line

    def close(self) -> None:
        self._file.close()


class VerdictReader:
    """verdicts.jsonl beside the traces that it is about, which stand in nearly the same order.

    Verdicts that come before their trace wait; where too many wait, or a verdict is of another version of
    its verifier, `get` gives None and the trace is verified again.
    """

    def __init__(self, path: Path) -> None:
        self._lines = self._read(path)
        self._waiting: dict[Key, bytes] = {}
        self.num_broken = 0

    def get(self, key: Key) -> bytes | None:
        if (line := self._waiting.pop(key, None)) is not None:
            return line
        while len(self._waiting) < MAX_WAITING_VERDICTS:
            found = next(self._lines, None)
            if found is None:
                return None
            if found[0] == key:
                return found[1]
            self._waiting[found[0]] = found[1]
        return None

    def _read(self, path: Path) -> Iterator[tuple[Key, bytes]]:
        if not path.is_file():
            return
        decode = line_decoder(Verdict)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    verdict = decode(line)
                except UNREADABLE as error:
                    self.num_broken += 1
                    log.warning(
                        "%s:%d: is not a verdict (%s); its trace is verified again", path, number, error
                    )
                    continue
                if VERSIONS.get(verdict.verifier) == verdict.version:
                    yield (verdict.problem_id, verdict.sample), line
