"""filter.select.prefer: likely and surprising, with the embedded base as the model that weighs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Context
from pipeline.errors import StageError
from pipeline.records import Tokens, Trace, to_json
from students.likelihood import Weighed, teacher_sum, weigher
from tests.filter_fixtures import (
    Stages,
    filtered_run,
    make_problem,
    make_recipe,
    make_trace,
    make_verdict,
    read_rows,
)

# of each problem three right traces: in the base's own notation, in words that it never saw, and between
THINKING = ["1 + 1 = 2", "zzzz qqqq zzzz", "one and one"]


def stages_with(tokens: Tokens | None = None) -> Stages:
    problems = [make_problem(number) for number in range(1, 5)]
    traces: list[Trace] = []
    for problem in problems:
        for sample, thinking in enumerate(THINKING):
            trace = make_trace(problem, sample, thinking=thinking)
            # the teacher finds the third one certain, so that there its gap to the base is the largest
            held = tokens and replace(tokens, logprobs=[0.0 if sample == 2 else -90.0] * len(tokens.ids))
            traces.append(replace(trace, tokens=held))
    verdicts = [to_json(make_verdict(p, sample)) for p in problems for sample in range(len(THINKING))]
    return Stages(problems, list(map(to_json, traces)), verdicts)


def filtered(runs: Path, prefer: str, stages: Stages, unsolved: str = "drop", **generate: Any) -> Context:
    select = {"per_problem": 1, "prefer": prefer, "unsolved": unsolved}
    recipe = make_recipe(filter={"rules": ["finished", "correct"], "select": select}, generate=generate)
    return filtered_run(recipe, runs, stages, make_weigher=weigher)


def test_the_likely_trace_is_the_one_that_the_base_would_write(tmp_path: Path) -> None:
    context = filtered(tmp_path / "runs", "likely", stages_with())
    directory = context.directory("filter")
    assert {row["sample"] for row in read_rows(directory / "kept.jsonl")} == {0}
    assert {row["reason"] for row in read_rows(directory / "dropped.jsonl")} == {"not_preferred"}
    manifest = context.require("filter", "the test")
    weights = manifest.notes["weights"]
    assert weights["mean_of_kept"] > weights["mean_of_passed"]
    assert manifest.config["weighed_by"] == context.base.identity


def test_the_surprising_trace_is_likelier_to_the_teacher_than_to_the_base(tmp_path: Path) -> None:
    stages = stages_with(Tokens([1, 2], [0.0, 0.0]))
    context = filtered(tmp_path / "runs", "surprising", stages, keep_tokens=True)
    assert {row["sample"] for row in read_rows(context.directory("filter") / "kept.jsonl")} == {2}


def test_of_wrong_traces_too_the_likely_one_is_kept(tmp_path: Path) -> None:
    """Of a problem that no trace solves; the first sample is the one that the base would not write."""
    problem, solved = make_problem(1), make_problem(2)
    rows = [make_trace(problem, sample, thinking=THINKING[1 - sample]) for sample in range(2)]
    verdicts = [make_verdict(problem, sample, "wrong") for sample in range(2)] + [make_verdict(solved, 0)]
    traces = [*rows, make_trace(solved, 0, thinking=THINKING[0])]
    stages = Stages([problem, solved], list(map(to_json, traces)), list(map(to_json, verdicts)))
    context = filtered(tmp_path / "runs", "likely", stages, "keep_one")
    kept = read_rows(context.directory("filter") / "kept.jsonl")
    assert {(row["problem_id"], row["sample"]) for row in kept} == {(problem.id, 1), (solved.id, 0)}
    assert context.require("filter", "the test").notes["unsolved"] == 1


def test_a_trace_without_its_teachers_word_is_not_weighed_against_it() -> None:
    assert teacher_sum(Weighed(tokens=Tokens([1, 2], [-1.0, -0.5]))) == -1.5
    with pytest.raises(StageError, match="holds no log-probabilities of its teacher"):
        teacher_sum(Weighed())


def test_a_preference_without_a_model_names_none(tmp_path: Path) -> None:
    context = filtered(tmp_path / "runs", "first", stages_with())
    manifest = context.require("filter", "the test")
    assert "weighed_by" not in manifest.config
    assert "weights" not in manifest.notes
