"""Problems that no trace solves: what is kept of them, how it is counted, and the arm that an ablation makes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.context import Context, load_context
from pipeline.errors import RecipeError
from pipeline.filter.funnel import show_funnel
from pipeline.filter.stage import run
from pipeline.flags import WorkerFlags
from pipeline.records import Status, to_json
from pipeline.report.ablate import ablate
from pipeline.run.contract import Manifest
from tests.filter_fixtures import (
    Stages,
    filtered_run,
    make_problem,
    make_recipe,
    make_trace,
    make_verdict,
    read_rows,
    write_stages,
)

# of each problem its traces in order of sample: (status, finish reason, words of thinking)
TRIES: dict[int, list[tuple[Status, str, int]]] = {
    0: [("wrong", "stop", 9), ("correct", "stop", 3)],
    1: [("wrong", "stop", 9), ("wrong", "stop", 2), ("wrong", "length", 1)],
    2: [("unverifiable", "stop", 2), ("wrong", "stop", 5)],
    3: [("unverifiable", "stop", 2)],
    4: [("wrong", "length", 2)],
    5: [("correct", "length", 2), ("wrong", "stop", 2)],
    6: [("correct", "stop", 2), ("correct", "stop", 4)],
}


def stages() -> Stages:
    problems = [make_problem(number) for number in TRIES]
    traces, verdicts = [], []
    for problem, tries in zip(problems, TRIES.values(), strict=True):
        for sample, (status, finish, words) in enumerate(tries):
            trace = make_trace(problem, sample, None if status == "correct" else "0.5", "word " * words)
            traces.append(to_json(replace(trace, finish_reason=finish)))
            verdicts.append(to_json(make_verdict(problem, sample, status)))
    # what a trace says must not be taken for the mark of the rule that drops it
    traces[0] = traces[0].replace("word ", r", \"rule\": \"x\" ", 1)
    return Stages(problems, traces, verdicts)


def filtered(tmp_path: Path, workers: int = 1, **select: Any) -> tuple[Context, Manifest]:
    rules = ["finished", "closed_thinking", "correct", {"max_tokens": {"limit": 200}}]
    recipe = make_recipe(filter={"rules": rules, "select": {"per_problem": 1, **select}})
    context = filtered_run(recipe, tmp_path / "runs", stages(), workers)
    manifest = context.require("filter", "the test")
    return context, manifest


def kept(context: Context) -> dict[int, tuple[int, bool]]:
    """By problem the sample that was kept, and whether it is marked as unsolved."""
    numbers = {make_problem(number).id: number for number in TRIES}
    rows = read_rows(context.directory("filter") / "kept.jsonl")
    return {numbers[row["problem_id"]]: (row["sample"], row.get("unsolved", False)) for row in rows}


def test_one_wrong_trace_is_kept_where_none_is_right(tmp_path: Path) -> None:
    """The preferred one, and none that another rule drops. A right trace that was cut solves nothing, and what a
    verifier cannot tell is not wrong."""
    context, manifest = filtered(tmp_path, prefer="shortest", unsolved="keep_one")
    assert kept(context) == {0: (1, False), 1: (1, True), 2: (1, True), 5: (1, True), 6: (0, False)}
    assert manifest.notes["unsolved"] == 3
    assert manifest.counts.dropped == {"wrong": 2, "unverifiable": 2, "truncated": 3, "not_preferred": 1}
    rows = read_rows(context.directory("filter") / "dropped.jsonl")
    assert all(row["rule"] and "unsolved" not in row for row in rows)
    assert not list(context.directory("filter").glob(".*.jsonl"))


def test_by_default_no_wrong_trace_is_kept(tmp_path: Path) -> None:
    context, manifest = filtered(tmp_path)
    assert kept(context) == {0: (1, False), 6: (0, False)}
    assert "unsolved" not in manifest.notes
    assert "unsolved" not in (context.directory("filter") / "kept.jsonl").read_text()
    assert "unsolved" not in str(manifest.config)  # runs that are finished stay up to date


@pytest.mark.parametrize("prefer", ["first", "random"])
def test_the_same_traces_with_two_workers(tmp_path: Path, prefer: str) -> None:
    first, _ = filtered(tmp_path / "1", prefer=prefer, unsolved="keep_one")
    second, _ = filtered(tmp_path / "2", workers=2, prefer=prefer, unsolved="keep_one")
    files = [context.directory("filter") / "kept.jsonl" for context in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes()
    if prefer == "first":
        assert kept(first)[1] == (0, True)


def test_other_rules_still_drop_a_wrong_trace(tmp_path: Path) -> None:
    """Whether they stand before the rule correct or behind it: sample 0 of problem 1 is too long."""
    rules = ["finished", "correct", {"max_tokens": {"limit": 45}}]
    recipe = make_recipe(filter={"rules": rules, "select": {"prefer": "first", "unsolved": "keep_one"}})
    context = filtered_run(recipe, tmp_path / "runs", stages())
    assert kept(context)[1] == (1, True)
    tokens = [row["trained_tokens"] for row in read_rows(context.directory("filter") / "kept.jsonl")]
    assert max(tokens) <= 45


def test_the_share_kept_is_counted_by_pass_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, plain = filtered(tmp_path / "plain")
    assert plain.notes["by_pass_rate"] == {
        "0%": {"problems": 5, "traces": 9, "kept": 0, "problems_kept": 0},
        "26-50%": {"problems": 1, "traces": 2, "kept": 1, "problems_kept": 1},
        "100%": {"problems": 1, "traces": 2, "kept": 1, "problems_kept": 1},
    }
    context, more = filtered(tmp_path / "more", unsolved="keep_one")
    assert more.notes["by_pass_rate"]["0%"] == {"problems": 5, "traces": 9, "kept": 3, "problems_kept": 3}
    show_funnel(context)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "kept, wrong 3 23.1% 3 3 . . . . ." in lines
    assert "kept 2 15.4% 2 . . 1 . . 1" in lines


def test_an_ablation_keeps_unsolved_problems_at_the_parents_budget(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    recipe = make_recipe(filter={"select": {"per_problem": 1}})
    path.write_text(yaml.safe_dump(recipe.model_dump(exclude_defaults=True), sort_keys=False))
    parent = load_context(path, tmp_path / "runs")
    write_stages(parent.runs, stages())
    run(parent, WorkerFlags(workers=1))
    sibling = ablate(parent, path, [("keep-unsolved", "keep_one")])
    child = load_context(sibling, parent.runs)
    manifest = parent.require("filter", "the test")
    expected = parent.recipe.model_dump()
    expected["name"] = "small-keep-unsolved"
    expected["filter"]["select"] |= {"unsolved": "keep_one", "max_tokens": manifest.usage.trained_tokens}
    assert child.recipe.model_dump() == expected
    run(child, WorkerFlags(workers=1))
    found = child.require("filter", "the test")
    assert found.notes["unsolved"] == sum(mark for _, mark in kept(child).values()) > 0
    assert (found.usage.trained_tokens or 0) <= (manifest.usage.trained_tokens or 0)


def test_without_the_rule_correct_there_is_nothing_to_except(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unsolved: keep_one is an exception from the rule correct"):
        make_recipe(filter={"rules": ["finished"], "select": {"unsolved": "keep_one"}})
