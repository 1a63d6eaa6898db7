"""The arms of bench_polish: every one is a valid recipe that differs from its sibling in what it is named for."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe.schema import Recipe
from pipeline.recipe.strict_yaml import validate
from tests.bench.bench_polish import DEMO_ARMS, SIZES, Arm, best_of, pairs_of
from tests.finished_run import Run, write_generate


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose traces have 120 tokens each, three of each of 9,000 problems."""
    context = Run(tmp_path_factory.mktemp("traces")).context
    write_generate(context, 9_000)
    return context.run


def recipe_of(name: str, runs: Path, traces: Path) -> Recipe:
    return validate(Recipe, Arm(name, runs, traces).recipe(), name)


NAMES = [f"{size}-{kind}-20" for size in SIZES for kind in ("sft", "polish", "traces")]


@pytest.mark.parametrize("name", [*NAMES, *DEMO_ARMS])
def test_every_arm_is_a_recipe(name: str, tmp_path: Path, traces: Path) -> None:
    recipe = recipe_of(name, tmp_path, traces)
    assert recipe.name == name
    assert recipe.eval.compare == ["student"]
    assert (recipe.polish is not None) == ("polish" in name)


def test_siblings_share_the_stages_up_to_train(tmp_path: Path, traces: Path) -> None:
    start, polished = (recipe_of(f"360-{kind}-20", tmp_path, traces) for kind in ("sft", "polish"))
    for section in ("problems", "generate", "filter", "train"):
        assert getattr(start, section) == getattr(polished, section)
    assert start.train.epochs == 20
    assert start.generate.share == 0.2


def test_more_traces_are_what_the_teachers_time_buys(tmp_path: Path, traces: Path) -> None:
    """100 rounds of 128 responses of 120 tokens, a scored one at 0.66 of a written one; a problem has 360."""
    recipe = recipe_of("360-traces-20", tmp_path, traces)
    more = round(0.66 * 12_800 * 120 / 360 / 5)
    assert recipe.generate.share == pytest.approx((360 + more) / 1800, abs=1e-4)


def test_more_epochs_wait_for_the_time_that_they_are_given(tmp_path: Path, traces: Path) -> None:
    with pytest.raises(SystemExit, match="needs the finished 360-polish-20"):
        recipe_of("360-time-20", tmp_path, traces)


def test_an_unknown_arm_is_refused(tmp_path: Path, traces: Path) -> None:
    with pytest.raises(SystemExit, match="no arm is called so"):
        recipe_of("360-rl-20", tmp_path, traces)


def test_the_best_arms_are_chosen_on_held_out_problems(tmp_path: Path, traces: Path) -> None:
    def scored(held_out: float, pass_at_1: float) -> dict[str, Any]:
        return {"held_out": held_out, "pass@1": pass_at_1}

    figures = {
        "360-sft-10": scored(0.6, 0.9),
        "360-sft-20": scored(0.7, 0.5),
        "360-sft-40": scored(0.7, 0.8),
        "360-polish-10": scored(0.8, 0.6),
        "360-traces-20": {"held_out": 0.9},  # not evaluated yet
        "1800-demo-5": scored(0.9, 0.8),
    }
    arms = [Arm(name, tmp_path, traces) for name in figures]
    best = best_of(arms[:3], figures)
    assert best is not None
    assert best.name == "360-sft-20"
    pairs = {(first.name, second.name) for first, second in pairs_of(arms, figures)}
    assert pairs == {("360-polish-10", other) for other in ("360-sft-20", "360-sft-10", "1800-demo-5")}
