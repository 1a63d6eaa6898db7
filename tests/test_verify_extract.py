"""Which text of a response is its answer: the policy, what it gives the verifiers, and its bound on work."""

import time
from collections import Counter
from pathlib import Path

import pytest
from verify_rows import shown, stated
from verify_rows.hostile import hostile_rows

from pipeline.verify.cues import alternatives, settle
from pipeline.verify.extract import answer_part, last_boxed, statements
from pipeline.verify.table import function_of
from tests.bench.bench_verify import own_rows

ROWS = {"math": stated.MATH, "choice": stated.CHOICE, "text": stated.TEXT, "json": stated.JSON}


def accepts(name: str, row: stated.Row) -> bool:
    gold, response, _, metadata = row
    return function_of(name)(response, gold, metadata).status == "correct"


@pytest.mark.parametrize("name", ROWS)
def test_what_is_stated(name: str) -> None:
    assert [row for row in shown(ROWS[name]) if accepts(name, row) != row[2]] == []


def test_what_nothing_can_be_told_of() -> None:
    misses = [
        (name, gold, response, outcome)
        for name, gold, response, metadata in stated.UNDECIDED
        if (outcome := function_of(name)(response, gold, metadata)).status != "unverifiable"
    ]
    assert misses == []


def test_every_module_of_rows_is_in_the_rates() -> None:
    tables = Counter(name for name, *_ in own_rows())
    assert {name.partition(" ")[0] for name in tables} == {
        file.stem for file in Path(stated.__file__).parent.glob("[!_]*.py") if file.stem != "hostile"
    }
    assert all(tables[f"stated {name}"] == len(rows) for name, rows in ROWS.items())
    assert sum(map(len, ROWS.values())) + len(stated.UNDECIDED) == len(stated.HELD)


@pytest.mark.parametrize("name", ROWS)
def test_there_are_rows_of_both_kinds(name: str) -> None:
    right = sum(row[2] for row in ROWS[name])
    assert min(right, len(ROWS[name]) - right) >= 15


@pytest.mark.parametrize(
    ("response", "part"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>a</think>b<think>c", "b"),
        ("<think>a", ""),
        ("b<|im_end|>\n", "b"),
        ("#### 18\n\nQuestion: 1 + 2\n#### 3", "#### 18"),
        ("Question: 1 + 2\n#### 3", "Question: 1 + 2\n#### 3"),
    ],
)
def test_the_part_that_answers(response: str, part: str) -> None:
    assert answer_part(response) == part


@pytest.mark.parametrize(
    ("response", "texts"),
    [
        ("The answer is 4. In words, \\boxed{5}", ["5"]),
        ("\\boxed{5}\n\nFinal answer: 6", ["6", "5"]),
        ("\\boxed{3}, \\boxed{4} and \\boxed{5}", ["3, 4, 5"]),
        ("\\boxed{3} or \\boxed{5}", ["3 or 5"]),
        ("\\boxed{3} so far\n\\boxed{5", []),
        ("Answer: 3\nAnswer: 4", ["4", "3"]),
        ("The answer is 3. No, the answer is not 3.", ["not 3"]),
        ("Answer:\n\n\\[\nx = 9\n\\]\nDone.", ["\\[\nx = 9\n\\]"]),
        ("We add.\nIt is 4.\n\nI hope this helps!", ["We add.\nIt is 4.\n\nI hope this helps!", "It is 4"]),
        ("", []),
    ],
)
def test_what_counts_first(response: str, texts: list[str]) -> None:
    assert [one.text for one in statements(response)] == texts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("7", "7"),
        ("not 7 but 5", "5"),
        ("not A; it is B", "B"),
        ("12, not 13", "12"),
        ("B (not C)", "B"),
        ("5 rather than 7", "5"),
        ("nicht 7, sondern 5", "5"),
        ("不是A，而是B", "B"),
        ("not 7", None),
        ("7 and not 7", None),
        ("No, because it is odd", "No, because it is odd"),
    ],
)
def test_what_is_taken_back_does_not_count(text: str, said: str | None) -> None:
    assert settle(text) == said


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("7", ["7"]),
        ("either 7 or 8", ["7", "8"]),
        ("$7$ or $8$", ["$7$", "$8$"]),
        ("7 \\text{ or } 8", ["7", "8"]),
        ("7 (or possibly 8)", ["7", "8"]),
        ("7, but it could be 8", ["7", "8"]),
        ("7或8", ["7", "8"]),
        ("less than or equal to 5", ["less than or equal to 5"]),
        ("\\frac{7 or 8}{2}", ["\\frac{7 or 8}{2}"]),
    ],
)
def test_what_is_left_open(text: str, parts: list[str]) -> None:
    assert alternatives(text) == parts


