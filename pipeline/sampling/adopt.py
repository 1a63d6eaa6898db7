"""Traces that another run paid for, or that FORCE moved aside: taken by equal key, never bought twice.

Only an index of offsets is held; a trace is read when the loop comes to its key. Nothing is written to the
directory adopted from, and a line that a kill tore there is left alone.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from pipeline.errors import StageError
from pipeline.records import Trace, Verdict, from_json
from pipeline.sampling.job import Job, request_fingerprint
from pipeline.sampling.keys import TRACE_HEAD, VERDICT_HEAD, compact
from pipeline.sampling.store import Store
from pipeline.verify import VERSIONS

log = logging.getLogger(__name__)

Key = tuple[int, int]
Read = TypeVar("Read", Trace, Verdict)


class AdoptedRun:
    """The traces in `directory` whose request is `job`'s; a source for the loop."""

    def __init__(self, directory: Path, job: Job, prefix: str = "traces") -> None:
        wanted = request_fingerprint(job).encode()
        store = Store(directory, prefix)
        self._shards = [path.open("rb") for path in store.shards()]
        self._traces: dict[Key, tuple[int, int]] = {}
        for number, file in enumerate(self._shards):
            for offset, line in _whole_lines(file):
                head = TRACE_HEAD.match(line)
                if head is not None and head[3] == wanted:
                    self._traces[compact(head[1].decode()), int(head[2])] = (number, offset)
        self._verdict_file = store.verdicts_path.open("rb") if store.verdicts_path.exists() else None
        self._verdicts: dict[Key, int] = {}
        for offset, line in _whole_lines(self._verdict_file) if self._verdict_file else ():
            head = VERDICT_HEAD.match(line)
            if head is not None:
                self._verdicts[compact(head[1].decode()), int(head[2])] = offset
        log.info("%s: %d traces of this request to adopt", directory, len(self._traces))

    def __len__(self) -> int:
        return len(self._traces)

    def take(self, problem_id: str, sample: int) -> tuple[Trace, Verdict | None] | None:
        """The trace of a key, with its verdict where the verifier is still of the same version."""
        key = (compact(problem_id), sample)
        place = self._traces.get(key)
        if place is None:
            return None
        trace = _read(Trace, self._shards[place[0]], place[1])
        if self._verdict_file is None or key not in self._verdicts:
            return trace, None
        verdict = _read(Verdict, self._verdict_file, self._verdicts[key])
        return trace, verdict if VERSIONS.get(verdict.verifier) == verdict.version else None

    def close(self) -> None:
        for file in [*self._shards, *([self._verdict_file] if self._verdict_file else [])]:
            file.close()


def _whole_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    offset = 0
    for line in file:
        if line.endswith(b"\n"):
            yield offset, line
        offset += len(line)


def _read(kind: type[Read], file: BinaryIO, offset: int) -> Read:
    file.seek(offset)
    try:
        return from_json(kind, file.readline().decode())
    except ValueError as error:
        raise StageError(
            f"{file.name}: the line at byte {offset} is no {kind.__name__.lower()} ({error}); remove that "
            "line, or run without --adopt"
        ) from None
