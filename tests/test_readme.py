"""The README's numbers are those of the committed results, and its commands are real (see also test_cli.py)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

DATA = ROOT / "tests/data"
README = (ROOT / "README.md").read_text()
RUNS = ("demo", "demo-lora", "demo-unverified")


def results(run: str) -> dict[str, Any]:
    return json.loads((DATA / f"{run}-results.json").read_text())["tasks"]


def percent(score: dict[str, Any]) -> str:
    low, high = score["ci95"]
    return f"{score['pass@1']:.1%} [{low:.1%}, {high:.1%}]"


def recovered(scores: dict[str, Any]) -> str:
    gap = scores["gap_recovered"]
    return f"{gap['value']:.0%} [{gap['ci95'][0]:.0%}, {gap['ci95'][1]:.0%}]"


def row_of_run(run: str) -> str:
    """The line of the README's first table that a run's results make."""
    scores = results(run)["all"]
    cells = [
        f"`{run}`",
        *(percent(scores[model]) for model in ("base", "student", "teacher")),
        recovered(scores),
    ]
    return f"| {' | '.join(cells)} |"


def row_of_task(task: str) -> str:
    scores = results("demo")[task]
    return f"| {task} | {' | '.join(percent(scores[model]) for model in ('base', 'student', 'teacher'))} |"


@pytest.mark.parametrize("run", RUNS)
def test_the_scores_of_the_readme_are_the_committed_ones(run: str) -> None:
    assert row_of_run(run) in README, f"README.md should hold: {row_of_run(run)}"


@pytest.mark.parametrize("task", [task for task in results("demo") if task != "all"])
def test_the_scores_by_family_are_the_committed_ones(task: str) -> None:
    assert row_of_task(task) in README, f"README.md should hold: {row_of_task(task)}"


def test_the_readme_states_questions_and_samples() -> None:
    scores = results("demo")["all"]["student"]
    assert f"{scores['n']} reserved questions, {scores['k']} samples each" in " ".join(README.split())


def between(ci95: list[float], sign: str = "") -> str:
    low, high = (f"{100 * end:{sign}.1f}" for end in ci95)
    return f"[{low}, {high}]"


def test_the_arms_of_polish_are_those_of_its_page() -> None:
    """Scores and paired differences, each with its interval, as `make bench-polish ARGS=--table` printed them."""
    seeds = [json.loads((DATA / f"polish-arms{seed}.json").read_text()) for seed in ("", "-seed1")]
    page = " ".join((ROOT / "docs/polish.md").read_text().split())
    arms = [f"{arm['pass@1']:.1%} {between(arm['ci95'])}" for held in seeds for arm in held["arms"].values()]
    assert [text for text in arms if text not in page] == []
    named = set(re.findall(r"\[[+-][\d.]+, [+-][\d.]+\]", page.partition("## Two cheaper")[0]))
    assert len(named) > 9
    assert named <= {between(pair["ci95"], "+") for held in seeds for pair in held["pairs"].values()}


def test_every_path_that_the_readme_names_in_the_checkout_exists() -> None:
    named = [
        "CONTRIBUTING.md",
        "LICENSE",
        "requirements/gpu.lock",
        "recipes/demo.yaml",
        "teachers/cards/embedded-moe.yaml",
    ]
    assert [name for name in named if not (ROOT / Path(name)).exists()] == []
