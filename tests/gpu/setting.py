"""How the rows of make check-gpu run, and the ways in which a row is not a failure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

ESTIMATE_OVER_PEAK = (0.8, 1.25)


class NotHere(Exception):
    """The machine lacks what a row needs: a second GPU, a GPU at all."""


@dataclass(frozen=True, slots=True)
class Setting:
    """`directory` is empty and the row's own. A dry row runs on the CPU, as small as it can be."""

    device: str
    directory: Path

    @property
    def dry(self) -> bool:
        return self.device == "cpu"


def hold_estimate(found: dict[str, Any]) -> dict[str, Any]:
    """The same figures. AssertionError where the estimated memory is not about that of the peak, which only a
    GPU has."""
    low, high = ESTIMATE_OVER_PEAK
    if "peak_gib" in found:
        assert low <= found["estimate_over_peak"] <= high, found
    return found


def require_gpus(setting: Setting, number: int = 1) -> None:
    import torch  # not at import: the process that starts the rows needs none of it

    found = 0 if setting.dry else torch.cuda.device_count()
    if found < number:
        raise NotHere(f"needs {number} GPU{'s' if number > 1 else ''}, found {found}")
