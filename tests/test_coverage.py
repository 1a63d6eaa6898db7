"""How often the 95% intervals hold the truth: the table of eval/scores.md, measured again.

A question's difficulty is drawn from a Beta distribution, its samples are k draws at that difficulty; the
truth is the distribution's mean. About a minute on two cores.
"""

import itertools
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pytest

from eval.scores import mean_difference, pass_at_1
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

NUM_SIMULATIONS = 4_000
DRAWS = 1_000  # a tenth of what eval draws: noise in the ends of an interval can only cost coverage
SIZES = [30, 200, 500]
SAMPLES = [1, 4, 16]
DIFFICULTIES = [(1.0, 1.0), (2.5, 0.8), (0.8, 2.5)]


@dataclass(frozen=True)
class Setting:
    kind: str  # "score", or "difference" of two models on the same questions
    n: int
    k: int
    difficulty: tuple[float, float]


SETTINGS = [Setting("score", *setting) for setting in itertools.product(SIZES, SAMPLES, DIFFICULTIES)]
SETTINGS += [
    Setting("difference", *setting) for setting in itertools.product([30, 200], [1, 4], DIFFICULTIES)
]


def coverage(setting: Setting) -> float:
    """Share of simulations whose interval holds the truth."""
    rng = np.random.default_rng([setting.n, setting.k, *(round(10 * x) for x in setting.difficulty)])
    first, second = setting.difficulty
    held = 0
    for seed in range(NUM_SIMULATIONS):
        ability = rng.beta(first, second, setting.n)
        correct = rng.binomial(setting.k, ability)
        if setting.kind == "score":
            estimate, truth = pass_at_1(correct, setting.k, seed, DRAWS), first / (first + second)
        else:
            # the second model answers each question with 0.9 of the first one's chance
            other = rng.binomial(setting.k, 0.9 * ability)
            estimate = mean_difference((correct - other) / setting.k, seed, DRAWS)
            truth = 0.1 * first / (first + second)
        held += estimate.ci95[0] <= truth <= estimate.ci95[1]
    return held / NUM_SIMULATIONS


@pytest.fixture(scope="module")
def measured() -> dict[Setting, float]:
    # a fork of the process of these tests would have the locks of threads that it has not
    with ProcessPoolExecutor(2, get_context("spawn")) as workers:
        return dict(zip(SETTINGS, workers.map(coverage, SETTINGS), strict=True))


def table(measured: dict[Setting, float]) -> list[str]:
    lines = [
        "| interval of | n | k | Beta(1, 1) | Beta(2.5, 0.8) | Beta(0.8, 2.5) | mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for (kind, n, k), group in itertools.groupby(measured, key=lambda s: (s.kind, s.n, s.k)):
        values = [100 * measured[setting] for setting in group]
        cells = " | ".join(f"{value:.1f}" for value in [*values, float(np.mean(values))])
        lines.append(f"| {kind} | {n} | {k} | {cells} |")
    return lines


def test_the_intervals_hold_the_truth_as_often_as_they_say(measured: dict[Setting, float]) -> None:
    print("\n" + "\n".join(table(measured)))
    for (kind, n, k), group in itertools.groupby(SETTINGS, key=lambda s: (s.kind, s.n, s.k)):
        values = [measured[setting] for setting in group]
        assert 0.93 <= np.mean(values) <= 0.97, (kind, n, k, values)
        if n >= 200:
            assert all(0.93 <= value <= 0.97 for value in values), (kind, n, k, values)


def test_the_documented_table_is_the_measured_one(measured: dict[Setting, float]) -> None:
    documented = (ROOT / "eval/scores.md").read_text()
    for line in table(measured)[2:]:
        start, numbers = re.match(r"(\|[^|]*\|[^|]*\|[^|]*\|)(.*)", line).groups()  # type: ignore[union-attr]
        (found,) = [row for row in documented.splitlines() if row.startswith(start)]
        assert [float(x) for x in found[len(start) :].split("|") if x.strip()] == pytest.approx(
            [float(x) for x in numbers.split("|") if x.strip()], abs=1.0
        )
