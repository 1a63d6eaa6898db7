"""Rows of code problems: each data set's form becomes a question and tests that tell right from wrong programs."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.flags import WorkerFlags
from pipeline.problems.held import Drops, Held
from pipeline.problems.programs import MAX_CASES, spread
from pipeline.problems.sources import Rejected, row_problems, verifiers_in_use
from pipeline.problems.stage import drop_bad_golds, run
from pipeline.problems.tasks import task_problems
from pipeline.recipe.cards import task_card
from pipeline.recipe.sources import CardTask, FileSource, Problems
from pipeline.recipe.strict_yaml import validate
from pipeline.records import Problem
from pipeline.verify import verify
from pipeline.verify.table import VERSIONS
from tests.conftest import ROOT
from tests.filter_fixtures import make_context, make_recipe, read_rows

CODE = ROOT / "tests/data/code"

STUB = 'def shift(word: str, by: int) -> str:\n    """Rotate a word to the left."""\n'
HUMANEVAL = {
    "prompt": STUB,
    "entry_point": "shift",
    "canonical_solution": "    return word[by:] + word[:by]\n",
    "test": "def check(candidate):\n    assert candidate('abc', 1) == 'bca'\n    assert candidate('', 4) == ''\n",
}
MBPP = {
    "prompt": "Write a function to halve a number.",
    "code": "def halve(n):\n    return n / 2",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(halve(3), 1.5)", "assert halve(0) == 0"],
}
STDIO = {
    "question": "Print the sum of the numbers of a line.",
    "input_output": json.dumps({"inputs": ["1 2\n", "4\n"], "outputs": ["3\n", "4\n"]}),
    "solutions": json.dumps(["print 3", "print(sum(map(int, input().split())))"]),
}
BY_CALL = {
    "question": "Give the ends of a list.",
    "input_output": json.dumps(
        {"fn_name": "ends", "inputs": [[[5, 6, 7]], [[1]]], "outputs": [[[5, 7]], [[1, 1]]]}
    ),
    "solutions": json.dumps(["def ends(items):\n    return items[0], items[-1]"]),
    "starter_code": "",
}
METHOD = {
    **BY_CALL,
    "starter_code": "class Solution:\n    def ends(self, items):\n        ",
    "solutions": json.dumps(
        ["class Solution:\n    def ends(self, items):\n        return [items[0], items[-1]]"]
    ),
}
CONTEST = {
    "question_content": "Double the number.",
    "starter_code": "",
    "metadata": "{}",
    "contest_date": "2025-02-08T00:00:00",
    "public_test_cases": json.dumps([{"input": "2\n", "output": "4.0\n", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "0.5\n", "output": "1.0\n", "testtype": "stdin"}]),
}
LEETCODE = {
    **CONTEST,
    "starter_code": "class Solution:\n    def doubled(self, n: int, times: int) -> int:\n        ",
    "metadata": json.dumps({"func_name": "doubled"}),
    "public_test_cases": json.dumps([{"input": "2\n3", "output": "16", "testtype": "functional"}]),
    "private_test_cases": json.dumps([{"input": "1\n0", "output": "1", "testtype": "functional"}]),
}
COLUMNS = {
    "humaneval": {"question": "prompt", "tests": "test", "solution": "canonical_solution"},
    "mbpp": {"question": "prompt", "tests": "test_list", "solution": "code"},
    "input_output": {"tests": "input_output", "solution": "solutions"},
    "livecodebench": {"question": "question_content", "tests": ["public_test_cases", "private_test_cases"]},
    "plain": {"tests": "tests"},
}


def packed(value: object) -> str:
    """As LiveCodeBench packs its private cases."""
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def source_of(path: Path, rows: list[dict[str, Any]], form: str, **more: Any) -> FileSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"path": str(path), "columns": COLUMNS[form], "answer": form, "verifier": "code", **more}
    return validate(FileSource, values, "source")


def items_of(tmp_path: Path, form: str, *rows: dict[str, Any], **more: Any) -> list[Problem | Rejected]:
    return list(row_problems(source_of(tmp_path / "rows.jsonl", list(rows), form, **more), "rows"))


def problem_of(tmp_path: Path, form: str, row: dict[str, Any]) -> Problem:
    [item] = items_of(tmp_path, form, row)
    assert isinstance(item, Problem), item
    return item


# form, row, a right program, a wrong program, what the question must say
CASES: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    "humaneval": (
        "humaneval",
        HUMANEVAL,
        "def shift(word, by):\n    return word[by:] + word[:by]",
        "def shift(word, by):\n    return word",
        STUB,
    ),
    "mbpp": (
        "mbpp",
        MBPP,
        "halve = lambda n: n / 2",
        "def halve(n):\n    return n // 2",
        "assert halve(0) == 0",
    ),
    "lines": ("input_output", STDIO, "print(sum(map(int, input().split())))", "print(input())", "sum of the"),
    "calls": (
        "input_output",
        BY_CALL,
        "def ends(items):\n    return items[0], items[-1]",
        "def ends(items):\n    return items[:2]",
        "def ends(",
    ),
    "method": (
        "input_output",
        METHOD,
        "class Solution:\n    def ends(self, items):\n        return [items[0], items[-1]]",
        "class Solution:\n    def ends(self, items):\n        return items[0]",
        "class Solution:",
    ),
    "contest": (
        "livecodebench",
        CONTEST,
        "print(2 * float(input()))",
        "print(2 * int(input()))",
        "Double the",
    ),
    "leetcode": (
        "livecodebench",
        LEETCODE,
        "class Solution:\n    def doubled(self, n, times):\n        return n * 2**times",
        "class Solution:\n    def doubled(self, n, times):\n        return n + n * times * 2 + 2",
        "def doubled(self, n: int, times: int)",
    ),
    "no arguments": (
        "livecodebench",
        {
            **LEETCODE,
            "public_test_cases": json.dumps([{"input": "\n", "output": "[1]", "testtype": "functional"}]),
            "private_test_cases": json.dumps([{"input": "", "output": "[1]", "testtype": "functional"}]),
        },
        "class Solution:\n    def doubled(self) -> List[int]:\n        return list(deque([pow(1, 2, 3)]))",
        "class Solution:\n    def doubled(self) -> List[int]:\n        return []",
        "def doubled(",
    ),
    "starter's types": (
        "input_output",
        {
            **METHOD,
            "starter_code": "class Solution:\n    def ends(self, items: List[int]) -> List[int]:\n        ",
        },
        "class Solution:\n    def ends(self, items: List[int]) -> Optional[List[int]]:\n        return [min(items[:1], default=inf), reduce(lambda a, b: b, items)]",
        "class Solution:\n    def ends(self, items: Undefined) -> List[int]:\n        return [items[0], items[-1]]",
        "List[int]",
    ),
    "deep": (
        "input_output",
        BY_CALL,
        "def depth(n):\n    return n and 1 + depth(n - 1)\ndef ends(items):\n    depth(5000)\n    return items[0], items[-1]",
        "from math import *\ndef ends(items):\n    return deque(items)[0]",
        "def ends(",
    ),
    "imports as JSON": (
        "mbpp",
        {
            **MBPP,
            "test_imports": json.dumps(["import math as m"]),
            "test_list": ["assert m.isclose(halve(3), 1.5)"],
        },
        "halve = lambda n: n / 2",
        "def halve(n):\n    return n // 2",
        "isclose",
    ),
    "plain": (
        "plain",
        {"question": "Echo.", "tests": {"kind": "stdio", "cases": [{"input": "a b", "output": "a b"}]}},
        "print(input())",
        "print()",
        "Echo.",
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_form_makes_tests_that_tell_right_from_wrong(name: str, tmp_path: Path) -> None:
    form, row, right, wrong, said = CASES[name]
    problem = problem_of(tmp_path, form, row)
    assert said in problem.question
    assert problem.verifier == "code"
    given = {key: value for key, value in problem.metadata.items() if key != "solution"}
    for program, status in ((right, "correct"), (wrong, "wrong")):
        verdict = verify(f"So:\n```python\n{program}\n```", problem.gold, verifier="code", metadata=given)
        assert verdict.status == status, verdict


def test_a_gold_is_held_to_its_own_solution_or_else_to_a_program_that_does_nothing(tmp_path: Path) -> None:
    """bad_gold: the solution fails, the tests do not run, or they let everything pass."""
    broken = {**HUMANEVAL, "prompt": STUB.replace("left", "right"), "canonical_solution": "    return word\n"}
    problems = [
        problem_of(tmp_path, form, row) for form, row in (("humaneval", HUMANEVAL), ("humaneval", broken))
    ]
    free = [
        {"question": "Say nothing.", "tests": {"kind": "stdio", "cases": [{"input": "", "output": "\n"}]}},
        {"question": "Say one.", "tests": {"kind": "stdio", "cases": [{"input": "", "output": "1"}]}},
        {
            "question": "Give one.",
            "tests": {"kind": "function", "tests": "assert one() == 1", "entry_point": "one"},
        },
        {
            "question": "Give ones.",
            "tests": {"kind": "function", "tests": "assert one() == ones", "entry_point": "one"},
        },
    ]
    problems += [problem_of(tmp_path, "plain", row) for row in free]
    assert problems[0].metadata["solution"] == STUB + HUMANEVAL["canonical_solution"]
    assert "solution" not in problems[2].metadata
    with Held(tmp_path / "held.jsonl") as held, Drops(tmp_path / "dropped.jsonl") as drops:
        for problem in problems:
            held.append(problem)
        drop_bad_golds(held, drops, 2)
        kept = [problem.question for _, problem in held.living()]
    assert kept == [STUB, "Say one.", "Give one."]
    dropped = read_rows(tmp_path / "dropped.jsonl")
    assert [(drop["reason"], drop["detail"].split(":")[0]) for drop in dropped] == [
        ("bad_gold", "its own solution is wrong"),
        ("bad_gold", "a program that does nothing passes the tests"),
        ("bad_gold", "the tests do not run"),
    ]


@pytest.mark.parametrize(
    ("form", "change", "detail"),
    [
        ("input_output", {"input_output": ""}, "not JSON"),
        ("input_output", {"input_output": "{}"}, "inputs and outputs of the same length"),
        ("input_output", {"input_output": '{"inputs": ["1"], "outputs": []}'}, "of the same length"),
        ("input_output", {"input_output": '{"inputs": [5], "outputs": [5]}'}, "a text is needed, found int"),
        ("input_output", {"input_output": '{"fn_name": "f g", "inputs": [[1]], "outputs": [1]}'}, "'f g'"),
        (
            "input_output",
            {"input_output": '{"fn_name": "f", "inputs": [[NaN]], "outputs": [1]}'},
            "nan is no plain",
        ),
        ("mbpp", {"test_list": []}, "a list of asserts"),
        ("mbpp", {"test_imports": 3}, "test_imports must be a list"),
        (
            "input_output",
            {"input_output": '{"fn_name": "class", "inputs": [[1]], "outputs": [1]}'},
            "a function cannot be called 'class'",
        ),
        ("livecodebench", {"private_test_cases": "!!"}, "neither JSON nor packed"),
        ("livecodebench", {"private_test_cases": packed("a")[:-4]}, "packed cases that are cut"),
        (
            "livecodebench",
            {"private_test_cases": '[{"input": "1"}]'},
            "each case has input, output and testtype",
        ),
        (
            "livecodebench",
            {"private_test_cases": LEETCODE["private_test_cases"]},
            "all functional, or all of",
        ),
        ("plain", {"tests": "assert f() == 1"}, "not JSON"),
    ],
)
def test_a_row_without_tests_is_dropped_with_the_reason(
    form: str, change: dict[str, Any], detail: str, tmp_path: Path
) -> None:
    row = {"plain": CASES["plain"][1], "mbpp": MBPP, "input_output": STDIO, "livecodebench": CONTEST}[form]
    [item] = items_of(tmp_path, form, row | change)
    assert isinstance(item, Rejected)
    assert item.reason == "no_tests"
    assert detail in item.detail


def test_private_cases_are_read_out_of_a_pickle_that_is_never_loaded(tmp_path: Path) -> None:
    row = CONTEST | {"private_test_cases": packed(CONTEST["private_test_cases"])}
    assert problem_of(tmp_path, "livecodebench", row) == problem_of(tmp_path, "livecodebench", CONTEST)


class Harm:
    """What a pickle can do when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_of_more_than_a_text_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "harmed"
    row = CONTEST | {"private_test_cases": packed(Harm(mark))}
    with pytest.raises(RecipeError, match=r"rows\.jsonl:1: the packed cases are a pickle of more .*copy"):
        items_of(tmp_path, "livecodebench", row)
    assert not mark.exists()


