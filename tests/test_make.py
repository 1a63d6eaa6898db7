"""make with names of recipes and runs that a shell would read as something else."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import RECIPE, ROOT

ODD = [
    "two words", "it's", 'a "quote"', "$HOME", "$(touch owned)", "`touch owned`", "-dash", "semi;colon", "a&b", "star*",
    "back\\slash", "umlaut \u00e4 \u6f22",
]  # fmt: skip


def make(*words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **more}
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_a_stage_takes_any_path(name: str, tmp_path: Path) -> None:
    recipe, runs = tmp_path / name / f"{name}.yaml", tmp_path / name / "runs"
    recipe.parent.mkdir()
    recipe.write_text(RECIPE)
    done = make("problems", f"RECIPE={recipe}", f"RUNS={runs}", "SET=seed=3 eval.samples=2")
    assert done.returncode == 0, done.stderr
    assert '"seed": 3' in (runs / "small/problems/manifest.json").read_text()
    assert not (ROOT / "owned").exists()


@pytest.mark.parametrize("target", ["all", "serve-student", "report"])
def test_a_target_passes_the_path_on_as_it_is(target: str, tmp_path: Path) -> None:
    """There is no such recipe: the message names the path that arrived."""
    recipe = f"{tmp_path}/{' '.join(ODD)}.yaml"
    done = make(target, f"RECIPE={recipe}", f"RUNS={tmp_path}/it's $HOME")
    assert done.returncode == 2
    assert f"error: {recipe}: there is no such recipe" in done.stderr, done.stderr
    assert not (ROOT / "owned").exists()


def test_a_name_that_begins_with_a_dash_is_no_flag(tmp_path: Path) -> None:
    done = make("problems", "RECIPE=-dash.yaml", f"RUNS={tmp_path}")
    assert "error: -dash.yaml: there is no such recipe" in done.stderr
