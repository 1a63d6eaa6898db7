"""Each trace of a generate directory with its problem and a verdict that holds, as a stream.

filter and judge read generate through it. A verdict that does not hold any more, because gold, verifier or
thinking tags changed, is made anew. Memory: of a problem 24 bytes of index and a bit mask of its samples; of
a trace nothing.
"""

import logging
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec

from pipeline.context import Context
from pipeline.filter.ledger import Ledger
from pipeline.recipe.cards import Tags
from pipeline.records import (
    PROBLEM,
    UNREADABLE,
    Key,
    KeyOf,
    ProblemIndex,
    Trace,
    Verdict,
    line_decoder,
    to_json,
)
from pipeline.render import split_response
from pipeline.run.contract import Manifest
from pipeline.verify.basis import basis_of, tags_digest
from pipeline.verify.judge import LAYER as JUDGED
from pipeline.verify.table import VERSIONS

if TYPE_CHECKING:
    from pipeline.verify import VerifierPool

log = logging.getLogger(__name__)

CHUNK_TRACES = 256
MAX_SAMPLE = 2**31 - 1
MAX_WAITING_VERDICTS = 50_000  # verdicts read ahead of their traces; about 20 MB
SHOWN_FAULTS = 5
KEY = msgspec.json.Decoder(KeyOf)
TRACE = msgspec.json.Decoder(Trace)
VERDICT = msgspec.json.Decoder(Verdict)


