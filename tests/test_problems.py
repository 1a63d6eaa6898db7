"""The problems stage on files: each reason occurs, the files add up, the eval tasks stay out."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import WorkerFlags
from pipeline.problems.sources import is_reserved
from pipeline.problems.stage import run, weighted_sizes
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sources import FileSource
from pipeline.run.contract import read_manifest
from pipeline.verify.table import VERSIONS
from tests.filter_fixtures import context_of, make_problem, make_recipe, read_rows

__all__ = ["context_of"]

MakeContext = Callable[[Recipe], Context]

ONE = WorkerFlags(workers=1)

NOUNS = [
    "apples",
    "brooms",
    "candles",
    "dwarves",
    "engines",
    "feathers",
    "goblets",
    "hammers",
    "icicles",
    "jackets",
    "kettles",
    "lanterns",
]


def free_questions(count: int) -> list[dict[str, str]]:
    """Rows whose questions no rule takes for each other, none of them reserved."""
    rows: list[dict[str, str]] = []
    for first, second in itertools.permutations(NOUNS, 2):
        number = len(first) + 7 * len(second)
        question = f"{first} {second} {first[::-1]}: {number} {second[::-1]}, and what is one more?"
        if not is_reserved(question) and len(rows) < count:
            rows.append({"question": question, "answer": str(number + 1)})
    return rows


def reserved_question() -> dict[str, str]:
    number = next(n for n in range(1000) if is_reserved(f"What is {n} plus one?"))
    return {"question": f"What is {number} plus one?", "answer": str(number + 1)}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def conserve(directory: Path) -> None:
    """in == kept + dropped, counted from the files."""
    manifest = read_manifest(directory)
    assert manifest is not None
    kept, dropped = read_rows(directory / "problems.jsonl"), read_rows(directory / "dropped.jsonl")
    assert manifest.counts.num_in == len(kept) + len(dropped)
    assert manifest.counts.kept == len(kept)
    assert manifest.counts.dropped == Counter(row["reason"] for row in dropped)


def test_every_row_is_kept_or_dropped_for_a_reason(context_of: MakeContext, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = free_questions(30)
    held = "How many of the blue marbles that Ann holds are left when she has given two to Bob?"
    assert not is_reserved(held)
    rows += [
        rows[0],
        reserved_question(),
        {"question": "What is the empty sum, if anything?", "answer": ""},
        {"question": "", "answer": "1"},
        {"question": "Which number is not one of these at all?", "answer": "}"},
        {"question": held, "answer": "3"},
    ]
    task = [{"question": held.replace("Ann", "Ann ").replace("?", " ?"), "answer": "3"}]
    source = {"path": write(tmp_path / "train.jsonl", rows), "limit": 25, "licence": "MIT"}
    tasks = [{"path": write(tmp_path / "test.jsonl", task)}]
    context = context_of(make_recipe(problems={"sources": [source]}, eval={"tasks": tasks}))
    run(context, ONE)
    directory = context.directory("problems")
    conserve(directory)
    dropped = read_rows(directory / "dropped.jsonl")
    assert Counter(row["reason"] for row in dropped) == {
        "over_limit": 5,
        "duplicate": 1,
        "reserved": 1,
        "no_answer": 1,
        "no_question": 1,
        "bad_gold": 1,
        "contaminated": 1,
    }
    [contaminated] = [row for row in dropped if row["reason"] == "contaminated"]
    assert contaminated["matched"]["task"] == "test"
    assert {row["licence"] for row in read_rows(directory / "problems.jsonl")} == {"MIT"}
    assert [row["task"] for row in read_rows(directory / "contaminated.jsonl")] == ["test"]
    assert [row["task"] for row in read_rows(directory / "protected.jsonl")] == ["test"]


def test_a_second_run_does_nothing_and_a_changed_file_is_refused(
    context_of: MakeContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "train.jsonl"
    source = {"path": write(path, free_questions(5))}
    context = context_of(make_recipe(problems={"sources": [source]}))
    run(context, ONE)
    with caplog.at_level("INFO"):
        run(context)
    assert "problems: up to date" in caplog.text
    write(path, free_questions(6))
    with pytest.raises(StageError, match=r"inputs\..*train\.jsonl: "):
        run(context)


def test_training_on_eval_questions_fails_unless_they_are_taken_out(
    context_of: MakeContext, tmp_path: Path
) -> None:
    rows = free_questions(5)
    train, test = write(tmp_path / "train.jsonl", rows), write(tmp_path / "test.jsonl", rows[:2])
    sections = {"eval": {"tasks": [{"path": test}]}}
    problems = {"sources": [{"path": train}], "decontaminate": False}
    with pytest.raises(StageError, match=r"2 of 5 training problems are questions of the eval task test"):
        run(context_of(make_recipe(problems=problems, **sections)), ONE)
    context = context_of(make_recipe(name="clean", problems={"sources": [{"path": train}]}, **sections))
    run(context, ONE)
    conserve(context.directory("problems"))
    assert len(read_rows(context.directory("problems") / "problems.jsonl")) == 3


def test_a_gold_that_is_no_list_is_a_bad_gold_of_any(context_of: MakeContext, tmp_path: Path) -> None:
    rows = [{**row, "answer": [row["answer"], "none"]} for row in free_questions(4)]
    rows[1]["answer"], rows[2]["answer"] = "7", "seven"
    source = {"path": write(tmp_path / "train.jsonl", rows), "verifier": "any"}
    context = context_of(make_recipe(problems={"sources": [source]}))
    run(context, ONE)
    conserve(context.directory("problems"))
    dropped = read_rows(context.directory("problems") / "dropped.jsonl")
    assert {(row["gold"], row["reason"]) for row in dropped} == {("7", "bad_gold"), ("seven", "bad_gold")}


def test_a_broken_line_stops_the_stage_and_is_named(context_of: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(free_questions(1)[0]) + "\n{torn")
    context = context_of(make_recipe(problems={"sources": [{"path": str(path)}]}))
    with pytest.raises(RecipeError, match=r"train\.jsonl:2: is not valid JSON"):
        run(context, ONE)
    assert read_manifest(context.directory("problems")) is None
    write(path, free_questions(3))
    run(context, ONE)
    conserve(context.directory("problems"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "What is \ud800?", "answer": "1"}, r"'question' holds half a surrogate pair"),
        ({"question": "What is it?", "answer": "\udfff"}, r"'answer' holds half a surrogate pair"),
        ({"answer": "1", "question": "Which?", "options": 5}, r"'options' holds int, not a list"),
        ({"answer": "1", "question": "Which?", "options": "1 or 2"}, r"'options' holds str, not a list"),
        ({"answer": "1", "question": "Which?", "options": None}, r"'options' holds NoneType, not a list"),
    ],
    ids=["question", "answer", "number for options", "text for options", "null for options"],
)
def test_a_bad_row_is_named_and_leaves_nothing_behind(
    context_of: MakeContext, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = tmp_path / "train.jsonl"
    good = {"question": "Is this one fine?", "answer": "1", "options": ["1", "2"]}
    source: dict[str, Any] = {"path": write(path, [good, row])}
    if "options" in row:
        source |= {"verifier": "choice", "columns": {"options": ["options"]}}
    context = context_of(make_recipe(problems={"sources": [source]}))
    with pytest.raises(
        RecipeError, match=rf"^recipes/small\.yaml: problems\.sources\[0\]: .*train\.jsonl:2: .*{message}"
    ):
        run(context, ONE)
    assert not context.directory("problems").exists()


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (
            {"problems": {"sources": [{"reasoning_gym": "gcd", "size": 1}, {"path": "no.jsonl"}]}},
            "problems.sources[1]",
        ),
        ({"problems": {"sources": [{"reasoning_gym": "gdc", "size": 1}]}}, "problems.sources[0]"),
        ({"problems": {"sources": [{"path": __file__, "verifier": "maths"}]}}, "problems.sources[0]"),
        ({"eval": {"tasks": [{"path": "no.jsonl"}]}}, "eval.tasks[0]"),
        ({"eval": {"tasks": [{"reasoning_gym": "gdc", "size": 1}]}}, "eval.tasks[0]"),
    ],
    ids=[
        "missing file",
        "unknown family",
        "unknown verifier",
        "missing file of a task",
        "unknown family of a task",
    ],
)
def test_a_fault_of_a_source_names_recipe_and_key(
    context_of: MakeContext, section: dict[str, Any], key: str
) -> None:
    with pytest.raises(RecipeError, match="^" + re.escape(f"recipes/small.yaml: {key}: ")):
        run(context_of(make_recipe(**section)), ONE)


def test_a_revision_that_the_recipe_states_is_loaded_beside_one_that_was_resolved(
    context_of: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sources of one data set, one of them pinned."""
    loaded: list[tuple[str | None, str | None]] = []

    def load_dataset(hub: str, subset: str | None, *, split: str, revision: str) -> list[dict[str, str]]:
        loaded.append((subset, revision))
        return free_questions(3)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    sources = [{"hub": "a/b", "subset": "old", "revision": "0" * 40}, {"hub": "a/b", "subset": "new"}]
    context = context_of(make_recipe(problems={"sources": sources}))
    context.run.mkdir(parents=True)
    (context.run / "revisions.json").write_text(json.dumps({"a/b": "1" * 40}))
    run(context, ONE)
    assert loaded == [("old", "0" * 40), ("new", "1" * 40)]


