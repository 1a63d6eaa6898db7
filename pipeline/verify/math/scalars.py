"""Are two single values equal? Exactly, within the precision that a decimal states, or at random points.

True and False are certain; None means that this module cannot tell.
"""

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import cycle, starmap

from pipeline.verify.math.evaluate import Undefined, approximate, exact
from pipeline.verify.math.tree import (
    Apply,
    Constant,
    Group,
    Node,
    Number,
    Quantity,
    Variable,
    variables_of,
    walk,
)
from pipeline.verify.math.units import Unit

EQUAL = 1e-9  # relative; floating point loses about 1e-13 on answers of ordinary length
CLOSE = 1e-6  # between EQUAL and this nothing is decided
NUM_POINTS = 8
MAX_VARIABLES = 12
GENERATOR = random.Random(20)
UNIFORM = tuple(GENERATOR.random() for _ in range(NUM_POINTS * MAX_VARIABLES))
BARE = Unit("", Fraction(1))  # of a value without a unit


@dataclass(frozen=True, slots=True)
class Stated:
    """A decimal literal: its value, the place value of its last digit, how many digits it states."""

    value: Fraction
    place: Fraction
    digits: int
    ellipsis: bool


def same_scalar(gold: Node, answer: Node, rounded: bool = False) -> bool | None:
    """`rounded`: the answer says that it is an approximation, so fewer digits will do. Raises TooBig."""
    left, right = measured(gold), measured(answer)
    if is_letter(left.unit) and variables_of(right.value):
        return same_value(as_product(left), right.value, rounded)
    if is_letter(right.unit) and variables_of(left.value):
        return same_value(left.value, as_product(right), rounded)
    dimensions = {left.unit.dimension, right.unit.dimension}
    if len(dimensions) == 2:
        if "percent" in dimensions:
            return same_percent(left, right, rounded)
        if dimensions & {"angle", "radian"}:
            return same_angle(left, right, rounded)
        if "" not in dimensions:
            return False  # otherwise a unit that one side leaves out is taken from the other
    sizes = left.unit.size, right.unit.size
    if "" in dimensions or 0 in sizes or sizes[0] == sizes[1]:
        return same_value(left.value, right.value, rounded)
    return same_value(left.value, Apply("mul", (Number(sizes[1] / sizes[0]), right.value)), rounded)


def unwrap(node: Node) -> Node:
    while isinstance(node, Group) and node.kind in ("bracket", "set") and len(node.items) == 1:
        node = node.items[0]
    return node


def measured(node: Node) -> Quantity:
    """A value and its unit, which may be none."""
    node = unwrap(node)
    return node if isinstance(node, Quantity) else Quantity(node, BARE)


def is_letter(unit: Unit) -> bool:
    return len(unit.words) == 1 and unit.words.isalpha()


def as_product(quantity: Quantity) -> Node:
    """ "5 m" was a product with a variable after all."""
    return Apply("mul", (quantity.value, Variable(quantity.unit.words)))


def same_percent(gold: Quantity, answer: Quantity, rounded: bool) -> bool | None:
    """One side has a percent sign: 50% is 0.5, and also 50 where the sign may have been left out."""
    if gold.unit.dimension == "percent":
        if answer.unit.dimension:
            return False
        bare = same_value(gold.value, answer.value, rounded)
        return bare or same_value(hundredth(gold.value), answer.value, rounded)
    if gold.unit.dimension:
        return False
    converted = same_value(gold.value, hundredth(answer.value), rounded)
    value = exact_or_none(gold.value)
    if converted or (value is not None and abs(value) < 1 and value != 0):
        return converted  # a gold of 0.25 does not count percent
    return same_value(gold.value, answer.value, rounded)


def hundredth(node: Node) -> Node:
    """Of a plain decimal a decimal again, so that it still states its digits."""
    if isinstance(node, Number) and node.decimals is not None:
        return Number(node.value / 100, node.decimals + 2, node.ellipsis)
    return Apply("mul", (Number(Fraction(1, 100)), node))


def same_angle(gold: Quantity, answer: Quantity, rounded: bool) -> bool | None:
    """Degrees against radians, or either against a bare number, which is radians where it holds pi."""
    bare = [side.value for side in (gold, answer) if not side.unit.dimension]
    if bare:
        verdict = same_value(gold.value, answer.value, rounded)
        known = (answer if bare[0] is gold.value else gold).unit.dimension
        if verdict or known == "radian" or not contains_pi(bare[0]):
            return verdict
    elif {gold.unit.dimension, answer.unit.dimension} != {"angle", "radian"}:
        return False
    return same_value(in_radians(gold), in_radians(answer), rounded)


def in_radians(angle: Quantity) -> Node:
    if angle.unit.dimension != "angle":
        return angle.value
    return Apply("mul", (Apply("div", (Constant("pi"), Number(Fraction(180)))), angle.value))


def contains_pi(node: Node) -> bool:
    return any(part == Constant("pi") for part in walk(node))


def exact_or_none(node: Node) -> Fraction | None:
    try:
        return exact(node)
    except Undefined:
        return None


def same_value(gold: Node, answer: Node, rounded: bool = False) -> bool | None:
    """Two expressions without units."""
    gold, answer = unwrap(gold), unwrap(answer)
    if gold == answer:
        return True
    signs = infinity_sign(gold), infinity_sign(answer)
    if any(signs):
        return signs[0] == signs[1]
    left, right = exact_or_none(gold), exact_or_none(answer)
    if left is not None and left == right:
        return True
    gold_stated, answer_stated = stated(gold), stated(answer)
    if gold_stated or answer_stated:
        return same_decimal(gold, answer, gold_stated, answer_stated, rounded)
    if left is not None and right is not None:
        return False
    return same_at_points(gold, answer)