class Item(NamedTuple):
    """A line of a shard with those of its verdict (empty where it is no trace) and its problem.

    `file` and `number` say where it stands, `position` is its problem's place in the index.
    """

    file: str
    number: int
    position: int
    sample: int
    trace: bytes
    verdict: bytes
    problem: bytes


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that the first pass reads, and how many traces they hold as far as that is known.

    `same_problems`: the verdicts were made on these very problems, so golds need not be compared again.
    `judged`: a judge's verdicts are among them, which rest on more than `basis_of` tells.
    `min_shares`: of each source with problems that have no gold answer, the share that a majority needs.
    """

    problems: Path
    traces: list[Path]
    verdicts: Path
    num_traces: int | None = None
    same_problems: bool = False
    judged: bool = False
    min_shares: dict[str, float] = field(default_factory=dict)


def shards_of(generate: Manifest) -> list[str]:
    return sorted(name for name in generate.outputs if name.startswith("traces-"))


def judge_inputs(problems: Manifest, generate: Manifest) -> dict[str, str]:
    """What a judge is asked about, for its plan, and for filter to see that it still is that."""
    return {
        "problems": problems.digest(["problems.jsonl"]),
        "generate": generate.digest([*shards_of(generate), "verdicts.jsonl"]),
    }


def inputs_of(context: Context, problems: Manifest, generate: Manifest) -> Inputs:
    """The traces and verdicts of generate."""
    directory = context.directory("generate")
    return Inputs(
        context.directory("problems") / "problems.jsonl",
        [directory / name for name in shards_of(generate)],
        directory / "verdicts.jsonl",
        generate.counts.kept,
        generate.inputs.get("problems") == problems.digest(["problems.jsonl"]),
    )


class VerdictReader:
    """verdicts.jsonl beside the traces that it is about, which stand in nearly the same order.

    Verdicts that come before their trace wait; where too many wait, or a verdict does not hold any more
    (`holds`), `get` gives an empty line and the trace is verified again.
    """

    def __init__(self, path: Path, holds: Callable[[Verdict], bool]) -> None:
        self._holds = holds
        self._lines = self._read(path)
        self._waiting: dict[Key, bytes] = {}

    def get(self, key: Key) -> bytes:
        if key in self._waiting:
            return self._waiting.pop(key)
        while len(self._waiting) < MAX_WAITING_VERDICTS:
            found, line = next(self._lines, (key, b""))
            if found == key:
                return line
            self._waiting[found] = line
        return b""

    def _read(self, path: Path) -> Iterator[tuple[Key, bytes]]:
        if not path.is_file():
            return
        decode = line_decoder(Verdict)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    verdict = decode(line)
                except UNREADABLE as error:
                    log.warning(
                        "%s:%d: is not a verdict (%s); its trace is verified again", path, number, error
                    )
                    continue
                if self._holds(verdict):
                    yield (verdict.problem_id, verdict.sample), line


class Joined:
    """The traces of `inputs`; a context manager. Lines that are no trace of this run go to `ledger`, where
    there is one."""

    def __init__(self, inputs: Inputs, tags: Tags, workers: int, ledger: Ledger | None = None) -> None:
        self.inputs = inputs
        self.tags = tags
        self.workers = workers
        self.ledger = ledger
        self.index = ProblemIndex(inputs.problems)
        self.num_verified = 0
        self._seen = array("Q", [0]) * len(self.index)
        self._seen_beyond: set[tuple[int, int]] = set()
        self._digest = tags_digest(tags)
        self._verdicts = VerdictReader(inputs.verdicts, self._holds)
        self._exits = ExitStack()
        self._exits.enter_context(closing(self.index))
        self._pool: VerifierPool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)

    def pool(self) -> "VerifierPool":
        """The verifiers, started for the first who asks."""
        if self._pool is None:
            from pipeline.verify import VerifierPool

            self._pool = self._exits.enter_context(VerifierPool(workers=self.workers))
        return self._pool

    def chunks(self) -> Iterator[list[Item]]:
        items = self._items()
        while chunk := list(islice(items, CHUNK_TRACES)):
            yield self._with_verdicts(chunk)

    def _items(self) -> Iterator[Item]:
        for path in self.inputs.traces:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip() and (item := self._item(path.name, number, line)):
                        yield item

    def _item(self, file: str, number: int, line: bytes) -> Item | None:
        """The line with what is known of its trace; None where it is no trace of this run: recorded here."""
        if self.ledger is not None:
            self.ledger.num_in += 1
        try:
            key = KEY.decode(line)
        except UNREADABLE as error:
            self.fail("broken_line", file, number, str(error))
            return None
        name, sample = key.problem_id, key.sample
        position = self.index.position(name)
        if position is None:
            self.fail("no_problem", file, number, f"problem {name} is not in problems.jsonl")
        elif not 0 <= sample <= MAX_SAMPLE:
            self.fail("broken_line", file, number, f"sample {sample} is out of range")
        elif self._is_repeated(position, sample):
            self.fail("duplicate_key", file, number, f"problem {name} sample {sample} stands here again")
        else:
            verdict = self._verdicts.get((name, sample))
            return Item(file, number, position, sample, line, verdict, self.index.line(position))
        return None

    def _is_repeated(self, position: int, sample: int) -> bool:
        """Whether this key was seen before; remembers it."""
        if sample < 64:
            bit = 1 << sample
            repeated = bool(self._seen[position] & bit)
            self._seen[position] |= bit
        else:
            repeated = (position, sample) in self._seen_beyond
            self._seen_beyond.add((position, sample))
        return repeated

    def fail(self, kind: str, file: str, number: int, detail: str) -> None:
        if self.ledger is None:
            return
        self.ledger.fail(kind, file, number, detail)
        if sum(self.ledger.failed.values()) <= SHOWN_FAULTS:
            log.warning("%s:%d: %s: %s", file, number, kind, detail)

    def _holds(self, verdict: Verdict) -> bool:
        """Whether a verdict rests on today's gold, verifier and thinking tags.

        The version of an `any` does not tell that of the verifier which it compares with: its basis does.
        """
        if VERSIONS.get(verdict.verifier) != verdict.version:
            return False
        if not verdict.basis.endswith(f"-{self._digest}"):
            return False
        if self.inputs.same_problems and verdict.verifier not in ("any", "majority"):
            return True
        if self.inputs.judged and verdict.layer == JUDGED:
            return True
        position = self.index.position(verdict.problem_id)
        if position is None:
            return False
        return verdict.basis == basis_of(PROBLEM.decode(self.index.line(position)), self._digest)

    def _with_verdicts(self, items: list[Item]) -> list[Item]:
        """Verify what has no verdict that holds. What is not a trace gets none: `apply` says why."""
        rows = {}
        for place, item in enumerate(items):
            if item.verdict:
                continue
            try:
                trace = TRACE.decode(item.trace)
            except UNREADABLE:
                continue
            problem = PROBLEM.decode(item.problem)
            key, basis = (problem.id, trace.sample), basis_of(problem, self._digest)
            answer = split_response(trace.response, self.tags).answer
            rows[place] = (key, problem.verifier, problem.gold, answer, problem.metadata, basis)
        if not rows:
            return items
        self.num_verified += len(rows)
        for place, verdict in zip(rows, self.pool().map(rows.values()), strict=True):
            items[place] = items[place]._replace(verdict=to_json(verdict).encode())
        return items