def test_weights_are_proportions_of_what_there_is() -> None:
    problems = {"a": [make_problem(n) for n in range(90)], "b": [make_problem(n) for n in range(50)], "c": []}
    sources = [FileSource(path="a", weight=2.0), FileSource(path="b", weight=1.0), FileSource(path="c")]
    assert weighted_sizes(problems, ["a", "b", "c"], list(sources)) == {"a": 90, "b": 45}


def test_what_is_no_part_of_the_experiment_leaves_it_up_to_date(
    context_of: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, task = (
        {"path": write(tmp_path / f"{name}.jsonl", free_questions(size))}
        for name, size in (("a", 9), ("b", 3))
    )
    recipe = make_recipe(problems={"sources": [source]}, eval={"tasks": [task]})
    context = context_of(recipe)
    run(context, ONE)
    defaults: dict[str, Any] = {"verifier": "math", "columns": {"metadata": []}, "weight": None}
    spelled = make_recipe(
        problems={"sources": [{**source, **defaults}], "decontaminate": True},
        eval={"tasks": [{**task, **defaults}]},
    )
    monkeypatch.setitem(VERSIONS, "newest", "1")
    with caplog.at_level("INFO"):
        run(replace(context, recipe=spelled))
    assert "problems: up to date" in caplog.text
    monkeypatch.setitem(VERSIONS, "math", "999")
    with pytest.raises(StageError, match=r'config\.verifiers\.math: "\d+" -> "999"'):
        run(context)


def test_a_source_that_leaves_no_problem_is_corrected_and_run_again(
    context_of: MakeContext, tmp_path: Path
) -> None:
    path = tmp_path / "train.jsonl"
    context = context_of(make_recipe(problems={"sources": [{"path": write(path, [reserved_question()])}]}))
    with pytest.raises(StageError, match=r"none of 1 problems is left \(dropped: {'reserved': 1}\)"):
        run(context, ONE)
    write(path, free_questions(3))
    run(context, ONE)
    conserve(context.directory("problems"))
