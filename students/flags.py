"""How training runs: devices, memory, checkpoints, trackers. In no recipe and in no fingerprint."""

from dataclasses import dataclass

from pipeline.errors import RecipeError
from pipeline.strict_yaml import nearest

CHOICES = {"device": ["auto", "cpu", "cuda"], "tracker": ["none", "trackio", "tensorboard", "wandb"]}


@dataclass(frozen=True, slots=True)
class TrainFlags:
    """`tokens_per_device` bounds a micro-batch; every `save_every` steps a checkpoint to resume from is written
    (None: ten times a run); `rank` is this process's among those that one launcher started."""

    device: str = "auto"
    tokens_per_device: int = 8192
    gradient_checkpointing: bool = False
    liger: bool = False
    save_every: int | None = None
    log_every: int = 10
    tracker: str = "none"
    rank: int = 0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise RecipeError(f"--{name} {value}: {nearest(value, known)}")
        for name in ("tokens_per_device", "log_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"--{name.replace('_', '-')} {value}: must be at least 1")
