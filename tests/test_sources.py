"""Sources and eval tasks: procedural families with their reservation, files with their columns, errors."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.problems.sources import is_reserved, read_source, verifiers_in_use
from pipeline.problems.tasks import task_problems
from pipeline.recipe.sources import (
    Columns,
    FileSource,
    HubSource,
    Problems,
    ProceduralSource,
    Source,
    Task,
    task_name,
)
from pipeline.records import Problem
from pipeline.run.revisions import latest_commit
from pipeline.verify.table import VERSIONS
from tests.filter_fixtures import make_recipe

SUMS = ProceduralSource(reasoning_gym="chain_sum", size=200, config={"min_terms": 2, "max_terms": 3})

ROW = {"question": "What is 1 + 1?", "answer": "2"}


def problems_of(source: Source, seed: int = 0) -> list[Problem]:
    """The rows of a source that are problems."""
    return [item for item in read_source(source, seed) if isinstance(item, Problem)]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_training_and_evaluation_share_no_question() -> None:
    training = problems_of(SUMS)
    evaluation = task_problems(SUMS, None, 0)
    assert len({p.question for p in training}) == len({p.question for p in evaluation.problems}) == 200
    assert not any(is_reserved(p.question) for p in training)
    assert all(is_reserved(p.question) for p in evaluation.problems)
    assert evaluation.procedural
    assert evaluation.name == "chain_sum"
    problem = training[0]
    assert problem.verifier == "reasoning_gym"
    assert problem.metadata["family"] == "chain_sum"
    assert problem.metadata["entry"]["answer"] == problem.gold
    assert "Apache-2.0" in problem.licence


def test_the_seed_decides_the_questions() -> None:
    assert [p.id for p in problems_of(SUMS)] == [p.id for p in problems_of(SUMS)]
    far = [p.id for p in problems_of(SUMS, 10**6)]
    assert len(set(far) & {p.id for p in problems_of(SUMS)}) < 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reasoning_gym": "chain_summ"}, r"unknown .*'chain_summ'; did you mean 'chain_sum'\?"),
        ({"reasoning_gym": "countdown"}, r"'countdown' is refused: its scorer calls parse_expr"),
        ({"config": {"min_term": 2}}, r"config\.min_term: unknown key; did you mean 'min_terms'\?"),
        ({"config": {"min_terms": 9}}, r"config: reasoning-gym refuses it: max_terms must be >= min_terms"),
        ({"config": {"min_terms": "two"}}, r"config: reasoning-gym refuses it: .*'str' and 'int'"),
        ({"config": {"seed": 1}}, r"config\.seed: is decided by the recipe's own seed"),
        (
            {"config": {"max_terms": 2, "max_digits": 1}, "size": 5000},
            r"has only 175 distinct questions free for training .* size asks for 5,000\. Lower size",
        ),
    ],
    ids=["unknown", "refused", "key", "range", "type", "seed", "exhausted"],
)
def test_a_family_that_cannot_serve_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        problems_of(SUMS.model_copy(update=change))


@pytest.mark.parametrize(
    ("answer", "cell", "gold"),
    [
        ("plain", " 42 ", "42"),
        ("hashes", "6 * 7 = <<6*7=42>>42\n#### 42", "42"),
        ("boxed", "so $\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("plain", 42, "42"),
        ("hashes", "6 * 7 = 42", None),
        ("boxed", "no box", None),
        ("plain", "", None),
        ("plain", None, None),
        ("plain", 0.5, "0.5"),
        ("plain", 10**30, "1" + "0" * 30),
        ("plain", float("nan"), None),
        ("plain", {"value": 42}, None),
        ("hashes", "so it is\n#### 1,234", "1,234"),
        ("hashes", "####-7", "-7"),
        ("hashes", "#### 3\nThat is all.", "3"),
        ("hashes", "####  ", None),
        ("boxed", "first \\boxed{1}, then $\\boxed 5$", "5"),
        ("boxed", "\\boxed{\\text{(A)} \\frac{1}{{2}}}", "\\text{(A)} \\frac{1}{{2}}"),
        ("boxed", "\\boxed{\\boxed{3}}", "3"),
        ("boxed", "\\boxed{\\boxed{3} + 1}", "{3} + 1"),
        ("boxed", "\\boxed{", None),
        ("boxed", "\\boxed{}", None),
    ],
)
def test_the_gold_answer_is_taken_out_of_its_column(
    tmp_path: Path, answer: Any, cell: Any, gold: str | None
) -> None:
    path = write(tmp_path / "rows.jsonl", {"q": "What are 6 * 7?", "a": cell, "level": 3})
    columns = Columns(question="q", gold="a", metadata=["level"])
    [item] = read_source(FileSource(path=path, columns=columns, answer=answer, licence="MIT"), 0)
    if gold is None:
        assert not isinstance(item, Problem)
        assert (item.reason, item.where) == ("no_answer", f"{path}:1")
    else:
        assert isinstance(item, Problem)
        assert (item.gold, item.licence, item.source, item.metadata) == (gold, "MIT", "rows", {"level": 3})


@pytest.mark.parametrize(
    ("cell", "gold"),
    [(["1", "2"], '["1", "2"]'), ([None, "2"], '["2"]'), ([1, 0.5], "[1, 0.5]"), ([], None), ([None], None)],
    ids=str,
)
def test_a_list_holds_several_golds(tmp_path: Path, cell: Any, gold: str | None) -> None:
    path = write(tmp_path / "rows.jsonl", {"question": "Name a root!", "answer": cell})
    [item] = read_source(FileSource(path=path, verifier="any"), 0)
    assert (item.gold if isinstance(item, Problem) else None) == gold


def test_a_list_is_no_gold_of_a_verifier_of_one(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW, {"question": "Name a root!", "answer": ["1", "2"]})
    with pytest.raises(
        RecipeError, match=r"rows\.jsonl:2: .*'answer' holds a list, which verifier math .* any"
    ):
        problems_of(FileSource(path=path))


@pytest.mark.parametrize(
    "value", [datetime.date(2026, 1, 1), b"\xff", float("nan")], ids=["date", "bytes", "nan"]
)
def test_metadata_that_json_cannot_hold_is_named(tmp_path: Path, value: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    path = str(tmp_path / "rows.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**ROW, "extra": value}]), path)
    columns = Columns(metadata=["extra"])
    with pytest.raises(RecipeError, match=r"rows\.parquet:1: the column 'extra' holds what JSON cannot"):
        problems_of(FileSource(path=path, columns=columns))
    assert len(problems_of(FileSource(path=path))) == 1


def test_parquet_reads_as_jsonl_does(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(20)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    lines = write(tmp_path / "rows.jsonl", *rows)
    one = problems_of(FileSource(path=str(tmp_path / "rows.parquet")))
    assert one == problems_of(FileSource(path=lines))
    assert 0 < len(one) <= 20


def test_options_become_a_lettered_question(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"q": "Largest?", "right": "9", "x": "1", "y": "5", "z": "7"})
    columns = Columns(question="q", gold="right", options=["right", "x", "y", "z"])
    [problem] = task_problems(FileSource(path=path, columns=columns, verifier="choice"), None, 0).problems
    letter = next(letter for letter, text in problem.metadata["options"].items() if text == "9")
    assert problem.gold == letter
    assert f"{letter}. 9" in problem.question


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        (
            "rows.jsonl",
            [ROW, '{"question": "torn\n'],
            r"rows\.jsonl:2: is not valid JSON .* Correct or remove that line",
        ),
        ("rows.jsonl", [ROW, "[1]\n"], r"rows\.jsonl:2: holds list, not an object"),
        (
            "rows.jsonl",
            [{"questions": "?", "answer": "2"}],
            r"no column 'question'; did you mean 'questions'\?",
        ),
        ("rows.xlsx", ["a,b\n"], r"files of rows are \.jsonl, .*, found '\.xlsx'"),
        ("rows.parquet", ["not parquet\n"], r"rows\.parquet: cannot be read as Parquet"),
    ],
    ids=["torn", "list", "column", "kind", "parquet"],
)
def test_a_faulty_file_names_file_and_line(tmp_path: Path, name: str, rows: list[Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        problems_of(FileSource(path=write(tmp_path / name, *rows)))


def test_a_missing_file_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"a{300}: there is no such file; .* holds: nothing"):
        problems_of(FileSource(path=str(tmp_path / ("a" * 300))))
    write(tmp_path / "other.jsonl", ROW)
    with pytest.raises(RecipeError, match=r"rows\.jsonl: there is no such file; .* holds: other\.jsonl"):
        problems_of(FileSource(path=str(tmp_path / "rows.jsonl")))


def test_a_hub_data_set_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match=r"hub: nobody/nothing: the data set cannot be loaded.*`path:`"):
        problems_of(HubSource(hub="nobody/nothing", revision="0" * 40))


def test_tasks_must_have_questions_and_names_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"question": "?", "answer": ""})
    with pytest.raises(RecipeError, match=r"eval task rows: .*rows\.jsonl:1: no answer in its column"):
        task_problems(FileSource(path=path), None, 0)
    with pytest.raises(RecipeError, match="eval task none: has no question"):
        task_problems(FileSource(path=write(tmp_path / "none.jsonl")), None, 0)


def tasks_of(*tasks: Task) -> list[str]:
    """The names of a recipe's eval tasks."""
    return [
        task_name(task)
        for task in make_recipe(
            eval={"tasks": [task.model_dump(exclude_defaults=True) for task in tasks]}
        ).eval.tasks
    ]