def test_a_window_keeps_the_rows_of_its_dates(tmp_path: Path) -> None:
    dates = ["2025-01-31T23:00:00", "2025-02-01", "2025-04-30T09:30:00", "2025-05-01"]
    rows = [{**CONTEST, "contest_date": day, "question_content": f"Double it, since {day}."} for day in dates]
    path = tmp_path / "copy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = task_problems(
        CardTask(task="livecodebench", path=str(path)), task_card("livecodebench"), 0
    ).problems
    assert [problem.question for problem in found] == [
        rows[1]["question_content"],
        rows[2]["question_content"],
    ]
    window = {"column": "contest_date", "since": "2025-05-01"}
    items = items_of(tmp_path, "livecodebench", *rows, window=window)
    assert [item.reason for item in items if isinstance(item, Rejected)].count("outside_window") == 3


@pytest.mark.parametrize(
    ("cell", "held"),
    [
        ("2024-01-31T23:59:59.123456Z", True),
        ("2024-01-31 10:00:00+02:00", True),
        ("2024-02-01", False),
        (1706659200, True),  # 2024-01-31
        (1706659200000, True),
        (1706659200.5, True),
        (1738281600, False),  # 2025-01-31
        (None, None),
        (True, None),
        ("", None),
        ("Aug 5 2023", None),
        ("2024-13-99", None),
        ("2024-01-31 and more", None),
        ("1706659200", None),
        ([2024, 1, 31], None),
        (1e300, None),
    ],
)
def test_a_window_is_of_dates(cell: Any, held: bool | None, tmp_path: Path) -> None:
    window = {"column": "contest_date", "since": "2024-01-01", "before": "2024-02-01"}
    row = CONTEST | {"contest_date": cell}
    if held is None:
        with pytest.raises(
            RecipeError, match=r"rows\.jsonl:1: the window's column 'contest_date': .*is no date"
        ):
            items_of(tmp_path, "livecodebench", row, window=window)
        return
    [item] = items_of(tmp_path, "livecodebench", row, window=window)
    assert isinstance(item, Problem) is held


