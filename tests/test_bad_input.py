"""Bad input at the command line: one `error:` with where, what, found and next; nothing overwritten."""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RECIPE, ROOT, command_line

Run = Callable[..., subprocess.CompletedProcess[str]]

PROCEDURAL = "{reasoning_gym: chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}}"


def recipe_with(tmp_path: Path, old: str, new: str) -> Path:
    assert old in RECIPE
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.replace(old, new, 1))
    return path


def error_of(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The single `error:` message of a command that failed with `code`, without a traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    errors = re.findall(r"^error: .*(?:\n(?!\w+:).*)*", done.stderr, re.MULTILINE)
    assert len(errors) == 1, done.stderr
    return errors[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  epochs: 1", "  epoch: 1", r"train\.epoch: unknown key; did you mean 'epochs'"),
        ("  epochs: 1", "  epochs: one", r"train\.epochs: .*valid number, found 'one'"),
        (
            "chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}}\ng",
            "chain_sun, size: 20}\ng",
            r"did you mean 'chain_sum'",
        ),
        (PROCEDURAL, "{reasoning_gym: puzzle24, size: 20}", r"puzzle24"),
        (PROCEDURAL, "{reasoning_gym: chain_sum, size: 20, config: {min_term: 2}}", r"min_term"),
        (PROCEDURAL, "{path: missing.jsonl}", r"missing\.jsonl"),
        ("student: embedded-dense", "student: embedded-dens", r"small\.yaml: train\.student: .*did you mean"),
    ],
    ids=[
        "unknown key",
        "wrong type",
        "unknown family",
        "refused family",
        "unknown setting",
        "missing file",
        "unknown student",
    ],
)
def test_a_faulty_recipe_is_exit_2(retort: Run, tmp_path: Path, old: str, new: str, message: str) -> None:
    path = recipe_with(tmp_path, old, new)
    done = retort("problems", "--recipe", path, "--runs", tmp_path / "runs")
    assert re.search(message, error_of(done, 2)), done.stderr


def test_a_broken_line_of_a_problem_file_is_named(retort: Run, tmp_path: Path) -> None:
    problems = tmp_path / "mine.jsonl"
    problems.write_text('{"question": "1+1", "answer": "2"}\n{"question": "1+\n')
    path = recipe_with(tmp_path, PROCEDURAL, f"{{path: {problems}}}")
    done = retort("problems", "--recipe", path, "--runs", tmp_path / "runs")
    assert re.search(r"mine\.jsonl:2", error_of(done, done.returncode))
    assert done.returncode in (1, 2)


def test_an_unknown_teacher_names_the_nearest_card(retort: Run, tmp_path: Path) -> None:
    path = recipe_with(tmp_path, "teacher: embedded-moe", "teacher: embeded-moe")
    assert (
        retort(
            "problems", "--recipe", recipe_with(tmp_path, "seed: 0", "seed: 0"), "--runs", tmp_path / "runs"
        ).returncode
        == 0
    )
    path.write_text(RECIPE.replace("teacher: embedded-moe", "teacher: embeded-moe"))
    done = retort("generate", "--recipe", path, "--runs", tmp_path / "runs")
    assert re.search(r"did you mean 'embedded-moe'", error_of(done, 2))
    assert not (tmp_path / "runs/small/generate").exists()


def test_a_checkpoint_without_weights_is_named(retort: Run, tmp_path: Path) -> None:
    from pipeline.errors import RecipeError
    from pipeline.recipe.cards import hash_checkpoint

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"no \*\.safetensors weights .*it holds config\.json"):
        hash_checkpoint(tmp_path / "empty")


def test_a_refused_change_overwrites_nothing(retort: Run, tmp_path: Path) -> None:
    path = recipe_with(tmp_path, "seed: 0", "seed: 0")
    assert retort("problems", "--recipe", path, "--runs", tmp_path / "runs").returncode == 0
    problems = tmp_path / "runs/small/problems/problems.jsonl"
    before = problems.read_bytes()
    done = retort("problems", "--recipe", path, "--runs", tmp_path / "runs", "--set", "seed=1")
    message = error_of(done, 1)
    assert "seed: 0 -> 1" in message
    assert "FORCE=1" in message
    assert problems.read_bytes() == before
    again = retort("problems", "--recipe", path, "--runs", tmp_path / "runs")
    assert "up to date" in again.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "min_terms: 2",
            "min_terms: 2024-01-01",
            r"config\.min_terms: expected text, a number, .* found date",
        ),
        ("min_terms: 2", "min_terms: .inf", r"config\.min_terms: input should be a finite number"),
        ("name: small", "? [a, b]\n: 1\nname: small", r"line 1 is not valid YAML: a key must be plain text"),
        ("name: small", "name: 2024-13-45", r"is not valid YAML: month must be in 1\.\.12"),
        ("name: small", "name: " + "[" * 5000, r"is not valid YAML: maximum recursion depth"),
        ("min_terms: 2", '"\\ud800": 2', r"holds a lone surrogate"),
    ],
    ids=["date", "infinity", "list as key", "impossible date", "deep nesting", "surrogate"],
)
def test_yaml_that_no_fingerprint_can_hold_is_exit_2(
    retort: Run, tmp_path: Path, old: str, new: str, message: str
) -> None:
    done = retort("problems", "--recipe", recipe_with(tmp_path, old, new), "--runs", tmp_path / "runs")
    assert re.search(message, error_of(done, 2)), done.stderr


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    path = recipe_with(tmp_path, "size: 20", "size: 20000")
    command = command_line("problems", "--recipe", path, "--runs", tmp_path / "runs")
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    progress = tmp_path / "runs/small/problems/progress.json"
    for _ in range(2400):
        if progress.exists():
            break
        time.sleep(0.05)
    assert progress.exists()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: what is finished is kept; run the same command again to go on" in stderr
    assert "Traceback" not in stderr
