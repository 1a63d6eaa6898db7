"""The filter's first pass: join each trace with its problem and verdict, apply the rules, write the drops.

Writes to the ledger (dropped.jsonl, failed.jsonl) and .passed.jsonl: the traces that passed, which selection
then divides. Memory: of a problem 24 bytes of index, a bit mask of its samples, three counts and its best
traces; of a trace nothing.
"""

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
from tqdm import tqdm

from pipeline.filter.apply import Item, Outcome, RuleSet, apply_rules
from pipeline.filter.ledger import Ledger
from pipeline.filter.selection import Selection
from pipeline.recipe.schema import Select
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
from pipeline.verify.basis import basis_of, tags_digest
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


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that the first pass reads, and how many traces they hold as far as that is known.

    `same_problems`: the verdicts were made on these very problems, so golds need not be compared again.
    """

    problems: Path
    traces: list[Path]
    verdicts: Path
    num_traces: int | None = None
    same_problems: bool = False


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


class FirstPass:
    """One first pass; what it counted, and what selection goes by, is complete once `run` is done."""

    def __init__(
        self, inputs: Inputs, rule_set: RuleSet, select: Select, seed: int, workers: int, ledger: Ledger
    ) -> None:
        self.inputs = inputs
        self.rule_set = rule_set
        self.workers = workers
        self.ledger = ledger
        self.index = ProblemIndex(inputs.problems)
        self.selection = Selection(self.index.lots, select, seed)
        self.num_verified = 0
        self.passed_by_source: Counter[str] = Counter()
        self._seen = array("Q", [0]) * len(self.index)
        self._seen_beyond: set[tuple[int, int]] = set()
        self._tags = tags_digest(rule_set.form.teacher)
        self._verdicts = VerdictReader(inputs.verdicts, self._holds)
        self._exits = ExitStack()
        self._pool: VerifierPool | None = None

    def run(self, passed: Path) -> None:
        """Apply the rules to all traces. Every line of every shard is dropped, fails or goes to `passed`."""
        with (
            self._exits,
            closing(self.index),
            passed.open("wb") as file,
            tqdm(None, "filter", self.inputs.num_traces, unit=" traces", disable=None) as bar,
        ):
            for item, outcome in apply_rules(self._chunks(), self.rule_set, self.workers):
                self._take(item, outcome, file)
                bar.update()
        if (missed := sum(self.ledger.failed.values())) > SHOWN_FAULTS:
            log.warning("filter: %s lines failed in all; each stands in failed.jsonl", f"{missed:,}")

    def _take(self, item: Item, outcome: Outcome, passed: IO[bytes]) -> None:
        if outcome.fault:
            self._fail("broken_line", item.file, item.number, outcome.fault)
            return
        self.selection.saw(item.position, outcome.source, outcome.correct)
        if outcome.reason:
            self.ledger.drop(outcome.row, outcome.rule, outcome.reason, outcome.source)
            return
        self.selection.add(item.position, item.sample, outcome.trained_tokens, passed.tell())
        self.passed_by_source[outcome.source] += 1
        passed.write(outcome.row)

    def _chunks(self) -> Iterator[list[Item]]:
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
        self.ledger.num_in += 1
        try:
            key = KEY.decode(line)
        except UNREADABLE as error:
            self._fail("broken_line", file, number, str(error))
            return None
        name, sample = key.problem_id, key.sample
        position = self.index.position(name)
        if position is None:
            self._fail("no_problem", file, number, f"problem {name} is not in problems.jsonl")
        elif not 0 <= sample <= MAX_SAMPLE:
            self._fail("broken_line", file, number, f"sample {sample} is out of range")
        elif self._is_repeated(position, sample):
            self._fail("duplicate_key", file, number, f"problem {name} sample {sample} stands here again")
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

    def _fail(self, kind: str, file: str, number: int, detail: str) -> None:
        self.ledger.fail(kind, file, number, detail)
        if sum(self.ledger.failed.values()) <= SHOWN_FAULTS:
            log.warning("%s:%d: %s: %s", file, number, kind, detail)

    def _holds(self, verdict: Verdict) -> bool:
        """Whether a verdict rests on today's gold, verifier and thinking tags.

        The version of an `any` does not tell that of the verifier which it compares with: its basis does.
        """
        if VERSIONS.get(verdict.verifier) != verdict.version or not verdict.basis.endswith(f"-{self._tags}"):
            return False
        if self.inputs.same_problems and verdict.verifier != "any":
            return True
        position = self.index.position(verdict.problem_id)
        if position is None:
            return False
        return verdict.basis == basis_of(PROBLEM.decode(self.index.line(position)), self._tags)

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
            key, basis = (problem.id, trace.sample), basis_of(problem, self._tags)
            answer = split_response(trace.response, self.rule_set.form.teacher).answer
            rows[place] = (key, problem.verifier, problem.gold, answer, problem.metadata, basis)
        if not rows:
            return items
        if self._pool is None:
            from pipeline.verify import VerifierPool

            self._pool = self._exits.enter_context(VerifierPool(workers=self.workers))
        self.num_verified += len(rows)
        for place, verdict in zip(rows, self._pool.map(rows.values()), strict=True):
            items[place] = items[place]._replace(verdict=to_json(verdict).encode())
        return items
