"""The command line: help, one-line errors, exit codes; the commands that documents and Makefile name."""

import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "recipes").glob("*.yaml"))]


def named(pattern: str) -> list[str]:
    """What the documents name, as `pattern` finds it in code blocks and inline code, each once."""
    return sorted({match for path in DOCUMENTS for match in re.findall(pattern, path.read_text())})


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_stage_and_an_example(retort: Run, arguments: list[str]) -> None:
    done = retort(*arguments)
    assert done.returncode == 0
    for word in ("problems", "generate", "filter", "train", "eval", "report", "Example:"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["problems", "--recipe", "recipes/dmo.yaml"],
            r"^error: recipes/dmo\.yaml: there is no such recipe; .*demo\.yaml",
        ),
        (["problems"], r"^error: Missing option '--recipe'"),
        (["problems", "--recipe", "recipes/demo.yaml", "--frce"], r"^error: No such option: --frce"),
        (["problms"], r"^error: No such command 'problms'"),
    ],
    ids=["missing file", "missing option", "unknown option", "unknown command"],
)
def test_wrong_usage_is_one_error_line_and_exit_2(retort: Run, arguments: list[str], message: str) -> None:
    done = retort(*arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "first", "RANK=first: a launcher sets it to a number from 0; unset it"),
        ("WORLD_SIZE", "all", "WORLD_SIZE=all: a launcher sets it to a number from 1; unset it"),
        ("WORLD_SIZE", "0", "WORLD_SIZE=0: a launcher sets it to a number from 1; unset it"),
        ("RANK", "9" * 5000, "RANK=" + "9" * 40 + ": a launcher sets it"),
    ],
    ids=["RANK", "WORLD_SIZE", "no process", "5,000 digits"],
)
def test_what_a_launcher_never_sets_is_named(
    retort: Run, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    done = retort("train", "--recipe", recipe_file)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {message}")


def test_a_seed_of_5000_digits_is_one_error(retort: Run, recipe_file: Path) -> None:
    done = retort("problems", "--recipe", recipe_file, "--set", "seed=" + "9" * 5000)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("command", ["problems", "generate", "judge", "filter", "eval", "audit", "verify"])
def test_whatever_verifies_or_applies_rules_takes_workers(retort: Run, command: str) -> None:
    assert "--workers <int>" in retort(command, "--help").stdout


@pytest.mark.parametrize("flag", ["--tensor-parallel", "--data-parallel", "--gpu-memory-share", "--adopt"])
def test_eval_takes_the_engine_flags_of_generate(retort: Run, flag: str) -> None:
    for command in ("generate", "eval"):
        assert flag in retort(command, "--help").stdout


def test_no_option_of_a_command_stands_twice(retort: Run) -> None:
    for command in ("generate", "eval", "train", "plan", "serve-teacher", "serve-student"):
        listed = retort(command, "--help").stdout.partition("\nOptions:\n")[2]
        options = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", listed, re.MULTILINE)
        assert len(options) == len(set(options)), command


@pytest.mark.parametrize("stage", ["filter", "train", "eval", "report"])
def test_a_stage_without_its_input_names_the_one_to_run(
    retort: Run, recipe_file: Path, tmp_path: Path, stage: str
) -> None:
    done = retort(stage, "--recipe", recipe_file, "--runs", tmp_path / "runs")
    assert done.returncode == 1
    assert re.search(
        r"^error: .*manifest\.json, which does not exist: .* Run: make \w+ RECIPE=", done.stderr, re.M
    )


@pytest.mark.parametrize("command", named(r"python -m pipeline ([a-z-]+)"))
def test_every_subcommand_that_a_document_names_exists(retort: Run, command: str) -> None:
    done = retort(command, "--help")
    assert done.returncode == 0, done.stderr


@cache
def phony_targets() -> list[str]:
    """As make itself reads the Makefile, with its variables expanded."""
    done = subprocess.run(["make", "-pq", "help"], cwd=ROOT, capture_output=True, text=True, check=False)
    return re.findall(r"^\.PHONY: (.*)$", done.stdout, re.MULTILINE)[0].split()


@pytest.mark.parametrize("target", named(r"(?:`|\n|Command: +|# +)make ([a-z-]*[a-z])\b(?!-\*)"))
def test_every_make_target_that_a_document_names_exists(target: str) -> None:
    assert target in phony_targets()


def test_every_path_of_the_tour_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:pipeline|teachers|students|eval|recipes|tests)/[\w./-]*)`", text)
    assert "pipeline/report/" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_make_prints_its_help() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for word in ("make demo", "make test", "make generate", "RECIPE="):
        assert word in done.stdout
