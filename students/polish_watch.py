"""What a polishing run knows of itself: the figures of its rounds, the best weights, and when to stop.

Writes round.json of every round, metrics.jsonl and a progress line; keeps the weights of the best evaluation
under steps/. All of it is on the disk before the round's checkpoint is, so a resumed run knows what the
killed one knew.
"""

import logging
import math
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from pipeline.errors import StageError
from pipeline.flags import TrainFlags
from pipeline.recipe.schema import Polish
from students.progress import LOG_SECONDS
from students.rounds import BEGIN_ANEW, ROUNDS, SECONDS, Asker, Response, Row, digest_of, read_rows, write_row
from students.scoring import Scorer
from students.train import METRICS, STEPS

log = logging.getLogger(__name__)

PATIENCE = 3  # evaluations without a better one
MOST_CUT = 0.9  # of a round's responses at max_tokens, where the first had less than half as many
LONGEST, SHORTEST = 2.0, 0.5  # mean length of a round over that of the first, beyond which it has collapsed


@dataclass(frozen=True, slots=True)
class Job:
    """One polishing: what the recipe says, how it runs, and the stage's directory."""

    name: str
    recipe: Polish
    seed: int
    flags: TrainFlags
    device: str
    directory: Path

    @property
    def steps(self) -> Path:
        return self.directory / STEPS

    @property
    def rounds(self) -> Path:
        return self.directory / ROUNDS

    @property
    def updates(self) -> int:
        """Optimizer steps a round."""
        return self.recipe.problems_per_round * self.recipe.samples // self.recipe.batch_size


