"""Are two single values equal? Exactly, within the precision that a decimal states, or at random points.

True and False are certain; None means that this module cannot tell. There is no tolerance: two values are
equal when the gap between them goes away with the digits to which they are computed.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from itertools import cycle, islice

import mpmath

from pipeline.verify.math.evaluate import TooBig, Undefined, Value, approximate, exact
from pipeline.verify.math.tree import (
    Apply,
    Constant,
    Group,
    Node,
    Number,
    Quantity,
    Variable,
    replaced,
    variables_of,
    walk,
    with_parts,
)
from pipeline.verify.math.units import BARE, TEMPERATURES, Unit, same_thing

DIGITS = 100  # with which values are computed; few more than 30 cost nothing
NUM_POINTS = 3
MAX_VARIABLES = 12
RANGES = ((0.3, 2.5), (-2.5, -0.3), (2.0, 9.0), (0.1, 0.9), (-0.9, -0.1), (11.0, 40.0))
GENERATOR = random.Random(20)
DRAWS = tuple(Fraction(GENERATOR.getrandbits(40), 2**40) for _ in range(len(RANGES) * MAX_VARIABLES))
Point = tuple[Mapping[str, Fraction], bool, Value, Value]
INTEGRAL = frozenset("jklmnpN")  # names that sequences have for their index


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
    if left.unit.words and right.unit.words and not alike(left.unit, right.unit):
        if "percent" in (left.unit.dimension, right.unit.dimension):
            return False
        verdict = same_value(left.value, right.value, rounded)
        return None if verdict else verdict  # 20 chickens are not 20 rabbits; students may be pupils
    dimensions = {left.unit.dimension, right.unit.dimension}
    if len(dimensions) == 2:
        if "percent" in dimensions:
            return same_percent(left, right, rounded)
        if dimensions & {"angle", "radian"}:
            return same_angle(left, right, rounded)
        if "" not in dimensions:  # otherwise a unit that one side leaves out is taken from the other
            return None if dimensions <= TEMPERATURES else False
    sizes = left.unit.size, right.unit.size
    if "" in dimensions or 0 in sizes or sizes[0] == sizes[1]:
        return same_value(left.value, right.value, rounded)
    return same_value(left.value, scaled(sizes[1] / sizes[0], right.value), rounded)


def unwrap(node: Node) -> Node:
    while isinstance(node, Group) and node.kind in ("bracket", "set") and len(node.items) == 1:
        node = node.items[0]
    return node


def measured(node: Node) -> Quantity:
    """A value and its unit, which may be none."""
    node = unwrap(node)
    return node if isinstance(node, Quantity) else Quantity(node, BARE)


def alike(left: Unit, right: Unit) -> bool:
    """Two known units, or two unknown ones of the same words."""
    known = bool(left.dimension), bool(right.dimension)
    return all(known) or (not any(known) and same_thing(left, right))


def is_letter(unit: Unit) -> bool:
    """Whether it may be a product of variables."""
    letters = unit.words.isascii() and unit.words.isalpha()
    return letters and (len(unit.words) == 1 or (len(unit.words) < 4 and not unit.dimension))


def as_product(quantity: Quantity) -> Node:
    """ "5 m" was a product with a variable after all."""
    return reduce(
        lambda node, name: Apply("mul", (node, Variable(name))), quantity.unit.words, quantity.value
    )


def scaled(factor: Fraction, node: Node) -> Node:
    """Of a plain decimal a decimal again, so that it still states its digits."""
    if isinstance(node, Number) and node.decimals is not None and factor == Fraction(1, 100):
        return Number(node.value / 100, node.decimals + 2, node.ellipsis)
    return Apply("mul", (Number(factor), node))


def same_percent(gold: Quantity, answer: Quantity, rounded: bool) -> bool | None:
    """One side has a percent sign: 50% is 0.5, and also 50 where the sign may have been left out."""
    hundredth = Fraction(1, 100)
    if gold.unit.dimension == "percent":
        if answer.unit.dimension:
            return False
        bare = same_value(gold.value, answer.value, rounded)
        return bare or same_value(scaled(hundredth, gold.value), answer.value, rounded)
    if gold.unit.dimension:
        return False
    converted = same_value(gold.value, scaled(hundredth, answer.value), rounded)
    value = exact_or_none(gold.value)
    if converted or (value is not None and abs(value) < 1 and value != 0):
        return converted  # a gold of 0.25 does not count percent
    return same_value(gold.value, answer.value, rounded)


def same_angle(gold: Quantity, answer: Quantity, rounded: bool) -> bool | None:
    """Degrees against radians, or either against a bare number, which is radians where it holds pi."""
    bare = [side.value for side in (gold, answer) if not side.unit.dimension]
    if bare:
        known = (answer if bare[0] is gold.value else gold).unit
        if known.dimension == "radian" or not any(part == Constant("pi") for part in walk(bare[0])):
            return same_value(gold.value, answer.value, rounded) if known.size == 1 else None
    elif {gold.unit.dimension, answer.unit.dimension} != {"angle", "radian"}:
        return False
    return same_value(in_radians(gold), in_radians(answer), rounded)


def in_radians(angle: Quantity) -> Node:
    if angle.unit.dimension != "angle":
        return angle.value
    return Apply("mul", (Apply("div", (Constant("pi"), Number(Fraction(180)))), angle.value))


def without_degrees(node: Node) -> Node:
    """180 degrees - 2 alpha counts degrees, as 180 - 2 alpha does; what stands in a function stays."""
    match node:
        case Quantity(value, unit) if unit.dimension == "angle" and unit.size == 1:
            return value
        case Apply("add" | "neg" | "mul" | "div", _):
            return with_parts(node, without_degrees)
    return node


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
    verdict = same_at_points(gold, answer)
    bare = without_degrees(gold), without_degrees(answer)
    return same_at_points(*bare) if not verdict and bare != (gold, answer) else verdict


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
    """To forty digits where it is irrational; None for what is not one real number."""
    value = exact_or_none(node)
    if value is not None or variables_of(node):
        return value
    try:
        number = approximate(node, {}, 60)
    except Undefined:
        return None
    if abs(number.imag) > abs(number) * Fraction(1, 10**40):
        return None
    sign, mantissa, exponent, _ = number.real._mpf_
    return round_digits(Fraction((-1) ** sign * int(mantissa)) * Fraction(2) ** int(exponent))


def round_digits(value: Fraction) -> Fraction:
    """To forty significant digits, so that ends which are written differently still meet."""
    if not value:
        return value
    places = 40 - len(str(abs(int(value)))) if abs(value) >= 1 else 40 + len(str(int(1 / abs(value)))) - 1
    return Fraction(round(value * Fraction(10) ** places)) / Fraction(10) ** places


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
    noisy = any(found.digits >= 14 for found in (gold_stated, answer_stated) if found)
    if gap == 0 or (noisy and gap <= abs(left) / 10**13):
        return True
    if gold_stated is not None and rounds_to_gold(gap, gold_stated, answer, answer_stated):
        return None if is_repeating(answer) else True
    return answer_stated is not None and rounds_to_answer(gap, gold, gold_stated, answer_stated, rounded)


def is_repeating(node: Node) -> bool:
    """A literal like 0.1666... with a bar, which is exact and never a rounding."""
    node = node.args[0] if isinstance(node, Apply) and node.name == "neg" else node
    return isinstance(node, Number) and node.decimals is None and node.value.denominator > 1


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
    if len(names) > MAX_VARIABLES or accents(gold) != accents(answer):
        return None  # whether \\vec v is v, and what f(2) is, is for whoever wrote it to say
    num_points = NUM_POINTS if names else 1
    with mpmath.workdps(DIGITS):
        verdicts: list[bool | None] = []
        for point in islice(values_at_points(gold, answer, names), num_points):
            verdicts.append(same_there(gold, answer, point))
            if False in verdicts and len(verdicts) > 1:
                break  # a third point would change nothing
    verdict = None if len(verdicts) < min(2, num_points) else all_of(verdicts)
    if verdict is False and (index := set(names) & INTEGRAL):  # where it is no integer, which nobody said
        whole = {name: Variable("#" + name if name in index else name) for name in names}
        return None if same_at_points(replaced(gold, whole), replaced(answer, whole)) else False
    return verdict


def accents(node: Node) -> set[str]:
    return {name for name in variables_of(node) if "\\" in name or "(" in name}


def values_at_points(gold: Node, answer: Node, names: list[str]) -> Iterator[Point]:
    """Points where two sides both have a value, whether in the real domain, and those values.

    Real points, else those of a sequence's index, else complex values. "#" begins an integer's name."""
    num_found = 0
    whole = {name for name in names if name.startswith("#")}
    grounds = [] if whole or not names else [(real_points(names), True)]
    if whole := whole or set(names) & INTEGRAL:
        grounds.append((whole_points(names, whole), True))
    for points, real in [*grounds, (real_points(names) if names else [{}], False)]:
        for values in points:
            try:
                exactly = exact_at(gold, values), exact_at(answer, values)
                if None in exactly:
                    left, right = (approximate(side, values, DIGITS, real) for side in (gold, answer))
                else:  # of fractions of polynomials, at a third of the cost
                    left, right = exactly
            except Undefined:
                continue
            num_found += 1
            yield values, real, left, right
        if num_found >= 2:
            return


def exact_at(node: Node, values: Mapping[str, Fraction]) -> Fraction | None:
    try:
        return exact(node, values)
    except TooBig:
        return None


def real_points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    """The first ones have all variables in one range, so that all may be positive, or all below 1."""
    draws = cycle(DRAWS)
    for index in range(len(RANGES)):
        values = {}
        for place, name in enumerate(names):
            low, high = RANGES[(index + (place if index > 2 else 0)) % len(RANGES)]
            values[name] = Fraction(low) + Fraction(high - low) * next(draws)
        yield values


def whole_points(names: list[str], whole: set[str]) -> Iterator[dict[str, Fraction]]:
    draws = cycle(DRAWS)
    for index in range(1, 7):
        yield {
            name: Fraction(index + place) if name in whole else 1 + next(draws)
            for place, name in enumerate(names)
        }


def same_there(gold: Node, answer: Node, point: Point) -> bool | None:
    """Equal to most of the digits; where both are next to nothing, the gap must go with more digits."""
    values, real, left, right = point
    if near(left, right, DIGITS - 20):
        return True
    if max(abs(left), abs(right)) > 10.0 ** -(DIGITS // 2) and not near(left, right, DIGITS // 2):
        return False
    try:
        left, right = (approximate(side, values, 2 * DIGITS, real) for side in (gold, answer))
    except Undefined:
        return None
    gap, before = abs(left - right), abs(point[2] - point[3])
    return near(left, right, 2 * DIGITS - 40) or bool(gap * 10 ** (DIGITS // 2) < before)


def near(left: Value, right: Value, digits: int) -> bool:
    gap = abs(left - right)
    return bool(gap == 0 or gap * 10**digits <= max(abs(left), abs(right)))


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
