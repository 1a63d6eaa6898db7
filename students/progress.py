"""What a run shows and records while it trains, and an orderly Ctrl-C.

On a terminal a bar, in a log a line every 30 seconds; metrics.jsonl.
"""

import json
import logging
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Self

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

log = logging.getLogger(__name__)
LOG_SECONDS = 30.0
KEPT = (
    "step",
    "loss",
    "learning_rate",
    "grad_norm",
    "num_tokens",
    "mean_token_accuracy",
    "eval_loss",
    "eval_mean_token_accuracy",
    "eval_pass_rate",
)


class Progress(TrainerCallback):
    """Steps, loss, tokens a second and time left; the log of the main process goes to `metrics`."""

    def __init__(self, metrics: Path) -> None:
        self._metrics = metrics
        self._bar: tqdm[Any] | None = None
        self._loss = ""
        self._first: tuple[float, float] | None = None
        self._begun = (0.0, 0)  # when, and at which step
        self._said = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        # a resumed run drops what it logged after the checkpoint that it goes on from
        self._metrics.write_text("".join(map(_row, state.log_history)), encoding="utf-8")
        self._begun = (time.monotonic(), state.global_step)
        self._said = self._begun[0]
        if sys.stderr.isatty():
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
        elif state.is_world_process_zero and time.monotonic() - self._said >= LOG_SECONDS:
            self._say(state)

    def on_log(self, args: Any, state: TrainerState, control: Any, **options: Any) -> None:
        if not state.is_world_process_zero:
            return
        entry = {**(options.get("logs") or {}), "step": state.global_step}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(_row(entry))
        if "loss" in entry:
            self._loss = self._rate(entry)
            if self._bar is not None:
                self._bar.set_postfix_str(self._loss, refresh=False)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
        elif state.is_world_process_zero:
            self._say(state)

    def _say(self, state: TrainerState) -> None:
        self._said = time.monotonic()
        text = f"train: step {state.global_step:,}/{state.max_steps:,} {self._loss}".rstrip()
        done, rest = state.global_step - self._begun[1], state.max_steps - state.global_step
        if done and rest:
            text += f", {timedelta(seconds=round((self._said - self._begun[0]) / done * rest))} left"
        log.info("%s", text)

    def _rate(self, entry: dict[str, Any]) -> str:
        now, tokens = time.monotonic(), float(entry.get("num_tokens", 0))
        if self._first is None:
            self._first = (now, tokens)
        started, before = self._first
        rate = f", {(tokens - before) / (now - started):,.0f} tok/s" if now > started else ""
        return f"loss {float(entry['loss']):.3f}{rate}"


class Stopper(TrainerCallback):
    """The first SIGINT or SIGTERM means: finish this step, write a checkpoint, stop. A second one kills."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        self._restore()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> TrainerControl:
        if self.asked:
            control.should_save = control.should_training_stop = True
        return control

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def _row(entry: dict[str, Any]) -> str:
    """One line of JSON, or nothing for an entry (the library's summary) that measures no loss."""
    if "loss" not in entry and "eval_loss" not in entry:
        return ""
    return json.dumps({key: entry[key] for key in KEPT if key in entry}) + "\n"
