"""Two finished runs side by side: paired where they were measured alike, refused where they were not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from eval.compare import compare
from pipeline.errors import RecipeError, StageError
from pipeline.run.contract import hash_file
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


def test_a_better_student_is_better_by_a_paired_difference(runs: Path, retort: Retort) -> None:
    done = retort("compare", "plain", "better", "--runs", runs)
    assert done.returncode == 0, done.stderr
    assert "# better against plain: student" in done.stdout
    assert "sign-flip" in done.stdout
    assert "The budgets are equal within 5%." in done.stdout


def test_a_run_against_itself_has_no_difference(runs: Path) -> None:
    text = compare(runs / "plain", runs / "plain")
    assert text.count("+0.0 points") == 3  # of both tasks, and of all questions together
    assert "1.000 (sign-flip)" in text


def test_unequal_budgets_are_said_aloud(runs: Path) -> None:
    text = compare(runs / "plain", runs / "small")
    assert "NOT at equal budgets: teacher output tokens, kept traces" in text


def test_all_questions_together_have_a_row_of_their_own(runs: Path) -> None:
    text = compare(runs / "plain", runs / "better")
    (row,) = [line for line in text.splitlines() if line.startswith("| all |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "80 x 4"
    assert cells[6] == "-"  # Holm's correction is over the tasks
    tasks = json.loads((runs / "better/eval/results.json").read_text())["tasks"]
    low, high = tasks["all"]["student"]["ci95"]
    assert cells[3] == f"{100 * tasks['all']['student']['pass@1']:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def test_questions_that_only_one_run_asked_are_left_out_and_counted(runs: Path) -> None:
    text = compare(runs / "plain", runs / "small")
    assert text.count("(10 questions not shared) | 30 x 4") == 2
    assert "all (20 questions not shared) | 60 x 4" in text


def changed_copy(run: Path, directory: Path, change: Callable[[dict, dict], None]) -> Path:
    """A copy of a run in which results.json and the config of eval's plan were changed, and hashed again."""
    shutil.copytree(run, directory / "other")
    path = directory / "other/eval/results.json"
    manifest_path = path.with_name("manifest.json")
    results, manifest = json.loads(path.read_text()), json.loads(manifest_path.read_text())
    change(results, manifest["config"])
    path.write_text(json.dumps(results))
    manifest["outputs"][path.name]["sha256"] = hash_file(path)
    del manifest["seal"]
    manifest_path.write_text(json.dumps(manifest))
    return directory / "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, c: r["sampling"].update(max_tokens=512), r"sampling.max_tokens: 256 -> 512"),
        (
            lambda r, c: r["tasks"]["chain_sum"]["task"].update(version=2),
            r"tasks.chain_sum.version: null -> 2",
        ),
        (lambda r, c: r["tasks"]["chain_sum"]["base"].update(k=8), r"tasks.chain_sum.samples: 4 -> 8"),
        (
            lambda r, c: c["prompts"].update(chain_sum="{question}"),
            r'tasks.chain_sum.prompt: ".*" -> "{question}"',
        ),
        (lambda r, c: r["verifier"].update(reasoning_gym="0"), r"verifiers.reasoning_gym: .* -> .0."),
    ],
    ids=["sampling", "task card", "samples", "prompt", "verifier"],
)
def test_a_task_that_was_put_otherwise_is_refused(
    runs: Path, tmp_path: Path, change: Callable[[dict, dict], None], message: str
) -> None:
    other = changed_copy(runs / "small", tmp_path, change)
    with pytest.raises(RecipeError, match=rf"not measured alike[\s\S]*{message}"):
        compare(runs / "small", other)


def test_a_task_that_only_one_run_has_may_use_another_verifier(runs: Path, tmp_path: Path) -> None:
    def change(results: dict, config: dict) -> None:
        config["verifiers"]["math"] = results["verifier"]["math"] = "1"

    other = changed_copy(runs / "small", tmp_path, change)
    assert "# other against small" in compare(runs / "small", other)


def test_a_question_with_another_gold_answer_is_not_shared(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "small", tmp_path / "other")
    path = tmp_path / "other/eval/chain_sum.problems.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"gold": "none"}), *rest, ""]))
    manifest_path = path.with_name("manifest.json")
    manifest = json.loads(manifest_path.read_text())
    manifest["outputs"][path.name]["sha256"] = hash_file(path)
    del manifest["seal"]
    manifest_path.write_text(json.dumps(manifest))
    assert "chain_sum (2 questions not shared) | 29 x 4" in compare(runs / "small", tmp_path / "other")


def test_samples_that_were_changed_after_eval_are_refused(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "small", tmp_path / "small")
    path = tmp_path / "small/eval/chain_sum.student.verdicts.jsonl"
    path.write_text(path.read_text().replace('"wrong"', '"correct"'))
    with pytest.raises(StageError, match=r"student.verdicts.jsonl: was changed after eval finished"):
        compare(runs / "small", tmp_path / "small")


def test_runs_of_one_name_are_told_apart_by_their_directories(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "small", tmp_path / "small")
    text = compare(runs / "small", tmp_path / "small")
    assert f"# {tmp_path / 'small'} against {runs / 'small'}: student" in text


def test_runs_without_a_stage_that_costs_are_not_called_equal(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "small/eval", tmp_path / "bare/eval")
    text = compare(tmp_path / "bare", tmp_path / "bare")
    assert "nothing is known of what they were given" in text
    assert "equal within" not in text


def test_a_run_without_eval_and_a_model_that_was_not_measured_are_named(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"compare needs .*manifest.json, which does not exist"):
        compare(runs / "plain", tmp_path)
    with pytest.raises(RecipeError, match="did not measure 'other'; it measured: base, student, teacher"):
        compare(runs / "plain", runs / "better", "other")