def infinity_sign(node: Node) -> int:
    match node:
        case Constant("infinity"):
            return 1
        case Apply("neg", (Constant("infinity"),)):
            return -1
    return 0


def stated(node: Node) -> Stated | None:
    """The decimal that a node is: 3.14, -3.14, 3.14 * 10^5."""
    match node:
        case Number(value, int(decimals), ellipsis):
            place = Fraction(10) ** -decimals
            digits = len(str(abs(value / place).numerator)) if value else 1
            return Stated(value, place, digits, ellipsis)
        case Apply("neg", (inner,)):
            found = stated(inner)
            return found and replace(found, value=-found.value)
        case Apply("mul", (mantissa, Apply("pow", (Number(ten, None), _)) as power)) if ten == 10:
            found, scale = stated(mantissa), exact_or_none(power)
            if found is not None and scale is not None:
                return replace(found, value=found.value * scale, place=found.place * scale)
    return None


def real_value(node: Node) -> Fraction | None:
    """From floating point where it is irrational; None for what is not one real number."""
    value = exact_or_none(node)
    if value is not None:
        return value
    try:
        number = approximate(node, {})
    except Undefined:
        return None
    return Fraction(number.real) if abs(number.imag) < 1e-12 * max(1.0, abs(number.real)) else None


def same_decimal(
    gold: Node, answer: Node, gold_stated: Stated | None, answer_stated: Stated | None, rounded: bool
) -> bool | None:
    """At least one side is a decimal: equal, or one the other rounded to the digits that it states."""
    if variables_of(gold, answer):
        return same_at_points(gold, answer)
    left = gold_stated.value if gold_stated else real_value(gold)
    right = answer_stated.value if answer_stated else real_value(answer)
    if left is None or right is None:
        return same_at_points(gold, answer)
    gap = abs(left - right)
    # 0.30000000000000004: with so many digits, the last ones are floating point noise
    noisy = any(found.digits >= 9 for found in (gold_stated, answer_stated) if found)
    if gap == 0 or (noisy and gap <= abs(left) / 10**9):
        return True
    if gold_stated is not None and rounds_to_gold(gap, gold_stated, answer, answer_stated):
        return True
    return answer_stated is not None and rounds_to_answer(gap, gold, gold_stated, answer_stated, rounded)


def rounds_to_gold(gap: Fraction, gold: Stated, answer: Node, answer_stated: Stated | None) -> bool:
    """The gold is a rounded decimal and the answer gives more than it states."""
    if gold.ellipsis:
        return gap <= gold.place
    if answer_stated is None:
        value = exact_or_none(answer)
        terminates = value is not None and value.denominator == 1 and gold.place < 1
        return gap * 2 <= gold.place and gold.digits >= 2 and not terminates
    finer = gold.place / answer_stated.place
    decimals = gold.place <= Fraction(1, 100) or gold.place > 1
    enough = (gold.digits >= 3 and decimals and finer >= 10) or (gold.digits >= 2 and finer >= 100)
    return gap * 2 < gold.place and enough


def rounds_to_answer(
    gap: Fraction, gold: Node, gold_stated: Stated | None, answer: Stated, rounded: bool
) -> bool:
    """The answer is a decimal of a gold that is exact and has no short decimal of its own."""
    if answer.ellipsis:
        return gap <= answer.place
    if gold_stated is not None:
        return False
    value = exact_or_none(gold)
    if value is not None and (value * 10_000).denominator == 1:  # it has a short decimal of its own
        return False
    whole = answer.value.denominator == 1
    return gap * 2 <= answer.place and answer.digits >= (2 if rounded else 3) and not whole


def same_at_points(gold: Node, answer: Node) -> bool | None:
    """Compare at the same pseudo-random points; constants are compared once."""
    names = sorted(variables_of(gold, answer))
    if not names:
        return next(starmap(close, values_at_points(gold, answer, names, real=False)), None)
    if len(names) > MAX_VARIABLES:
        return None
    verdicts: list[bool | None] = []
    for real in (True, False):
        verdicts = list(starmap(close, values_at_points(gold, answer, names, real)))
        if len(verdicts) >= 3:
            break
    verdict = all_of(verdicts)
    return None if verdict and len(verdicts) < 2 else verdict


def values_at_points(
    gold: Node, answer: Node, names: Iterable[str], real: bool
) -> Iterator[tuple[complex, complex]]:
    """The values of both sides; a point where only one side has one is skipped."""
    draws = cycle(UNIFORM)
    for index in range(NUM_POINTS):
        low, high = ((0.3, 2.5), (-2.5, -0.3), (2.0, 9.0))[index % 3]
        values = {name: complex(low + (high - low) * next(draws)) for name in names}
        try:
            yield approximate(gold, values, real), approximate(answer, values, real)
        except Undefined:
            continue


def close(left: complex, right: complex) -> bool | None:
    scale = max(abs(left), abs(right), 1e-3)
    gap = abs(left - right) / scale
    if math.isnan(gap):
        return None
    return True if gap < EQUAL else None if gap < CLOSE else False


def all_of(verdicts: Iterable[bool | None]) -> bool | None:
    """False if one is, else None if one is undecided, else True."""
    result: bool | None = True
    for verdict in verdicts:
        if verdict is False:
            return False
        result = result and verdict
    return result


def any_of(verdicts: Iterable[bool | None]) -> bool | None:
    """True if one is, else None if one is undecided, else False."""
    result: bool | None = False
    for verdict in verdicts:
        if verdict:
            return True
        result = None if verdict is None else result
    return result