class Watch(TrainerCallback):
    """Begins rounds and ends them. `rows` are the figures of the rounds so far, by number."""

    def __init__(self, job: Job, asker: Asker, scorer: Scorer | None) -> None:
        self._job = job
        self._asker = asker
        self._scorer = scorer
        self.rows: dict[int, Row] = {}
        self._before: dict[int, Row] = {}  # what earlier processes took for rounds that are done again
        self.stopped = ""
        self._marked, self._apart = (
            0.0,
            0.0,
        )  # until when all is accounted for, and what since was not training
        self._bar: tqdm[Any] | None = None
        self._begun = (0.0, 0)  # when, and after how many rounds
        self._said = 0.0

    def restore(self, done: int) -> None:
        """Take up the figures of the `done` rounds that are in the last checkpoint, and the evaluation
        after. Of the rounds that are done again their seconds are kept: they were spent."""
        rows = {row.round: row for row in read_rows(self._job.rounds)}
        self.rows = {number: row for number, row in rows.items() if number < done}
        self._before = {number: row for number, row in rows.items() if number >= done}
        if done in rows and rows[done].held_out is not None:  # the rest is of updates that are done again
            row = self._row(done)
            row.held_out, row.held_out_tokens = rows[done].held_out, rows[done].held_out_tokens
        self._decide(done)

    def check_weights(self, done: int) -> None:
        """StageError where the best weights of the evaluations so far, or the last ones, are gone."""
        kept = self._evaluations() or done == self._job.recipe.rounds
        if kept and not self.best_weights.exists():
            raise StageError(f"{self.best_weights}: the best weights so far are not there. {BEGIN_ANEW}")

    def begin(self, number: int, model: torch.nn.Module) -> tuple[list[Response], list[list[float]]]:
        """The responses of a round by the student as it is, and the teacher's scores where it scores
        apart."""
        row, recipe = self._row(number), self._job.recipe
        with self._taking(row, "sampling_seconds"):
            weights = digest_of(model, self._asker.model)
            responses = self._asker.round(number, weights, recipe.problems_per_round, recipe.samples)
        row.prompt_tokens = sum(len(response.prompt) for response in responses)
        row.sampled_tokens = row.scored_tokens = sum(len(response.ids) for response in responses)
        row.mean_length = row.sampled_tokens / len(responses)
        row.cut_share = sum(response.cut for response in responses) / len(responses)
        row.pass_rate = sum(response.correct for response in responses) / len(responses)
        if self._scorer is None:
            return responses, []
        with self._taking(row, "scoring_seconds"):
            scores = self._scorer(number, responses)
        return responses, scores

    @contextmanager
    def _taking(self, row: Row, name: str) -> Iterator[None]:
        """Add what the block takes to a row's seconds, and write it: whatever ends the round then or later,
        the next process goes on from there."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._apart += (seconds := time.monotonic() - started)
            setattr(row, name, getattr(row, name) + seconds)
            write_row(self._job.rounds, row)

    def scored(self, number: int, seconds: float) -> None:
        """Take note of what the teacher took whose weights are here."""
        self._row(number).scoring_seconds += seconds
        self._apart += seconds

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kept: Any) -> None:
        done = state.global_step // self._job.updates
        self._marked = self._said = time.monotonic()
        self._begun = (self._marked, done)
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._job.recipe.rounds, initial=done, desc="polish", unit="round")
        if self._is_due(done) and self._row(done).held_out is None:
            self._evaluate(done, kept["model"])

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kept: Any) -> None:
        done, rest = divmod(state.global_step, self._job.updates)
        if rest:
            return
        if self._is_due(done):
            self._evaluate(done, kept["model"])
        self._decide(done)
        if self.stopped:
            control.should_training_stop = control.should_save = True
        if not self._job.recipe.held_out and done == self._job.recipe.rounds:
            self._keep(done, kept["model"])

    def _decide(self, done: int) -> None:
        """Whether to stop after `done` rounds. StageError where no weights from before a collapse exist."""
        self.stopped = self._why_stop(done)
        if self.stopped and not self._job.recipe.held_out:
            raise StageError(
                f"polish: after {done} rounds {self.stopped}: the student collapses, and with "
                "polish.held_out: 0 no weights from before are kept. Lower polish.learning_rate or set "
                "polish.held_out; where it only wants longer responses, raise polish.max_tokens"
            )

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kept: Any) -> None:
        """The library's figures of a round come after its last update, and before its checkpoint."""
        logs: dict[str, Any] = kept.get("logs") or {}
        if "loss" not in logs:
            return
        row = self._row(state.global_step // self._job.updates - 1)
        row.loss, row.learning_rate = float(logs["loss"]), float(logs["learning_rate"])
        row.grad_norm, row.entropy = float(logs["grad_norm"]), logs.get("entropy")
        row.divergence = logs.get("divergence", row.loss)
        row.importance_ratio = logs.get("importance_ratio")
        if not math.isfinite(row.loss) or not math.isfinite(row.grad_norm):
            raise StageError(
                f"polish: the loss is {row.loss} and its gradient {row.grad_norm} in round {row.round}, so "
                "the student is lost. Lower polish.learning_rate, or raise polish.warmup_ratio, and run with "
                "FORCE=1"
            )
        now = time.monotonic()
        row.training_seconds += now - self._marked - self._apart
        self._marked, self._apart = now, 0.0
        self._write(row)
        self._say(row)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kept: Any) -> None:
        """Only once a checkpoint knows of better weights are the ones before removed. The weights that were
        evaluated last may turn out in their own round to have collapsed: those before them stay as long."""
        rates = self._evaluations()
        before = {done: rate for done, rate in rates.items() if done < state.global_step // self._job.updates}
        stay = {self.best_weights} | ({self._weights_after(_best_of(before))} if before else set())
        for path in self._job.steps.glob("best-*"):
            if rates and path not in stay:
                shutil.rmtree(path, ignore_errors=True)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kept: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def num_done(self) -> int:
        """How many rounds have been trained on."""
        return sum(row.loss is not None for row in self.rows.values())

    @property
    def best(self) -> int:
        """The number of rounds whose weights are kept: those of the best evaluation, of equal ones the first,
        from before a collapse; without evaluations those of the last round."""
        rates = self._evaluations()
        if self._collapse(self.num_done):  # seen in what the student wrote after the last round but one
            rates = {done: rate for done, rate in rates.items() if done < self.num_done - 1}
        return _best_of(rates) if rates else self.num_done

    @property
    def best_weights(self) -> Path:
        return self._weights_after(self.best)

    def _weights_after(self, done: int) -> Path:
        return self._job.steps / f"best-{done:05d}"

    def write_metrics(self) -> int:
        """Write metrics.jsonl, a line for each row; how many."""
        rows = [self.rows[number] for number in sorted(self.rows)]
        (self._job.directory / METRICS).write_bytes(
            b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        )
        return len(rows)

    def _evaluations(self) -> dict[int, float]:
        return {number: row.held_out for number, row in self.rows.items() if row.held_out is not None}

    def _is_due(self, done: int) -> bool:
        """Whether the student is evaluated after `done` rounds."""
        recipe = self._job.recipe
        return bool(recipe.held_out) and (done % recipe.evaluate_every == 0 or done == recipe.rounds)

    def _evaluate(self, done: int, model: PreTrainedModel) -> None:
        row = self._row(done)
        with self._taking(row, "held_out_seconds"):
            found = self._asker.held_out(done, digest_of(model, self._asker.model))
        row.held_out = sum(response.correct for response in found) / len(found)
        row.held_out_tokens = sum(len(response.ids) for response in found)
        if self.best == done:
            self._keep(done, model)
        self._write(row)

    def _keep(self, done: int, model: PreTrainedModel) -> None:
        whole = self._weights_after(done)
        part = whole.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        model.save_pretrained(part)
        shutil.rmtree(whole, ignore_errors=True)
        part.rename(whole)

    def _why_stop(self, done: int) -> str:
        """Why there should be no round after `done`, or nothing."""
        if collapse := self._collapse(done):
            return collapse
        rates = self._evaluations()
        better = _best_of(rates) if rates else 0
        if sum(number > better for number in rates) >= PATIENCE:
            return f"{PATIENCE} evaluations without a better one than after {better} rounds"
        return ""

    def _collapse(self, done: int) -> str:
        """What says in the last of `done` rounds that the student had collapsed before it, or nothing."""
        first, last = self.rows.get(0), self.rows.get(done - 1)
        before, now = (row.mean_length if row is not None else None for row in (first, last))
        if before and now and not SHORTEST <= now / before <= LONGEST:
            return f"responses of {now:.0f} tokens where the first round had {before:.0f}"
        # max_tokens may be less than twice the first length
        before, now = (row.cut_share or 0.0 if row is not None else 0.0 for row in (first, last))
        if now > max(MOST_CUT, LONGEST * before):
            return f"{now:.0%} of the responses are cut where in the first round {before:.0%} were"
        return ""

    def _row(self, number: int) -> Row:
        if number not in self.rows:
            before = self._before.get(number, Row(round=number))
            taken = {name: getattr(before, name) for name in SECONDS}
            self.rows[number] = Row(round=number, **taken)
        return self.rows[number]

    def _write(self, row: Row) -> None:
        write_row(self._job.rounds, row)
        self.write_metrics()

    def _say(self, row: Row) -> None:
        """The progress line: what the student was in this round."""
        now, done, rounds = time.monotonic(), row.round + 1, self._job.recipe.rounds
        rates = self._evaluations()
        text = (
            f"{row.pass_rate or 0:.1%} right, {row.mean_length or 0:.0f} tokens ({row.cut_share or 0:.1%} "
            f"cut), divergence {row.divergence or 0:.3f}, entropy {row.entropy or 0:.3f}"
        )
        if row.importance_ratio is not None:
            text += f", importance ratio {row.importance_ratio:.3f}"
        if rates:
            last = max(rates)
            text += f", held out {rates[last]:.1%} after {last}"
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            self._bar.set_postfix_str(text)
        elif now - self._said >= LOG_SECONDS or done == rounds or self.stopped:
            self._said = now
            left = (now - self._begun[0]) / (done - self._begun[1]) * (rounds - done)
            log.info("polish: round %d/%d: %s, %s left", done, rounds, text, timedelta(seconds=round(left)))


def _best_of(rates: dict[int, float]) -> int:
    """The number of rounds after which the rate was best, the first of equal ones."""
    return min(rates, key=lambda done: (-rates[done], done))
