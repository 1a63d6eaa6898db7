"""Traces that another run paid for, or that FORCE moved aside: taken by equal key, never bought twice.

Only an index of offsets is held; a trace is read when the loop comes to its key. Nothing is written to the
directory adopted from, and a line that a kill tore there is left alone.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from pipeline.errors import StageError
from pipeline.records import Problem, Trace, Verdict, from_json, trace_key, verdict_row
from pipeline.run.contract import check_outputs
from pipeline.sampling.job import Job, requests_of
from pipeline.sampling.keys import compact
from pipeline.sampling.store import Store
from pipeline.verify.basis import basis_of, tags_digest

log = logging.getLogger(__name__)

Read = TypeVar("Read", Trace, Verdict)


class AdoptedRun:
    """The traces in `directory` whose request is `job`'s; a source for the loop."""

    def __init__(self, directory: Path, job: Job, prefix: str = "traces") -> None:
        self._requests = requests_of(job)
        wanted = set(self._requests.values())
        store = Store(directory, prefix)
        self._keep_tokens, self._top = job.keep_tokens, job.top_logprobs
        self._tags = tags_digest(job.model.tags)
        self._shards = [path.open("rb") for path in store.shards()]
        self._traces: dict[tuple[int, int], tuple[int, int]] = {}
        for number, file in enumerate(self._shards):
            for offset, line in _whole_lines(file):
                key = trace_key(line)
                if key is not None and key[2] in wanted:
                    self._traces[compact(key[0]), key[1]] = (number, offset)
        self._verdict_file = store.verdicts_path.open("rb") if store.verdicts_path.exists() else None
        self._verdicts: dict[tuple[int, int], int] = {}
        for offset, line in _whole_lines(self._verdict_file) if self._verdict_file else ():
            row = verdict_row(line)
            if row is not None and row.basis.endswith(self._tags):
                self._verdicts[compact(row.problem_id), row.sample] = offset
        log.info("%s: %d traces of this request to adopt", directory, len(self._traces))

    def __len__(self) -> int:
        return len(self._traces)

    def take(self, problem: Problem, sample: int) -> tuple[Trace, Verdict | None] | None:
        """The trace of a key, with its verdict where that still rests on the same gold, verifier and tags."""
        key = (compact(problem.id), sample)
        place = self._traces.get(key)
        if place is None:
            return None
        trace = _read(Trace, self._shards[place[0]], place[1])
        if trace.request != self._requests.get(problem.source, self._requests[""]):
            return None  # its source was asked with another prompt
        if self._keep_tokens and (trace.tokens is None or trace.tokens.num_top < self._top):
            return None
        if self._verdict_file is None or key not in self._verdicts:
            return trace, None
        verdict = _read(Verdict, self._verdict_file, self._verdicts[key])
        return trace, verdict if verdict.basis == basis_of(problem, self._tags) else None

    def close(self) -> None:
        for file in [*self._shards, *([self._verdict_file] if self._verdict_file else [])]:
            file.close()


def adopted(directories: Iterable[Path], job: Job, prefix: str = "traces") -> list[AdoptedRun]:
    """A source for each directory that holds traces of `prefix`; close each when done.

    Samples that were changed after their stage finished are left where they are.
    """
    found = []
    for path in directories:
        store = Store(path, prefix)
        try:
            check_outputs(path, [file.name for file in (*store.shards(), store.verdicts_path)])
        except StageError as error:
            log.warning("nothing is adopted from %s: %s", path, error)
            continue
        if store.shards():
            found.append(AdoptedRun(path, job, prefix))
    return found


def _whole_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    offset = 0
    for line in file:
        if line.endswith(b"\n"):
            yield offset, line
        offset += len(line)


def _read(kind: type[Read], file: BinaryIO, offset: int) -> Read:
    file.seek(offset)
    try:
        return from_json(kind, file.readline())
    except ValueError as error:
        raise StageError(
            f"{file.name}: the line at byte {offset} is not a {kind.__name__.lower()} ({error}); remove that "
            "line; what it held is made again"
        ) from None
