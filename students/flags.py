"""How training runs: devices, memory, checkpoints, trackers. In no recipe and in no fingerprint."""

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import RecipeError


@dataclass(frozen=True, slots=True)
class TrainFlags:
    """`tokens_per_device` bounds a micro-batch. Every `save_every` steps (None: ten times a run) a
    checkpoint to resume from is written. A launcher says which of its `processes` this one is by `rank`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    tokens_per_device: int = 8192
    gradient_checkpointing: bool = False
    liger: bool = False
    save_every: int | None = None
    log_every: int = 10
    tracker: Literal["none", "trackio", "tensorboard", "wandb"] = "none"
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("tokens_per_device", "log_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"--{name.replace('_', '-')} {value}: must be at least 1")