@pytest.mark.parametrize(
    ("name", "gold", "response", "status", "reason"),
    [
        ("math", "7", "The answer is 7 or 8", "wrong", "no_answer"),
        ("math", "7", "The answer is not 7.", "wrong", "no_answer"),
        ("math", "7", "We add the two and then we stop.", "wrong", "no_answer"),
        ("math", "7", "<think>\\boxed{7}", "wrong", "no_answer"),
        ("math", "13", "\\boxed{\\sqrt{13", "unverifiable", "unparsable_answer"),
        ("math", "7", "The answer is a number of green apples.", "unverifiable", "unparsable_answer"),
        ("choice", "B", "Answer: B or C", "wrong", "no_answer"),
        ("choice", "B", "The answer cannot be B.", "wrong", "no_answer"),
        ("choice", "B", "Vitamin B is good.", "unverifiable", "unparsable_answer"),
        ("choice", "B", "\\boxed{x^2}", "unverifiable", "unparsable_answer"),
        ("choice", "B", "The answer is C.", "wrong", "different"),
        ("text", "Paris", "Paris or London", "wrong", "no_answer"),
        ("text", "Paris", "London", "wrong", "different"),
        ("text", "Paris", "Many think of Paris in this case.", "unverifiable", "unparsable_answer"),
        ("text", "May 3, 2024", "03/05/2024", "unverifiable", "unparsable_answer"),
        ("text", "CO", "Co", "unverifiable", "unparsable_answer"),
        (
            "text",
            "It is the powerhouse of the cell and makes ATP",
            "ATP",
            "unverifiable",
            "unparsable_answer",
        ),
        ("json", '{"a": 1}', "{“a”: 1}", "unverifiable", "unparsable_answer"),
        ("json", '{"a": 1}', '{"a": 1, "a": 1}', "unverifiable", "unparsable_answer"),
        ("json", '{"a": 1}', '{"a": 2} or {"a": 1}', "unverifiable", "unparsable_answer"),
        ("json", '{"a": 1}', '<think>{"a": 1}', "wrong", "no_answer"),
    ],
)
def test_why_nothing_is_accepted(name: str, gold: str, response: str, status: str, reason: str) -> None:
    outcome = function_of(name)(response, gold, {})
    assert (outcome.status, outcome.reason) == (status, reason)


def test_a_cut_box_is_no_source_of_a_gold() -> None:
    assert last_boxed("\\boxed{3} and \\boxed{4") is None
    assert last_boxed("\\boxed{3} and \\boxed{4}") == "4"


HOSTILE = [
    *hostile_rows("marker"),
    ("nots", "not " * 50_000),
    ("ors", "7 or " * 50_000),
    ("commas_in_prose", "it is so, " * 20_000),
    ("cues", "The answer is not the answer to " * 5_000),
    ("words", "word " * 40_000 + "="),
    ("letters", "A, " * 50_000),
    ("thinking", "<think>" * 20_000 + "</think>" * 20_000),
    ("brackets", '[{"a": ' * 20_000),
    ("fences", "```json\n" * 20_000),
    ("eastern", "答案是" * 30_000),
    ("quotes", "'\"" * 50_000),
    ("wrong_boxes", "wrong \\boxed{5} " * 6_000),
    ("taken_back", "A? No. Wait, that is " * 5_000),
    ("qualified", "The first wrong answer is " * 4_000),
    ("openings", "[{" * 50_000),
    ("given", "input " * 17_000 + "{}"),
    ("decimal", "1." + "3" * 100_000),
    ("digits_and_marks", "1'000_000.000,00 " * 10_000),
]


QUICK = {"nots", "ors", "cues", "letters", "thinking", "wrong_boxes", "taken_back", "openings"}


@pytest.mark.parametrize("name", ["choice", "text", "json"])
def test_some_hostile_answers_take_bounded_work(name: str) -> None:
    check_bounded_work(name, [(title, response[:50_000]) for title, response in HOSTILE if title in QUICK])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["choice", "text", "json"])
def test_hostile_answers_take_bounded_work(name: str) -> None:
    check_bounded_work(name, HOSTILE)


def check_bounded_work(name: str, rows: list[tuple[str, str]]) -> None:
    gold = {"choice": "B", "text": "H2O, not 5 or 7", "json": '{"a": 1}'}[name]
    late = []
    for title, response in rows:
        start = time.process_time()
        assert function_of(name)(response, gold, {}).status != "correct"
        if (seconds := time.process_time() - start) > 2.0:
            late.append((title, seconds))
    assert late == []
