"""The math verifier on its tables of rows: hard formats, whole responses, layers, reasons."""

import re

import pytest
from verify_rows import hard_formats, held_out, kinds, mixed, more_formats, responses, shown

from pipeline.verify.math import verify_math
from pipeline.verify.math.grammar import read_answer
from tests.conftest import ROOT

FORMATS = hard_formats.ROWS | more_formats.ROWS | mixed.ROWS | kinds.ROWS
ROWS = [(name, *row) for name, rows in FORMATS.items() for row in rows]


def accepts(gold: str, response: str) -> bool:
    return verify_math(response, gold, {}).status == "correct"


@pytest.mark.parametrize("name", FORMATS)
def test_hard_format(name: str) -> None:
    misses = [
        (gold, answer, right)
        for gold, answer, right in shown(FORMATS[name])
        if accepts(gold, f"\\boxed{{{answer}}}") != right
    ]
    assert misses == []


@pytest.mark.parametrize("name", FORMATS)
def test_hard_format_without_a_box(name: str) -> None:
    misses = [row for row in shown(FORMATS[name]) if accepts(row[0], row[1]) != row[2]]
    assert misses == []


def test_there_are_enough_rows_of_both_kinds() -> None:
    assert len(ROWS) >= 300
    assert min(sum(row[3] for row in ROWS), sum(not row[3] for row in ROWS)) >= 150


@pytest.mark.parametrize(("gold", "answer"), hard_formats.UNREAD)
def test_what_cannot_be_decided_is_not_called_wrong(gold: str, answer: str) -> None:
    assert verify_math(f"\\boxed{{{answer}}}", gold, {}).status == "unverifiable"


def test_a_tenth_of_the_rows_is_held_out() -> None:
    share = sum(held_out(row[1:]) for row in ROWS) / len(ROWS)
    assert 0.07 < share < 0.13


@pytest.mark.parametrize(("gold", "response", "right"), shown(responses.ROWS))
def test_where_the_answer_stands(gold: str, response: str, right: bool) -> None:
    assert accepts(gold, response) is right


@pytest.mark.parametrize("gold", sorted({row[1] for row in ROWS}))
def test_every_gold_accepts_itself(gold: str) -> None:
    assert accepts(gold, f"\\boxed{{{gold}}}")


@pytest.mark.parametrize(
    ("gold", "response", "status", "reason", "layer"),
    [
        ("4", "\\boxed{4}", "correct", "equal", "string"),
        ("4", "\\boxed{5}", "wrong", "different", "numeric"),
        ("4", "\\boxed{\\frac{8}{2}}", "correct", "equal", "numeric"),
        ("2x+2", "\\boxed{2(x+1)}", "correct", "equal", "probing"),
        ("(B)", "\\boxed{B}", "correct", "equal", "string"),
        ("\\hat{x}", "\\boxed{x}", "unverifiable", "undecided", "probing"),
        ("4", "", "wrong", "no_answer", ""),
        ("4", "I give up", "unverifiable", "unparsable_answer", "numeric"),
        ("", "\\boxed{4}", "unverifiable", "bad_gold", ""),
        ("4", "\\boxed{9^{9^{9^9}}}", "unverifiable", "too_big", "numeric"),
        ("4", "\\boxed{many green apples}", "unverifiable", "unparsable_answer", "numeric"),
        ("\\int_0^1 2x dx", "\\boxed{1}", "correct", "equal", "math_verify"),
    ],
)
def test_layers_and_reasons(gold: str, response: str, status: str, reason: str, layer: str) -> None:
    outcome = verify_math(response, gold, {})
    assert (outcome.status, outcome.reason, outcome.layer) == (status, reason, layer)


def test_layers_can_be_asked_apart() -> None:
    for layers in (["values"], ["math_verify"]):
        outcome = verify_math("\\boxed{0.5}", "\\frac12", {"layers": layers})
        assert outcome.status == "correct"
        assert outcome.layer in ("numeric", "math_verify")
    assert verify_math("\\boxed{1}", "1", {"layers": []}).status == "unverifiable"


def test_an_ambiguous_answer_has_all_its_readings() -> None:
    assert len(read_answer("1,234")) == 2
    assert len(read_answer("(1,234)")) == 1
    assert read_answer("") == ()


def test_nothing_outside_the_room_imports_what_is_inside() -> None:
    room = ROOT / "pipeline/verify/math"
    modules = [
        path
        for package in ("pipeline", "teachers", "students", "eval")
        for path in (ROOT / package).rglob("*.py")
    ]
    importing = [
        path for path in modules if re.search(r"(?:from|import) pipeline\.verify\.math\.", path.read_text())
    ]
    assert {path.parent for path in importing} == {room}
