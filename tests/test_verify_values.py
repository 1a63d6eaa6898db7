"""Bounds of exact evaluation, unions of intervals, units, words: the parts below the math verifier."""

from fractions import Fraction

import pytest

from pipeline.verify.math.evaluate import TooBig, Undefined, approximate, exact
from pipeline.verify.math.grammar import read_answer
from pipeline.verify.math.layers import compare_answers
from pipeline.verify.math.sets import same_real_set
from pipeline.verify.math.units import read_unit
from pipeline.verify.math.words import number_in_words


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/3+1/6", Fraction(1, 2)),
        ("2^{-3}", Fraction(1, 8)),
        ("\\sqrt{\\frac{4}{9}}", Fraction(2, 3)),
        ("8^{2/3}", Fraction(4)),
        ("\\sqrt[3]{-27}", Fraction(-3)),
        ("\\binom{10}{3}", Fraction(120)),
        ("\\lfloor 7/2 \\rfloor", Fraction(3)),
        ("|-5|", Fraction(5)),
        ("0.1\\overline{6}", Fraction(1, 6)),
        ("\\sqrt{2}", None),
        ("x+1", None),
    ],
)
def test_exact_values(text: str, value: Fraction | None) -> None:
    assert exact(read_answer(text)[0]) == value


@pytest.mark.parametrize("text", ["9^{9^9}", "100000!", "\\binom{10^9}{5}", "2^{-10^9}", "(2^{1000})^{1000}"])
def test_what_is_too_big_is_not_computed(text: str) -> None:
    with pytest.raises(TooBig):
        exact(read_answer(text)[0])


@pytest.mark.parametrize("text", ["1/0", "0^{-1}", "(-1)!"])
def test_undefined_values(text: str) -> None:
    with pytest.raises(Undefined):
        exact(read_answer(text)[0])


def test_floating_point_values() -> None:
    assert abs(approximate(read_answer("\\sin 30^\\circ")[0], {}) - 0.5) < 1e-25
    assert abs(approximate(read_answer("e^{i\\pi}")[0], {}) + 1) < 1e-25
    with pytest.raises(Undefined):
        approximate(read_answer("\\sqrt{x}")[0], {"x": Fraction(-1)}, real=True)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("[0,1) \\cup [1,2]", "[0,2]", True),
        ("[0,1) \\cup (1,2]", "[0,2]", False),
        ("(0,5) \\cap [3,9]", "[3,5)", True),
        ("x \\ne 1, x \\ne 2", "(-\\infty,1) \\cup (1,2) \\cup (2,\\infty)", True),
        ("|x| > 2", "x < -2 \\text{ or } x > 2", True),
        ("|x| \\ne 2", "x \\ne 2, x \\ne -2", True),
        ("-3 < 1 - 2x < 5", "(-2, 2)", True),
    ],
)
def test_sets_of_reals(left: str, right: str, equal: bool) -> None:
    assert same_real_set(read_answer(left)[0], read_answer(right)[0]) is equal


@pytest.mark.parametrize(
    ("phrase", "dimension", "size"),
    [
        ("cm", "length", Fraction(1, 100)),
        ("square centimeters", "area", Fraction(1, 10_000)),
        ("cm^2", "area", Fraction(1, 10_000)),
        ("meters squared", "area", Fraction(1)),
        ("miles per hour", "speed", Fraction(1397, 3125)),
        ("meters per second squared", "length^1 time^-2", Fraction(1)),
        ("square units", "area", Fraction(0)),
        ("green apples", "", Fraction(1)),
    ],
)
def test_units(phrase: str, dimension: str, size: Fraction) -> None:
    unit = read_unit(phrase)
    assert (unit.dimension, unit.size) == (dimension, size)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("twenty-one", (21, 1)),
        ("one hundred and five", (105, 1)),
        ("three quarters", (3, 4)),
        ("two thousand three hundred", (2300, 1)),
        ("green apples", None),
        ("", None),
    ],
)
def test_numbers_in_words(words: str, value: tuple[int, int] | None) -> None:
    assert number_in_words(words) == value


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("x=2", "2x+3=7"),
        ("y=2x", "(y-2x)(x-77)=0"),
        ("15", "5!!"),
        ("2x", r"\frac{d}{dx}x^2"),
        ("y'", r"\frac{dy}{dx}"),
        (r"\frac{\pi^2}{6}", r"\zeta(2)"),
        ("4", r"\varphi(10)"),
        ("4", r"\pi(10)"),
        ("10", "C(5,2)"),
        ("|x|", r"\begin{cases} x & x\ge 0 \\ -x & x<0\end{cases}"),
        (r"5\text{ meters}", "5m"),
        ("12000", "12k"),
        ("x_1=1,x_2=2", "x_1=2,x_2=1"),
        (r"\text{mean}=3", r"\text{median}=3"),
        ("3:00", "15:00"),
        ("12:00", "0:00"),
        ("120", "5 factorial"),
        ("0.33", r"0.\overline{3}"),
        # of a size that is not computed
        ("y=x", "((((a+b)^8)^8)^8)^8(y-x)=0"),
        (",".join(f"y^{n}+x={n}" for n in range(1, 55)), ",".join(f"y^{n}-x={n}" for n in range(1, 55))),
        ("x", "x^{" * 30 + "x" + "}" * 30),
    ],
)
def test_what_cannot_be_decided_is_neither_right_nor_wrong(gold: str, answer: str) -> None:
    assert compare_answers(gold, answer).status == "unverifiable"
