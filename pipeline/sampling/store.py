"""The trace store: append-only shards of finished traces, with verdicts and failures beside them.

    <prefix>-00000.jsonl, ...   one trace a line, flushed the moment it finishes, before it is verified
    verdicts.jsonl              one verdict a line (<stem>.verdicts.jsonl for a prefix <stem>.samples); a
                                trace that was verified again has two, of which the last one counts
    failures.jsonl              one request that gave no trace a line, by kind

Opening a store repairs a line that a kill tore, refuses rows of another request, and holds of all traces
nothing but four bits each.
"""

import json
import logging
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import StageError, no_descriptor
from pipeline.records import STOP, Trace, Verdict, from_json, read_lines, to_json
from pipeline.sampling.keys import CUT, DONE, Keys, Place, scan_traces, scan_verdicts, verdict_bits

log = logging.getLogger(__name__)

MAX_SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that gave no trace. `kind` is counted in the manifest, `detail` is for a person."""

    problem_id: str
    sample: int
    request: str
    kind: str
    detail: str


class Appender:
    """One file that grows by whole lines; every line goes to the system at once, so a kill loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StageError(f"{path}: cannot be opened: {no_descriptor(error) or error.strerror}") from None
        self.size = os.fstat(self._descriptor).st_size

    def append(self, line: str) -> None:
        """StageError where the system does not take the whole line; none of it stays then."""
        data = memoryview(line.encode() + b"\n")
        size = self.size + len(data)
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            os.ftruncate(self._descriptor, self.size)
            raise StageError(
                f"{self.path}: cannot be written ({error.strerror}). What was finished before is saved: make "
                "room there, and run the same command again"
            ) from None
        self.size = size

    def close(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)


class Store:
    """The traces of one job in `directory`. `load` first, then append; a context manager that closes."""

    def __init__(
        self, directory: Path, prefix: str = "traces", max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        self.directory = directory
        self.prefix = prefix
        self._max_shard_bytes = max_shard_bytes
        stem = prefix.removesuffix("samples") if prefix.endswith(".samples") else ""
        self.verdicts_path = directory / f"{stem}verdicts.jsonl"
        self.failures_path = directory / f"{stem}failures.jsonl"
        self.keys = Keys()
        self.request = ""  # of all its traces, where they are of one; load() says which
        self._unverified: dict[tuple[str, int], Place] = {}
        self._number = 0
        self._shard: Appender | None = None
        self._verdicts: Appender | None = None
        self._failures: Appender | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def load(self, request: str | Collection[str], tags: str) -> None:
        """Repair and read what is there; `tags` is the digest of the tags that responses are split by.

        StageError where a row is of another request or a key is double.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        shards = self.shards()
        for path in [*shards, self.verdicts_path, self.failures_path]:
            repair(path)
        self.keys = Keys()
        requests = {request} if isinstance(request, str) else set(request)
        self.request = min(requests) if len(requests) == 1 else ""
        scan_verdicts(self.verdicts_path, tags, self.keys)
        self._unverified = {
            (problem_id, sample): place
            for path in shards
            for problem_id, sample, place in scan_traces(path, requests, self.keys)
        }
        self._number = max(len(shards) - 1, 0)
        # a file with another name is a shard's that a merge linked: it is not appended to
        linked = bool(shards) and shards[-1].stat().st_nlink > 1
        self._shard = None if linked else Appender(self.shard_path(self._number))
        self._verdicts = Appender(self.verdicts_path)
        self._failures = Appender(self.failures_path)

    def add_trace(self, trace: Trace) -> None:
        """Append a finished trace; it survives any kill from here on."""
        self.keys.num_traces += 1
        self.keys.count(trace.prompt_tokens, trace.output_tokens)
        assert self._verdicts is not None, "load() opens the store"
        if self._shard is None or self._shard.size >= self._max_shard_bytes:
            if self._shard is not None:
                self._shard.close()
            self._number += 1
            self._shard = Appender(self.shard_path(self._number))
        self._shard.append(to_json(trace))
        self.keys.add(trace.problem_id, trace.sample, DONE if trace.finish_reason == STOP else DONE | CUT)

    def add_verdict(self, verdict: Verdict) -> None:
        assert self._verdicts is not None, "load() opens the store"
        self._verdicts.append(to_json(verdict))
        self.keys.add(verdict.problem_id, verdict.sample, verdict_bits(verdict.status))

    def add_failure(self, failure: Failure) -> None:
        assert self._failures is not None, "load() opens the store"
        self._failures.append(json.dumps(asdict(failure), ensure_ascii=False))

    def unverified_trace(self, problem_id: str, sample: int) -> Trace:
        """A trace that had no verdict when the store was loaded. KeyError for any other."""
        return read_place(self._unverified.pop((problem_id, sample)))

    def close(self) -> None:
        for file in (self._shard, self._verdicts, self._failures):
            if file is not None:
                file.close()
        self._shard = self._verdicts = self._failures = None

    def shards(self) -> list[Path]:
        """The shard files in order of their numbers."""
        pattern = re.compile(re.escape(self.prefix) + r"-(\d{5,})\.jsonl")
        held = self.directory.iterdir() if self.directory.is_dir() else ()
        found = [path for path in held if pattern.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem.rpartition("-")[2]))

    def traces(self) -> Iterator[Trace]:
        """All traces, streamed in the order in which they finished."""
        for path in self.shards():
            yield from read_lines(Trace, path)

    def verdicts(self) -> Iterator[Verdict]:
        """All verdicts, streamed in the order in which they were reached; the last one of a key counts."""
        if self.verdicts_path.exists():
            yield from read_lines(Verdict, self.verdicts_path)

    def outputs(self) -> dict[str, int]:
        """Rows of each file, as StageRun.finish wants them."""
        paths = [*self.shards(), self.verdicts_path, self.failures_path]
        return {path.name: _count_lines(path) for path in paths if path.exists()}

    def shard_path(self, number: int) -> Path:
        return self.directory / f"{self.prefix}-{number:05d}.jsonl"


def repair(path: Path) -> int:
    """Cut a last line that a kill left without its end; how many bytes that were."""
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return 0
        keep = _last_newline(file, end) + 1
        file.truncate(keep)
    log.warning(
        "%s: the last line was torn by a kill; cut %d bytes, what it said is done again", path, end - keep
    )
    return end - keep


def _last_newline(file: Any, end: int) -> int:
    """Offset of the last newline before `end`, -1 where there is none."""
    block = 1 << 16
    while end > 0:
        start = max(end - block, 0)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found
        end = start
    return -1


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def read_place(place: Place) -> Trace:
    """The trace at a place of a shard."""
    with place.path.open("rb") as file:
        file.seek(place.offset)
        line = file.readline().decode()
    try:
        return from_json(Trace, line)
    except ValueError as error:
        raise StageError(f"{place.path}: the line at byte {place.offset} is not a trace: {error}") from None
