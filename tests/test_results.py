"""results.json against its documentation: every key that is written is listed, every listed key is written."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.contamination import Overlap
from eval.results import (
    adjust,
    budget_curve,
    budgets_below,
    contamination_entry,
    forced_entry,
    score_model,
    score_task,
)
from eval.samples import Answers, read_answers
from pipeline.errors import StageError
from pipeline.records import Problem
from pipeline.sampling import Store
from tests.conftest import ROOT
from tests.finished_run import Run, write_run

# what stands for a name that a recipe chooses, by the key that holds such names
NAMES = {"tasks": "<task>", "paired": "<pair>", "budget": "<model>", "pass@k": "<size>", "rules": "<rule>"}
NAMES |= {"forced_budget": "<model>", "without_flagged": "<model>", "models": "<model>", "prompt": "<task>"}
NAMES |= {"verifier": "<name>", "versions": "<library>"}
MODELS = {"base", "student", "teacher"}
WHOLE = {"models.<model>", "sampling"}  # documented as one value


def made_answers(chance: float, n: int = 40, k: int = 4, seed: int = 0) -> Answers:
    rng = np.random.default_rng(seed)
    correct = rng.random((n, k)) < chance
    extracted = np.where(correct, "7", "8").astype(object)
    tokens = rng.integers(10, 200, (n, k))
    finish = np.full((n, k), "stop", dtype=object)
    ids = tuple(f"q{row}" for row in range(n))
    return Answers(ids, correct, extracted, tokens, finish, np.zeros((n, k), dtype=bool))


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


def test_the_documentation_lists_exactly_what_is_written(tmp_path: Path) -> None:
    context = write_run(Run(tmp_path, questions=10, traces=20))
    results = json.loads((context.directory("eval") / "results.json").read_text())
    models = {name: made_answers(chance) for name, chance in (("base", 0.1), ("student", 0.7))}
    for entry in results["tasks"].values():
        entry["forced_budget"] = forced_entry({name: {64: a} for name, a in models.items()}, 0)
        entry["contamination"] = contamination_entry(models, Overlap({3: "exact"}, 40), 0)
    assert set(paths(results)) == documented()


def test_all_is_every_question_of_every_task(tmp_path: Path) -> None:
    context = write_run(Run(tmp_path, questions=10, traces=20))
    tasks = json.loads((context.directory("eval") / "results.json").read_text())["tasks"]
    assert tasks["all"]["student"]["n"] == 20
    parts = [tasks[name]["student"]["pass@1"] for name in ("chain_sum", "basic_arithmetic")]
    assert tasks["all"]["student"]["pass@1"] == pytest.approx(np.mean(parts))


def test_a_score_without_its_flagged_questions_is_of_the_others() -> None:
    answers = made_answers(0.5)
    answers.correct[:10] = True
    answers.correct[10:] = False
    entry = contamination_entry({"student": answers}, Overlap(dict.fromkeys(range(10), "exact"), 40), 0)
    assert entry["flagged"] == 10
    assert entry["without_flagged"]["student"]["pass@1"] == 0
    assert contamination_entry({"student": answers}, Overlap({}, 40), 0)["without_flagged"] is None


def test_one_question_gives_no_interval_of_its_length() -> None:
    entry = score_model(made_answers(0.5, n=1), 0)
    assert entry["intervals"]["mean_tokens"] is None
    low, high = entry["ci95"]
    assert high - low > 0.6


def test_the_budget_curve_ends_at_the_score_and_never_falls() -> None:
    answers = made_answers(0.6)
    curve = budget_curve(answers, 256, 0)
    assert [point["max_tokens"] for point in curve] == budgets_below(256)
    assert curve[-1]["pass@1"] == score_model(answers, 0)["pass@1"]
    assert [point["pass@1"] for point in curve] == sorted(point["pass@1"] for point in curve)


def test_holm_is_over_the_tasks_of_each_pair() -> None:
    models = {"base": made_answers(0.1, seed=1), "student": made_answers(0.3, seed=2)}
    entries = {name: score_task(models, 256, 0) for name in ("one", "two")}
    adjust(entries)
    held = entries["one"]["paired"]["student-base"]
    assert held["p_holm"] == pytest.approx(min(1, 2 * held["p"]))


def test_an_extra_model_is_set_against_base_and_student() -> None:
    models = {name: made_answers(0.5, seed=seed) for seed, name in enumerate(("base", "student", "other"))}
    assert set(score_task(models, 256, 0)["paired"]) == {"student-base", "other-base", "other-student"}


def test_an_empty_sample_file_is_named(tmp_path: Path) -> None:
    problem = Problem("q", "1 + 1 = ?", "2", "math", "made", "CC0")
    (tmp_path / "sums.student.samples-00000.jsonl").touch()
    with (
        Store(tmp_path, "sums.student.samples") as store,
        pytest.raises(StageError, match=r"no sample .* in sums.student.samples-00000.jsonl.*FORCE=1"),
    ):
        read_answers(store, [problem], 4)
