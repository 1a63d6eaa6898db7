"""results.json: read and written without a loss, and documented: every key written is listed, and none else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from eval.results import (
    SAMPLE,
    Answers,
    adjust,
    budget_curve,
    budgets_below,
    contamination_of,
    forced_points,
    read_answers,
    score_model,
    score_task,
)
from pipeline.errors import StageError
from pipeline.problems.overlap import Overlap
from pipeline.records import Problem
from pipeline.report.results import (
    RESULTS,
    JudgeFacts,
    JudgeRate,
    Results,
    read_results,
    write_results,
)
from pipeline.report.tables import scores_table
from pipeline.sampling import Store
from tests.conftest import ROOT
from tests.finished_run import Run, write_run

# what stands for a name that a recipe chooses, by the key that holds such names
NAMES = {"tasks": "<task>", "paired": "<pair>", "budget": "<model>", "pass@k": "<size>", "rules": "<rule>"}
NAMES |= {"forced_budget": "<model>", "without_flagged": "<model>", "models": "<model>", "prompt": "<task>"}
NAMES |= {"verifier": "<name>", "versions": "<library>"}
MODELS = {"base", "student", "teacher"}
NAMES |= {"samples": "<status>"}
WHOLE = {"models.<model>", "sampling", "judge.model"}  # documented as one value


def made_answers(chance: float, n: int = 40, k: int = 4, seed: int = 0) -> Answers:
    rng, answers = np.random.default_rng(seed), np.zeros((n, k), dtype=SAMPLE)
    answers["correct"] = rng.random((n, k)) < chance
    answers["extracted"] = np.where(answers["correct"], "7", "8")
    answers["tokens"] = rng.integers(10, 200, (n, k))
    answers["finish"] = "stop"
    return answers


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Every path of a JSON value, with the names of tasks, models and the like put aside."""
    if path in WHOLE or not isinstance(value, dict | list):
        yield path
    elif isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        if not entries:
            yield path
        for entry in entries:
            yield from paths(entry, f"{path}[]")
    else:
        last = path.rpartition(".")[2]
        for key, inner in value.items():
            name = NAMES.get(last, "<model>" if key in MODELS else key)
            yield from paths(inner, f"{path}.{name}".lstrip("."))


def documented() -> set[str]:
    text = (ROOT / "eval/results.md").read_text()
    return set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Those of a run of two tasks with ten questions each."""
    context = write_run(Run(tmp_path_factory.mktemp("runs"), questions=10, traces=20))
    return read_results(context.directory("eval") / RESULTS)


@pytest.mark.parametrize("path", sorted((ROOT / "tests/data").glob("*-results.json")), ids=lambda p: p.stem)
def test_results_are_read_and_written_without_a_loss(path: Path, tmp_path: Path) -> None:
    write_results(tmp_path / RESULTS, read_results(path))
    assert json.loads((tmp_path / RESULTS).read_text()) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "cannot be read"),
        ("{", "does not hold the results of this version .*Expecting property name"),
        ("[]", "does not hold the results of this version"),
        ('{"tasks": {"sums": {"base": {"n": 1}}}}', "missing required field `k`"),
    ],
    ids=["missing", "torn", "a list", "a score with a hole"],
)
def test_a_broken_file_is_named(text: str | None, found: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / RESULTS).write_text(text)
    with pytest.raises(StageError, match=rf"{RESULTS}: .*{found}"):
        read_results(tmp_path / RESULTS)


def test_the_documentation_lists_exactly_what_is_written(results: Results) -> None:
    models = {name: made_answers(chance) for name, chance in (("base", 0.1), ("student", 0.7))}
    forced = forced_points({name: {64: answers} for name, answers in models.items()}, 0)
    seen = contamination_of(models, Overlap({3: "exact"}, 40), 0)
    tasks = {
        name: msgspec.structs.replace(entry, forced_budget=forced, contamination=seen)
        for name, entry in results.tasks.items()
    }
    tasks["programs"] = score_task(models, 256, 0, programs=True)
    rate = JudgeRate(1, 20, 0.05, (0.009, 0.236))
    judge = JudgeFacts({"model": "m"}, "judge", 9, {"correct": 3}, 35, rate, rate)
    written = msgspec.structs.replace(results, tasks=tasks, judge=judge).to_json()
    assert set(paths(json.loads(json.dumps(written)))) == documented()


def test_of_programs_there_is_no_most_frequent_one() -> None:
    held = score_model(made_answers(0.7), 0, programs=True)
    assert (held.cons_at_k.value, held.cons_at_k.ci95) == (None, None)
    assert held.cons_at_k.reason == "no meaning for programs"
    numbers = score_model(made_answers(0.7), 0)
    assert held.pass_at_k == numbers.pass_at_k
    entry = score_task({"student": made_answers(0.7)}, 256, 0, programs=True)
    table = scores_table(entry)
    assert table.rows[0][table.head.index("cons@k")] == "no meaning for programs"


def test_all_is_every_question_of_every_task(results: Results) -> None:
    everything = results.tasks["all"].models["student"]
    assert everything.n == 20
    parts = [results.tasks[name].models["student"].pass_at_1 for name in results.task_names]
    assert everything.pass_at_1 == pytest.approx(np.mean(parts))


def test_a_score_without_its_flagged_questions_is_of_the_others() -> None:
    answers = made_answers(0.5)
    answers["correct"] = np.arange(40)[:, None] < 10
    found = contamination_of({"student": answers}, Overlap(dict.fromkeys(range(10), "exact"), 40), 0)
    assert found.flagged == 10
    assert found.without_flagged is not None
    assert found.without_flagged["student"].pass_at_1 == 0
    assert contamination_of({"student": answers}, Overlap({}, 40), 0).without_flagged is None


def test_one_question_gives_no_interval_of_its_length() -> None:
    score = score_model(made_answers(0.5, n=1), 0)
    assert score.intervals.mean_tokens is None
    low, high = score.ci95
    assert high - low > 0.6


def test_the_budget_curve_ends_at_the_score_and_never_falls() -> None:
    answers = made_answers(0.6)
    curve = budget_curve(answers, 256, 0)
    assert [point.max_tokens for point in curve] == budgets_below(256)
    assert curve[-1].pass_at_1 == score_model(answers, 0).pass_at_1
    assert [point.pass_at_1 for point in curve] == sorted(point.pass_at_1 for point in curve)


def test_holm_is_over_the_tasks_of_each_pair() -> None:
    models = {"base": made_answers(0.1, seed=1), "student": made_answers(0.3, seed=2)}
    entries = {name: score_task(models, 256, 0) for name in ("one", "two")}
    adjust(entries)
    held = entries["one"].paired["student-base"]
    assert held.p_holm == pytest.approx(min(1, 2 * held.p))


def test_an_extra_model_is_set_against_base_and_student() -> None:
    models = {name: made_answers(0.5, seed=seed) for seed, name in enumerate(("base", "student", "other"))}
    assert set(score_task(models, 256, 0).paired) == {"student-base", "other-base", "other-student"}


def test_an_empty_sample_file_is_named(tmp_path: Path) -> None:
    problem = Problem("q", "1 + 1 = ?", "2", "math", "made", "CC0")
    (tmp_path / "sums.student.samples-00000.jsonl").touch()
    with (
        Store(tmp_path, "sums.student.samples") as store,
        pytest.raises(StageError, match=r"no sample .* in sums.student.samples-00000.jsonl.*FORCE=1"),
    ):
        read_answers(store, [problem], 4)
