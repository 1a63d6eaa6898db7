"""Are two single values equal? Exactly, within the precision that a decimal states, or at random points.

True and False are certain; None means that this module cannot tell.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from pipeline.verify.evaluate import TooBig, Undefined, approximate, exact
from pipeline.verify.tree import Apply, Constant, Group, Node, Number, Quantity, Variable
from pipeline.verify.units import Unit

EQUAL = 1e-9  # relative; floating point loses about 1e-13 on answers of ordinary length
CLOSE = 1e-6  # between EQUAL and this nothing is decided
NUM_POINTS = 8


@dataclass(frozen=True, slots=True)
class Stated:
    """A decimal literal: its value, the place value of its last digit, how many digits it states."""

    value: Fraction
    place: Fraction
    digits: int
    ellipsis: bool


def same_scalar(gold: Node, answer: Node, rounded: bool = False) -> bool | None:
    """`rounded`: the answer says that it is an approximation, so fewer digits will do. Raises TooBig."""
    gold, answer = unwrap(gold), unwrap(answer)
    gold_value, gold_unit = split_unit(gold)
    answer_value, answer_unit = split_unit(answer)
    if gold_unit is None and answer_unit is None:
        return same_value(gold_value, answer_value, rounded)
    if letter_unit(gold_unit) and variables_of(answer_value):
        return same_value(as_product(gold), answer_value, rounded)
    if letter_unit(answer_unit) and variables_of(gold_value):
        return same_value(gold_value, as_product(answer), rounded)
    return same_quantity((gold_value, gold_unit), (answer_value, answer_unit), rounded)


def unwrap(node: Node) -> Node:
    while isinstance(node, Group) and node.kind in ("bracket", "set") and len(node.items) == 1:
        node = node.items[0]
    return node


def split_unit(node: Node) -> tuple[Node, Unit | None]:
    if isinstance(node, Quantity):
        return node.value, node.unit
    if isinstance(node, Apply) and node.name == "neg" and isinstance(node.args[0], Quantity):
        inner = node.args[0]
        return Apply("neg", (inner.value,)), inner.unit
    return node, None


def letter_unit(unit: Unit | None) -> bool:
    return unit is not None and len(unit.words) == 1 and unit.words.isalpha()


def as_product(node: Node) -> Node:
    """ "5 m" was a product with a variable after all."""
    if isinstance(node, Quantity):
        return Apply("mul", (node.value, Variable(node.unit.words)))
    return node


def same_quantity(
    gold: tuple[Node, Unit | None], answer: tuple[Node, Unit | None], rounded: bool
) -> bool | None:
    """Values with units: a unit that one side leaves out is taken from the other."""
    (gold_value, gold_unit), (answer_value, answer_unit) = gold, answer
    gold_dimension = gold_unit.dimension if gold_unit else ""
    answer_dimension = answer_unit.dimension if answer_unit else ""
    if "percent" in (gold_dimension, answer_dimension) and gold_dimension != answer_dimension:
        return same_percent(gold, answer, rounded)
    if {gold_dimension, answer_dimension} & {"angle", "radian"} and gold_dimension != answer_dimension:
        return same_angle(gold, answer, rounded)
    if gold_unit is None or answer_unit is None or not gold_dimension or not answer_dimension:
        return same_value(gold_value, answer_value, rounded)
    if gold_dimension != answer_dimension:
        return False
    if gold_unit.size == answer_unit.size or 0 in (gold_unit.size, answer_unit.size):
        return same_value(gold_value, answer_value, rounded)
    factor = Number(answer_unit.size / gold_unit.size)
    return same_value(gold_value, Apply("mul", (factor, answer_value)), rounded)


def same_percent(
    gold: tuple[Node, Unit | None], answer: tuple[Node, Unit | None], rounded: bool
) -> bool | None:
    """One side has a percent sign: 50% is 0.5, and also 50 where the sign may have been left out."""
    (gold_value, gold_unit), (answer_value, answer_unit) = gold, answer
    hundredth = Number(Fraction(1, 100))
    if gold_unit is not None and gold_unit.dimension == "percent":
        if answer_unit is not None and answer_unit.dimension:
            return False
        bare = same_value(gold_value, answer_value, rounded)
        return bare or same_value(scaled(gold_value, hundredth), answer_value, rounded)
    if gold_unit is not None and gold_unit.dimension:
        return False
    converted = same_value(gold_value, scaled(answer_value, hundredth), rounded)
    value = exact_or_none(gold_value)
    if converted or (value is not None and abs(value) < 1 and value != 0):
        return converted  # a gold of 0.25 is no number of percent
    return same_value(gold_value, answer_value, rounded)


def scaled(node: Node, factor: Number) -> Node:
    """A product; of a plain decimal a decimal again, so that it still states its digits."""
    if isinstance(node, Number) and node.decimals is not None:
        return Number(node.value * factor.value, node.decimals + 2, node.ellipsis)
    return Apply("mul", (factor, node))


def same_angle(
    gold: tuple[Node, Unit | None], answer: tuple[Node, Unit | None], rounded: bool
) -> bool | None:
    """Degrees against radians, or either against a bare number."""
    (gold_value, gold_unit), (answer_value, answer_unit) = gold, answer
    kinds = [unit.dimension if unit else "" for unit in (gold_unit, answer_unit)]
    if any(kind not in ("", "angle", "radian") for kind in kinds):
        return False
    if "" in kinds:
        bare = same_value(gold_value, answer_value, rounded)
        unmarked = answer_value if kinds[1] == "" else gold_value
        if bare or "radian" in kinds or not contains_pi(unmarked):
            return bare
        kinds = ["radian" if kind == "" else kind for kind in kinds]
    if kinds[0] == kinds[1]:
        return same_value(gold_value, answer_value, rounded)
    to_radians = Apply("div", (Constant("pi"), Number(Fraction(180))))
    if kinds[0] == "angle":
        return same_value(Apply("mul", (to_radians, gold_value)), answer_value, rounded)
    return same_value(gold_value, Apply("mul", (to_radians, answer_value)), rounded)


def contains_pi(node: Node) -> bool:
    return any(part == Constant("pi") for part in walk(node))


def walk(node: Node) -> Iterator[Node]:
    """The nodes of an arithmetic tree."""
    yield node
    if isinstance(node, Apply):
        for arg in node.args:
            yield from walk(arg)
    elif isinstance(node, Quantity):
        yield from walk(node.value)
    elif isinstance(node, Group):
        for item in node.items:
            yield from walk(item)


def variables_of(node: Node) -> set[str]:
    return {part.name for part in walk(node) if isinstance(part, Variable)}


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
            return None if found is None else Stated(-found.value, found.place, found.digits, found.ellipsis)
        case Apply("mul", (mantissa, Apply("pow", (Number(ten, None), _)) as power)) if ten == 10:
            found, scale = stated(mantissa), exact_or_none(power)
            if found is not None and scale is not None:
                return Stated(found.value * scale, found.place * scale, found.digits, found.ellipsis)
    return None


def real_value(node: Node, found: Stated | None) -> Fraction | None:
    """The value as a rational, from floating point where it is irrational."""
    if found is not None:
        return found.value
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
    if variables_of(gold) or variables_of(answer):
        return same_at_points(gold, answer)
    left, right = real_value(gold, gold_stated), real_value(answer, answer_stated)
    if left is None or right is None:
        return same_at_points(gold, answer)
    gap = abs(left - right)
    if gap == 0 or (gap <= abs(left) * Fraction(1, 10**9) and float_noise(gold_stated, answer_stated)):
        return True
    if gold_stated is not None and rounds_to_gold(gap, gold_stated, answer, answer_stated):
        return True
    return answer_stated is not None and rounds_to_answer(gap, gold, gold_stated, answer_stated, rounded)


def float_noise(gold: Stated | None, answer: Stated | None) -> bool:
    """0.30000000000000004: so many digits that a last one is no statement."""
    return any(found is not None and found.digits >= 9 for found in (gold, answer))


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
    if value is not None and has_short_decimal(value):
        return False
    whole = answer.value.denominator == 1
    return gap * 2 <= answer.place and answer.digits >= (2 if rounded else 3) and not whole


def has_short_decimal(value: Fraction) -> bool:
    return (value * 10_000).denominator == 1


def same_at_points(gold: Node, answer: Node) -> bool | None:
    """Compare at the same pseudo-random points; constants are compared once."""
    names = sorted(variables_of(gold) | variables_of(answer))
    if not names:
        return same_constant(gold, answer)
    if len(names) > 12:
        return None
    verdicts = []
    for real in (True, False):
        verdicts = list(compare_at_points(gold, answer, names, real))
        if len(verdicts) >= 3:
            break
    if not verdicts:
        return None
    if any(verdict is False for verdict in verdicts):
        return False
    return True if len(verdicts) >= 2 and all(verdicts) else None


def compare_at_points(gold: Node, answer: Node, names: list[str], real: bool) -> Iterator[bool | None]:
    """Verdicts at points where both sides have a value; a side defined alone is no verdict."""
    generator = random.Random(20)
    for index in range(NUM_POINTS):
        low, high = ((0.3, 2.5), (-2.5, -0.3), (2.0, 9.0))[index % 3]
        values = {name: complex(generator.uniform(low, high)) for name in names}
        try:
            left = approximate(gold, values, real)
            right = approximate(answer, values, real)
        except Undefined:
            continue
        yield close(left, right)


def same_constant(gold: Node, answer: Node) -> bool | None:
    try:
        return close(approximate(gold, {}), approximate(answer, {}))
    except Undefined:
        return None


def close(left: complex, right: complex) -> bool | None:
    scale = max(abs(left), abs(right), 1e-3)
    gap = abs(left - right) / scale
    if math.isnan(gap):
        return None
    return True if gap < EQUAL else None if gap < CLOSE else False


__all__ = [
    "TooBig",
    "close",
    "exact_or_none",
    "real_value",
    "same_scalar",
    "same_value",
    "variables_of",
    "walk",
]
