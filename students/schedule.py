"""The learning rate of each step, as a share of the recipe's: pure, so a resumed run gets the same one."""

import math

from pipeline.recipe import Train

WSD_DECAY_SHARE = 0.2  # the last fifth decays; MiniCPM (arXiv 2404.06395) finds a tenth or more enough


def learning_rate_share(step: int, num_steps: int, recipe: Train) -> float:
    """Warm-up to 1, then the recipe's schedule down to `min_learning_rate_ratio` at the last step."""
    warmup = math.ceil(recipe.warmup_ratio * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    floor = recipe.min_learning_rate_ratio
    return floor + (1 - floor) * _SHAPES[recipe.schedule](done)


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _wsd(done: float) -> float:
    return min(1.0, (1 - done) / WSD_DECAY_SHARE)


_SHAPES = {
    "cosine": _cosine,
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
    "wsd": _wsd,
}
