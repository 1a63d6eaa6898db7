"""The filter's first pass: join each trace with its problem and verdict, apply the rules, write the drops.

Writes dropped.jsonl, failed.jsonl and .passed.jsonl (the traces that passed, which selection then divides).
Memory: of a problem 16 bytes of index, a bit mask of its samples, three counts and its best traces; of a
trace nothing.
"""

import json
import logging
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, NamedTuple, Self

import msgspec
from tqdm import tqdm

from pipeline.judge import Item, Judging, Outcome, judge_all
from pipeline.lookup import UNREADABLE, KeyOf, ProblemIndex, VerdictReader
from pipeline.recipe import Select
from pipeline.records import Problem, Trace, to_json
from pipeline.selection import BestTraces, ByPosition, Passed

if TYPE_CHECKING:
    from pipeline.verify import VerifierPool

log = logging.getLogger(__name__)

CHUNK_TRACES = 256
MAX_SAMPLE = 2**31 - 1
SHOWN_FAULTS = 5
KEY = msgspec.json.Decoder(KeyOf)
PASSED = ".passed.jsonl"


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that the first pass reads, and where it writes."""

    problems: Path
    traces: list[Path]
    verdicts: Path
    out: Path
    num_traces: int | None = None


class Place(NamedTuple):
    """Where a trace stands: its line, for errors, and its key, for selection."""

    file: str
    number: int
    position: int
    problem_id: int
    sample: int


@dataclass(slots=True)
class Sifted:
    """What the first pass counted. `dropped` is keyed by (rule, reason, source)."""

    num_in: int = 0
    num_passed: int = 0
    num_verified: int = 0
    dropped: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    passed_by_source: Counter[str] = field(default_factory=Counter)


class Sifter:
    """The open files and the per-problem numbers of one first pass; a context manager."""

    def __init__(self, inputs: Inputs, select: Select, seed: int, workers: int) -> None:
        self.inputs = inputs
        self.workers = workers
        self.counts = Sifted()
        self.index = ProblemIndex(inputs.problems)
        self.best = BestTraces(len(self.index), select, seed)
        self.tries = array("I", [0]) * len(self.index)
        self.correct = array("I", [0]) * len(self.index)
        self.sources = array("H", [0]) * len(self.index)
        self.source_names: list[str] = []
        self._seen = array("Q", [0]) * len(self.index)
        self._seen_beyond: set[tuple[int, int]] = set()
        self._verdicts = VerdictReader(inputs.verdicts)
        self._places: deque[list[Place]] = deque()
        self._exits = ExitStack()
        self._pool: VerifierPool | None = None

    def __enter__(self) -> Self:
        self._dropped = self._open("dropped.jsonl")
        self._failed = self._open("failed.jsonl")
        self._passed = self._open(PASSED)
        self._exits.callback(self.index.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)

    def _open(self, name: str) -> IO[bytes]:
        return self._exits.enter_context((self.inputs.out / name).open("wb"))

    def run(self, judging: Judging) -> Sifted:
        """Sift all traces. Every line of every shard ends in exactly one of the three files."""
        with tqdm(None, "filter", self.inputs.num_traces, unit=" traces", disable=None) as bar:
            for outcomes in judge_all(self._chunks(), judging, self.workers):
                for place, outcome in zip(self._places.popleft(), outcomes, strict=True):
                    self._take(place, outcome)
                bar.update(len(outcomes))
        if (missed := sum(self.counts.failed.values())) > SHOWN_FAULTS:
            log.warning("filter: %s lines failed in all; each stands in failed.jsonl", f"{missed:,}")
        return self.counts

    def by_position(self) -> ByPosition:
        """What selection wants to know of the problems."""
        import numpy

        tries = numpy.frombuffer(self.tries, dtype=numpy.uint32)
        correct = numpy.frombuffer(self.correct, dtype=numpy.uint32)
        sources = numpy.frombuffer(self.sources, dtype=numpy.uint16)
        return ByPosition(self.index.ids, correct / numpy.maximum(tries, 1), sources, self.source_names)

    def _take(self, place: Place, outcome: Outcome) -> None:
        if outcome.fault:
            self._fail("broken_line", place.file, place.number, outcome.fault)
            return
        self.tries[place.position] += 1
        self.correct[place.position] += outcome.correct
        self.sources[place.position] = self._source_code(outcome.source)
        if outcome.reason:
            self.counts.dropped[(outcome.rule, outcome.reason, outcome.source)] += 1
            self._dropped.write(outcome.row)
            return
        passed = Passed(
            place.position,
            place.problem_id,
            place.sample,
            outcome.trained_tokens,
            self.counts.num_passed,
            self._passed.tell(),
        )
        self._passed.write(outcome.row)
        self.best.add(passed)
        self.counts.num_passed += 1
        self.counts.passed_by_source[outcome.source] += 1

    def _source_code(self, name: str) -> int:
        if name not in self.source_names:
            self.source_names.append(name)
        return self.source_names.index(name)

    def _chunks(self) -> Iterator[list[Item]]:
        """Items ready to be judged; the places of each chunk wait in `_places` for its outcomes."""
        items: list[tuple[Place, bytes, bytes | None]] = []
        for path in self.inputs.traces:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if (place := self._place(path.name, number, line)) is None:
                        continue
                    verdict = self._verdicts.get((f"{place.problem_id:016x}", place.sample))
                    items.append((place, line, verdict))
                    if len(items) == CHUNK_TRACES:
                        yield self._with_verdicts(items)
                        items = []
        if items:
            yield self._with_verdicts(items)

    def _place(self, file: str, number: int, line: bytes) -> Place | None:
        """Whose trace a line is; None for blank lines and for those that fail, which are recorded here."""
        if not line.strip():
            return None
        self.counts.num_in += 1
        try:
            key = KEY.decode(line)
        except UNREADABLE as error:
            return self._fail("broken_line", file, number, str(error))
        position = self.index.position(key.problem_id)
        if position is None:
            return self._fail(
                "no_problem", file, number, f"problem {key.problem_id} is not in problems.jsonl"
            )
        if not 0 <= key.sample <= MAX_SAMPLE:
            return self._fail("broken_line", file, number, f"sample {key.sample} is out of range")
        if self._is_repeated(position, key.sample):
            detail = f"problem {key.problem_id} sample {key.sample} stands here again"
            return self._fail("duplicate_key", file, number, detail)
        return Place(file, number, position, int(key.problem_id, 16), key.sample)

    def _is_repeated(self, position: int, sample: int) -> bool:
        """Whether this key was seen before; remembers it."""
        if sample < 64:
            bit = 1 << sample
            if self._seen[position] & bit:
                return True
            self._seen[position] |= bit
            return False
        if (position, sample) in self._seen_beyond:
            return True
        self._seen_beyond.add((position, sample))
        return False

    def _fail(self, kind: str, file: str, number: int, detail: str) -> Place | None:
        """Record a line that is no trace of this run; None, for callers that would return its place."""
        row = {"kind": kind, "file": file, "line": number, "detail": detail}
        self._failed.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self.counts.failed[kind] += 1
        if sum(self.counts.failed.values()) <= SHOWN_FAULTS:
            log.warning("%s:%d: %s: %s", file, number, kind, detail)
        return None

    def _with_verdicts(self, items: list[tuple[Place, bytes, bytes | None]]) -> list[Item]:
        """Verify what has no verdict of the verifier's current version, then hand the chunk on."""
        fresh = self._verify([(place, line) for place, line, verdict in items if verdict is None])
        self._places.append([place for place, _, _ in items])
        return [
            Item(line, verdict or fresh.get(place, b""), self.index.line(place.position))
            for place, line, verdict in items
        ]

    def _verify(self, missing: list[tuple[Place, bytes]]) -> dict[Place, bytes]:
        """Verdicts as lines of JSON. A line that is no trace gets none: judging it says what is wrong."""
        places, rows = [], []
        for place, line in missing:
            try:
                trace = msgspec.json.decode(line, type=Trace)
            except UNREADABLE:
                continue
            problem = msgspec.json.decode(self.index.line(place.position), type=Problem)
            key = (problem.id, trace.sample)
            places.append(place)
            rows.append((key, problem.verifier, problem.gold, trace.answer, problem.metadata))
        if not rows:
            return {}
        if self._pool is None:
            from pipeline.verify import VerifierPool

            self._pool = self._exits.enter_context(VerifierPool(workers=max(self.workers, 1)))
        self.counts.num_verified += len(rows)
        verdicts = (to_json(verdict).encode() for verdict in self._pool.map(rows))
        return dict(zip(places, verdicts, strict=True))
