"""make with names of recipes and runs that a shell would read as something else."""

import hashlib
import os
import shutil
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


def marker_in(directory: Path) -> Path:
    """A copy of what `make setup` reads, and the file that says it was done; it is not there yet."""
    for name in ("Makefile", "pyproject.toml", "requirements", "pipeline/run/stages.py"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, directory / name)
    said = (directory / "requirements/cpu.lock").read_bytes() + (directory / "pyproject.toml").read_bytes()
    (directory / ".venv").mkdir()
    return directory / f".venv/.ready-cpu-{hashlib.sha256(said).hexdigest()[:16]}"


def test_setup_looks_at_what_the_lock_says_and_not_at_its_time(tmp_path: Path) -> None:
    """`make -q` answers 0 where nothing is to be done, and 1 where something is."""
    marker = marker_in(tmp_path)

    def question(accel: str) -> int:
        command = ["make", "-q", "setup", f"ACCEL={accel}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode

    assert question("cpu") == 1
    marker.touch()
    os.utime(marker, (0, 0))
    assert (question("cpu"), question("gpu")) == (0, 1)
    with (tmp_path / "requirements/cpu.lock").open("a") as lock:
        lock.write("another==1.0\n")
    assert question("cpu") == 1


# in Python's place: makes an environment of itself, whose pip fails where FAIL stands in its arguments
STAND_IN = """#!/bin/bash
case "$*" in
  "-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  *"pip install"*) [[ -z "$FAIL" || "$*" != *"-r $FAIL"* ]] ;;
  *) exec python3 "$@" ;;
esac
"""


def make_with_stand_in(directory: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    stand_in = directory / "stand-in"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    command = ["make", *words, "ACCEL=cpu", f"PYTHON={stand_in}"]
    return subprocess.run(
        command, cwd=directory, env={**os.environ, **more}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("changed", ["cpu", "ray"])
def test_a_setup_that_fails_leaves_no_marker_of_the_lock_before(tmp_path: Path, changed: str) -> None:
    """What it has changed is no longer that lock's environment, and going back to it sets up again."""
    marker_in(tmp_path)
    words = ("setup", "EXTRAS=ray")
    assert make_with_stand_in(tmp_path, *words).returncode == 0
    lock = tmp_path / f"requirements/{changed}.lock"
    before = lock.read_text()
    lock.write_text(before + "another==1.0\n")
    assert make_with_stand_in(tmp_path, *words, FAIL=f"requirements/{changed}.lock").returncode == 2
    lock.write_text(before)
    assert make_with_stand_in(tmp_path, "-q", *words).returncode == 1


def test_an_environment_whose_python_is_gone_is_set_up_again(tmp_path: Path) -> None:
    """As after an upgrade of the system's Python, to which it is a link; make itself goes on."""
    marker_in(tmp_path)
    words = ("setup", "EXTRAS=ray")
    assert make_with_stand_in(tmp_path, *words).returncode == 0
    python = tmp_path / ".venv/bin/python"
    python.unlink()
    python.symlink_to(tmp_path / "no-more")
    assert make_with_stand_in(tmp_path, "help").returncode == 0
    again = make_with_stand_in(tmp_path, *words)
    assert again.returncode == 0, again.stderr
    assert not python.is_symlink()
    assert len(list((tmp_path / ".venv").glob(".*-*"))) == 2
    assert make_with_stand_in(tmp_path, "-q", *words).returncode == 0


def test_no_build_of_torch_for_the_cpu_stands_in_for_the_gpu_lock() -> None:
    """=== compares versions as text, so that a local 2.13.0+cpu is none of 2.13.0."""
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements/gpu.lock").read_text().splitlines()
    (torch,) = (Requirement(line) for line in lines if line.startswith("torch="))
    plain = str(torch.specifier).removeprefix("===")
    assert plain in torch.specifier
    assert f"{plain}+cpu" not in torch.specifier


def test_an_extra_is_set_up_by_its_own_lock_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    """Beside the first lock, whose marker stays: `make setup` alone has nothing to do afterwards."""
    marker_in(tmp_path).touch()

    def setup(*words: str) -> "subprocess.CompletedProcess[str]":
        command = ["make", *words, "setup", "ACCEL=cpu"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert setup("-q").returncode == 0
    assert setup("-q", "EXTRAS=ray").returncode == 1
    lock = (tmp_path / "requirements/ray.lock").read_bytes()
    (tmp_path / f".venv/.extra-ray-{hashlib.sha256(lock).hexdigest()[:16]}").touch()
    assert setup("-q", "EXTRAS=ray").returncode == 0
    unknown = setup("EXTRAS=rya")
    assert "error: EXTRAS=rya: there is no requirements/rya.lock; there is ray" in unknown.stderr
    assert unknown.returncode == 2
