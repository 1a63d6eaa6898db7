"""What `plan` assumes where nothing has been measured: `--assume name=value`."""

from dataclasses import dataclass, fields
from typing import Any

from pipeline.errors import RecipeError
from pipeline.strict_yaml import nearest
from teachers.estimate import Devices


@dataclass(frozen=True, slots=True)
class Assumed:
    """A pilot knows pass_rate and tokens_share better; the figures of a device are those of an H100."""

    pass_rate: float = 0.6
    tokens_share: float = 0.4  # of max_tokens
    prompt_tokens: int = 200
    devices: int = 8
    memory: float = 80.0  # GiB of a device
    bandwidth: float = 3350.0  # GB/s of a device's memory
    tflops: float = 989.0  # of a device, dense in bfloat16
    mfu: float = 0.4  # share of them that training reaches
    price: float = 2.5  # money for a device-hour
    concurrency: int = 256  # sequences at a time of a replica
    problems: int = 0  # 0: as the problems stage or the recipe says

    @property
    def all_devices(self) -> Devices:
        return Devices(self.devices, self.memory, self.bandwidth, self.price, self.tflops, self.mfu)


BOUNDS = {
    "pass_rate": (0, 1),
    "tokens_share": (0, 1),
    "prompt_tokens": (0, 1e7),
    "devices": (1, 1e6),
    "memory": (1e-3, 1e5),
    "bandwidth": (1e-3, 1e6),
    "tflops": (1e-6, 1e6),
    "mfu": (1e-3, 1),
    "price": (0, 1e6),
    "concurrency": (8, 1e6),  # fewer sequences at a time than 8 are no layout, see estimate.layout_for
    "problems": (0, 1e12),
}


def assumed_from(pairs: list[str]) -> Assumed:
    """The assumptions of `--assume name=value`. RecipeError on an unknown name or what is no number."""
    known = {item.name: item.type for item in fields(Assumed)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in known:
            raise RecipeError(f"--assume {pair}: unknown name; {nearest(name, list(known))}")
        try:
            values[name] = int(text) if known[name] is int else float(text)
        except ValueError:
            raise RecipeError(f"--assume {pair}: expected a number after '=', found '{text}'") from None
        low, high = BOUNDS[name]
        if not low <= values[name] <= high:  # nor is NaN
            raise RecipeError(f"--assume {pair}: out of range, expected {low:g} to {high:g}")
    return Assumed(**values)