def test_each_task_has_a_name_of_its_own() -> None:
    with pytest.raises(RecipeError, match="two tasks are called 'chain_sum'; give one of them a `name:`"):
        tasks_of(SUMS, SUMS)
    assert tasks_of(SUMS, SUMS.model_copy(update={"name": "long"})) == ["chain_sum", "long"]


@pytest.mark.parametrize("stem", ["my tests", "a" * 101, "-x"], ids=["space", "long", "dash"])
def test_a_file_whose_name_cannot_name_a_task_needs_one(stem: str) -> None:
    task = FileSource(path=f"{stem}.jsonl")
    with pytest.raises(RecipeError, match=r"a task is called '.*give it a `name:`"):
        tasks_of(task)
    assert tasks_of(task.model_copy(update={"name": "mine"})) == ["mine"]


def test_a_question_that_a_task_repeats_is_asked_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "rows.jsonl", ROW, ROW, {**ROW, "answer": "3"})
    [problem] = task_problems(FileSource(path=path), None, 0).problems
    assert problem.gold == "2"
    assert "eval task rows: 1 rows repeat an earlier question with another answer" in caplog.text


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (SUMS, {"reasoning_gym"}),
        (FileSource(path="a"), {"math"}),
        (FileSource(path="a", verifier="any"), {"any", "math"}),
        (FileSource(path="a", verifier="any", columns=Columns(metadata=["verifier"])), set(VERSIONS)),
    ],
    ids=["procedural", "math", "any", "any that its rows name"],
)
def test_the_verifiers_in_use(source: Source, names: set[str]) -> None:
    assert verifiers_in_use(Problems(sources=[source])) == {name: VERSIONS[name] for name in sorted(names)}


@pytest.mark.parametrize("name", ["not a hub id!", "a/b/c"])
def test_a_name_that_the_hub_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"hub: {name}: .* cannot be resolved \(Repo id must .*`path:`"):
        latest_commit(name)
