"""The filter's first pass: apply the rules to each trace with its problem and verdict, write the drops.

Writes to the ledger (dropped.jsonl, failed.jsonl) and .passed.jsonl: the traces that passed, which selection
then divides. Memory: of a problem 24 bytes of index, a bit mask of its samples, three counts and its best
traces; of a trace nothing. Where problems have no gold answer, their answers are read first (pipeline.filter.
majorities).
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tqdm import tqdm

from pipeline.filter.apply import Outcome, RuleSet, apply_rules
from pipeline.filter.joins import SHOWN_FAULTS, Inputs, Item, Joined
from pipeline.filter.ledger import Ledger
from pipeline.filter.majorities import Majorities, find_majorities
from pipeline.filter.selection import Selection
from pipeline.filter.unsolved import WAITING, Unsolved
from pipeline.filter.weighing import Weigh
from pipeline.recipe.schema import Select
from pipeline.records import FILTERED

log = logging.getLogger(__name__)


class FirstPass:
    """One first pass; what it counted, and what selection goes by, is complete once `run` is done."""

    def __init__(
        self,
        inputs: Inputs,
        rule_set: RuleSet,
        select: Select,
        seed: int,
        workers: int,
        ledger: Ledger,
        weigh: Weigh | None = None,
    ) -> None:
        self.inputs = inputs
        self.rule_set = rule_set
        self.workers = workers
        self.ledger = ledger
        self.weigh = weigh
        self.joined = Joined(inputs, rule_set.form.teacher, workers, ledger)
        self.selection = Selection(self.joined.index.lots, select, seed)
        self.majorities = Majorities()
        self.passed_by_source: Counter[str] = Counter()

    @property
    def num_verified(self) -> int:
        return self.joined.num_verified

    def run(self, passed: Path) -> None:
        """Apply the rules to all traces. Every line of every shard is dropped, fails or goes to `passed`."""
        if self.inputs.min_shares:
            self.majorities = find_majorities(self.inputs, self.rule_set.form.teacher, self.workers)
        waiting = passed.with_name(WAITING)
        with (
            self.joined,
            passed.open("wb") as file,
            waiting.open("wb") as spares,
            tqdm(None, "filter", self.inputs.num_traces, unit=" traces", disable=None) as bar,
        ):
            unsolved = Unsolved(spares, self.selection, self.weigh)
            for item, outcome in apply_rules(self._chunks(), self.rule_set, self.workers):
                self._take(item, outcome, file, unsolved)
                bar.update()
            for position, sample, tokens, row in unsolved.settle(waiting, self.joined.index, self.ledger):
                self._pass(position, sample, tokens, row, FILTERED.decode(row).source, file)
        waiting.unlink()
        if (missed := sum(self.ledger.failed.values())) > SHOWN_FAULTS:
            log.warning("filter: %s lines failed in all; each stands in failed.jsonl", f"{missed:,}")

    def _chunks(self) -> Iterator[list[Item]]:
        for chunk in self.joined.chunks():
            yield [self.majorities.settled(item) for item in chunk]

    def _take(self, item: Item, outcome: Outcome, passed: IO[bytes], unsolved: Unsolved) -> None:
        if outcome.fault:
            self.joined.fail("broken_line", item.file, item.number, outcome.fault)
            return
        self.selection.saw(item.position, outcome.source, outcome.correct)
        if outcome.spare:
            unsolved.wait(outcome.row, item.position, item.sample, outcome.trained_tokens)
            return
        if outcome.reason:
            self.ledger.drop(outcome.row, outcome.rule, outcome.reason, outcome.source)
            return
        self._pass(item.position, item.sample, outcome.trained_tokens, outcome.row, outcome.source, passed)

    def _pass(
        self, position: int, sample: int, tokens: int, row: bytes, source: str, passed: IO[bytes]
    ) -> None:
        if self.weigh is None:  # else once a model has weighed it
            self.selection.add(position, sample, tokens, passed.tell())
        self.passed_by_source[source] += 1
        passed.write(row)
