"""Two finished runs side by side: paired where they were measured alike, refused where they were not."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from eval.compare import compare
from pipeline.errors import RecipeError, StageError
from tests.finished_run import ABILITY, Run, write_run

Retort = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: `plain`, `better` (the same questions, a better student), `small` (fewer)."""
    directory = tmp_path_factory.mktemp("runs")
    better = ABILITY | {"student": 0.85}
    write_run(Run(directory, "plain", questions=40, traces=40))
    write_run(Run(directory, "better", questions=40, traces=40, ability=better))
    write_run(Run(directory, "small", questions=30, traces=20))
    return directory


def edit_manifest(path: Path, change: Callable[[dict], None]) -> None:
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_better_student_is_better_by_a_paired_difference(runs: Path, retort: Retort) -> None:
    done = retort("compare", "plain", "better", "--runs", runs)
    assert done.returncode == 0, done.stderr
    assert "# better against plain: student" in done.stdout
    assert "sign-flip" in done.stdout
    assert "The budgets are equal within 5%." in done.stdout


def test_a_run_against_itself_has_no_difference(runs: Path) -> None:
    text = compare(runs / "plain", runs / "plain")
    assert text.count("+0.0 points") == 2
    assert "1.000 (sign-flip)" in text


def test_unequal_budgets_are_said_aloud(runs: Path) -> None:
    text = compare(runs / "plain", runs / "small")
    assert "NOT at equal budgets: teacher output tokens, kept traces" in text


def test_questions_that_only_one_run_asked_are_left_out_and_counted(runs: Path) -> None:
    text = compare(runs / "plain", runs / "small")
    assert text.count("(10 questions not shared) | 30 x 4") == 2


def test_runs_that_were_measured_differently_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(Run(tmp_path, name, questions=3, traces=4))
    edit_manifest(
        tmp_path / "two/eval/manifest.json", lambda m: m["config"]["sampling"].update(max_tokens=512)
    )
    with pytest.raises(RecipeError, match=r"not measured alike[\s\S]*sampling.max_tokens: 256 -> 512"):
        compare(tmp_path / "one", tmp_path / "two")


def test_a_run_without_eval_and_a_model_that_was_not_measured_are_named(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"compare needs .*manifest.json, which does not exist"):
        compare(runs / "plain", tmp_path)
    with pytest.raises(RecipeError, match="did not measure 'other'; it measured: base, student, teacher"):
        compare(runs / "plain", runs / "better", "other")