def test_of_many_cases_some_are_taken_evenly_spread(tmp_path: Path) -> None:
    assert spread(3) == [0, 1, 2]
    chosen = spread(1000)
    assert (len(chosen), chosen[0], chosen[-1]) == (MAX_CASES, 0, 999)
    assert len(set(spread(MAX_CASES + 1))) == MAX_CASES
    numbers = [str(number) for number in range(300)]
    held = json.dumps({"inputs": numbers, "outputs": numbers})
    problem = problem_of(tmp_path, "input_output", STDIO | {"input_output": held})
    assert len(json.loads(problem.gold)["cases"]) == MAX_CASES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verifier": "math"}, "answer: mbpp is not how the gold of verifier math stands in its column"),
        ({"answer": "boxed"}, "answer: boxed is not how the gold of verifier code stands"),
        (
            {"answer": "plain", "verifier": "math"},
            r"columns\.tests and columns\.solution are of verifier code",
        ),
        ({"columns": {"gold": "a", "tests": "b"}}, "name either `gold` or `tests`"),
        ({"columns": {"tests": ["a", "b"]}}, "only answer: livecodebench reads several"),
        ({"window": {"column": "day", "since": "1 May"}}, r"window\.since: .*pattern"),
        ({"window": {"column": "day", "since": "2024-13-01"}}, r"window\.since: .*month"),
        ({"window": {"column": "day"}}, r"window: .*since.*before"),
        (
            {"window": {"column": "day", "since": "2024-02-01", "before": "2024-01-01"}},
            r"window: no day is from 2024-02-01",
        ),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        source_of(tmp_path / "rows.jsonl", [], "mbpp", **change)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    row = {key: value for key, value in HUMANEVAL.items() if key != "entry_point"} | {"entrypoint": "shift"}
    with pytest.raises(RecipeError, match=r"no column 'entry_point'; did you mean 'entrypoint'\?"):
        items_of(tmp_path, "humaneval", row)


