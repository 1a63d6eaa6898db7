"""What a run shows and records while it trains: a bar on stderr, metrics.jsonl, and an orderly Ctrl-C."""

import json
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Self

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

KEPT = ("step", "loss", "learning_rate", "grad_norm", "num_tokens", "mean_token_accuracy", "eval_loss")


class Progress(TrainerCallback):
    """A bar with steps, tokens a second and time left; the log of the main process goes to `metrics`."""

    def __init__(self, metrics: Path) -> None:
        self._metrics = metrics
        self._bar: tqdm[Any] | None = None
        self._first: tuple[float, float] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            # a resumed run drops what it logged after the checkpoint that it goes on from
            self._metrics.write_text("".join(map(_row, state.log_history)), encoding="utf-8")
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        if self._bar is None:
            return
        entry = {**(options.get("logs") or {}), "step": state.global_step}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(_row(entry))
        if "loss" in entry:
            self._bar.set_postfix_str(self._rate(entry), refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._bar is not None:
            self._bar.close()

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

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.asked:
            control.should_save = True
            control.should_training_stop = True
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