def test_a_task_with_a_gold_that_is_none_is_an_error(tmp_path: Path) -> None:
    source = source_of(tmp_path / "rows.jsonl", [{"question": "Echo.", "tests": {"kind": "stdio"}}], "plain")
    with pytest.raises(
        RecipeError, match=r"eval task rows: question 'Echo\.': gold of verifier 'code': `cases`"
    ):
        task_problems(source, None, 0)


def copied(problem: dict[str, Any], names: dict[str, str], question: str) -> dict[str, Any]:
    """A problem of HumanEval as a row of MBPP: other names, another text, its tests as asserts."""
    code, test = problem["prompt"] + problem["canonical_solution"], problem["test"]
    for old, new in names.items():
        code, test = code.replace(old, new), test.replace(old, new)
    asserts = [line.strip() for line in test.splitlines() if line.strip().startswith("assert candidate")]
    entry = names.get(problem["entry_point"], problem["entry_point"])
    listed = [line.replace("candidate", entry) for line in asserts]
    return {"task_id": 0, "prompt": question, "code": code, "test_imports": [], "test_list": listed}


def test_problems_of_programs_are_checked_and_kept_apart_from_their_tasks(tmp_path: Path) -> None:
    """A whole problems stage: a renamed copy of HumanEval/10 goes by its body, another function that has the
    name of HumanEval/18 stays, and so do the 12 of MBPP but for the reserved."""
    held = [json.loads(line) for line in (CODE / "humaneval.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (CODE / "mbpp_sanitized.jsonl").read_text().splitlines()]
    palindrome = next(row for row in held if row["entry_point"] == "make_palindrome")
    names = {"make_palindrome": "complete", "is_palindrome": "mirrored", "beginning_of_suffix": "n"}
    renamed = copied(palindrome, names, "Lengthen a word until it is a mirror of itself.")
    namesake = {
        "task_id": 1,
        "prompt": "Write a function that says how often each of two teams won, given their names.",
        "code": "def how_many_times(games, teams):\n    return [sum(g == t for g in games) for t in teams]",
        "test_imports": [],
        "test_list": ["assert how_many_times(['a', 'b', 'a'], ['a', 'b']) == [2, 1]"],
    }
    source = source_of(tmp_path / "train.jsonl", [*rows, renamed, namesake], "mbpp", name="train")
    task = {"task": "humaneval", "path": str(CODE / "humaneval.jsonl")}
    sources = {"sources": [source.model_dump(exclude_defaults=True)]}
    recipe = make_recipe(problems=sources, eval={"tasks": [task]})
    context = make_context(recipe, tmp_path / "runs")
    run(context, WorkerFlags(workers=2))
    kept = read_rows(context.directory("problems") / "problems.jsonl")
    dropped = read_rows(context.directory("problems") / "dropped.jsonl")
    assert {row["reason"] for row in dropped} <= {"reserved", "contaminated"}
    [found] = [row for row in dropped if row["reason"] == "contaminated"]
    assert (found["rule"], found["matched"]["question"]) == ("body", palindrome["prompt"])
    assert "mirror of itself" in found["question"]
    assert any("how_many_times" in row["question"] for row in kept)
    assert len(kept) + len(dropped) == 14


def test_code_is_among_the_verifiers_in_use(tmp_path: Path) -> None:
    source = source_of(tmp_path / "rows.jsonl", [], "mbpp")
    assert verifiers_in_use(Problems(sources=[source])) == {"code": VERSIONS["code"]}
