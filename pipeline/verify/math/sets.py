"""Infinite sets: unions of real intervals, and classes of numbers a fixed step apart.

Intervals, inequalities, set-builder notation and exclusions are unions of intervals, whose ends are exact, or
rounded to forty digits. 3 mod 7, x = 7k + 3 and pi/4 + 2 pi n are classes, written with a modulus or with an
integer parameter.
"""

import math
from bisect import bisect_right
from fractions import Fraction
from functools import partial, reduce
from operator import and_, gt, or_

from pipeline.verify.math.scalars import infinity_sign, near, real_value
from pipeline.verify.math.tree import (
    OPPOSITE,
    Apply,
    Builder,
    Constant,
    Group,
    Node,
    Number,
    Quantity,
    Relation,
    Variable,
    replaced,
    variables_of,
)

INEQUALITIES = frozenset({"<", ">", "<=", ">=", "!="})
LINE = (0, 1, 2, 7)  # places at which a line is told from a curve
MAX_ELEMENTS = 1_000  # of a set of integers between bounds
EXACT = 36  # digits to which irrational values must agree
INFINITY = math.inf

End = Fraction | float  # an exact or a forty-digit value, or one of the infinities
Cut = tuple[End, bool]  # the place right before a number, or (True) right behind it
RealSet = tuple[Cut, ...]  # ascending: the set begins at the first cut, ends at the second, begins again, ...
ALL: RealSet = ((-INFINITY, True), (INFINITY, False))
INSIDE = {"cup": or_, "cap": and_, "setminus": gt}  # whether a place in A (in B) is in the result


def same_real_set(gold: Node, answer: Node) -> bool | None:
    """None where one of the two cannot be read as a set of reals."""
    left, right = real_set(gold), real_set(answer)
    if left is None or right is None:
        return None
    return len(left) == len(right) and all(map(same_cut, left, right))


def is_definite_set(node: Node) -> bool:
    """Whether a node can be nothing but a set of reals (unlike (1, 2), which may be a point)."""
    match node:
        case Group("bracket", (low, high), left, right):
            return bool(infinity_sign(low) or infinity_sign(high)) or left == "[" or right == "]"
        case Apply("cup" | "cap" | "setminus", _) | Builder(_, _) | Constant("reals" | "empty"):
            return True
        case Relation(sides, operators):
            if operators == ("in",):
                return is_definite_set(sides[1]) or isinstance(sides[1], Group)
            return bool(INEQUALITIES & set(operators)) and len(variables_of(*sides)) == 1
        case Group("or" | "and" | "comma", items):
            return any(is_definite_set(item) for item in items)
    return False


def real_set(node: Node) -> RealSet | None:
    match node:
        case Group("bracket", (low, high), left, right):
            return interval(low, high, left == "[", right == "]")
        case Group("set", items) | Group("bracket", items):
            return points(items)
        case Group("or" | "and" | "comma" as kind, items):
            return combined(kind, items)
        case Apply("cup" | "cap" | "setminus" as name, (first, second)):
            return operated(name, real_set(first), real_set(second))
        case Apply("add", (Constant("reals"), Apply("neg", (removed,)))):
            return operated("setminus", ALL, real_set(removed))
        case Constant("reals"):
            return ALL
        case Constant("empty"):
            return ()
        case Builder(element, condition):
            return built(element, condition)
        case Relation(sides, operators):
            return relation_set(sides, operators)
    return points((node,))


def end_value(node: Node) -> End | None:
    if (sign := infinity_sign(node)) != 0:
        return sign * INFINITY
    return real_value(node.value if isinstance(node, Quantity) else node)


def interval(low: Node, high: Node, has_low: bool, has_high: bool) -> RealSet | None:
    start, end = end_value(low), end_value(high)
    if start is None or end is None or start > end or (start == end and not (has_low and has_high)):
        return None
    return (start, not has_low), (end, has_high)  # closed at infinity is kept, and equals nothing


def points(items: tuple[Node, ...]) -> RealSet | None:
    values = {end_value(item) for item in items}
    numbers = sorted(value for value in values if value is not None and math.isfinite(value))
    if len(numbers) < len(values):
        return None
    return tuple((number, behind) for number in numbers for behind in (False, True))


def built(element: Node, condition: Node) -> RealSet | None:
    """{x | ...}, {x in R | ...}, {n in N | 1 <= n <= 3}."""
    match element:
        case Variable(name) if variables_of(condition) == {name}:
            return real_set(condition)
        case Relation((Variable(name), _), _) if variables_of(condition) != {name}:
            return None
        case Relation((Variable(_), Constant("integers" | "naturals" as domain)), ("in",)):
            return whole_numbers(real_set(condition), domain)
        case Relation((Variable(_), domain), ("in",)):
            return operated("cap", real_set(domain), real_set(condition))
    return None


def whole_numbers(found: RealSet | None, domain: str) -> RealSet | None:
    """Those of a set that ends on both sides; 0 is only where no doubt is whether naturals begin there."""
    if not found or (domain == "naturals" and holds(found, (Fraction(0), False))):
        return None
    first = found[0][0] if domain == "integers" else max(found[0][0], Fraction(1))
    if not isinstance(first, Fraction) or not isinstance(found[-1][0], Fraction):
        return None
    first, last = math.ceil(first), math.floor(found[-1][0])
    if last - first > MAX_ELEMENTS:
        return None
    kept = [Number(Fraction(k)) for k in range(first, last + 1) if holds(found, (Fraction(k), False))]
    return points(tuple(kept))


def combined(kind: str, items: tuple[Node, ...]) -> RealSet | None:
    """ "or" is a union, "and" an intersection; a comma is an intersection unless that is empty."""
    sets = [real_set(item) for item in items]
    definite = all(map(is_definite_set, items))
    if kind == "comma" and definite:
        common = joined("cap", sets)
        if common is None or common:
            return common
    return joined("cap" if kind == "and" and definite else "cup", sets)


def joined(name: str, sets: list[RealSet | None]) -> RealSet | None:
    return reduce(partial(operated, name), sets)


def relation_set(sides: tuple[Node, ...], operators: tuple[str, ...]) -> RealSet | None:
    """A chain of (in)equalities in one variable that is linear on every side, or x in a set."""
    if operators == ("in",) and isinstance(sides[0], Variable):
        return real_set(sides[1])
    names = variables_of(*sides)
    if len(names) != 1 or not set(operators) <= INEQUALITIES | {"="}:
        return None
    steps = zip(sides, operators, sides[1:], strict=False)
    return joined("cap", [inequality_set(*step, next(iter(names))) for step in steps])


def inequality_set(left: Node, operator: str, right: Node, name: str) -> RealSet | None:
    if infinity_sign(left) or (isinstance(right, Apply) and right.name == "abs"):
        left, operator, right = right, OPPOSITE[operator], left
    match left:
        case Variable() if infinity_sign(right):
            return ALL
        case Apply("abs", (inner,)) if name not in variables_of(right):  # both bounds, or either
            upper = inequality_set(inner, operator, right, name)
            lower = inequality_set(inner, OPPOSITE[operator], Apply("neg", (right,)), name)
            return operated("cap" if operator in ("<", "<=", "!=") else "cup", upper, lower)
    linear = linear_form(Apply("add", (left, Apply("neg", (right,)))), name)
    if linear is None or linear[0] == 0:
        return None
    slope, offset = linear
    return half_line(-offset / slope, operator if slope > 0 else OPPOSITE[operator])


def half_line(bound: Fraction, operator: str) -> RealSet:
    (low, high), before, behind = ALL, (bound, False), (bound, True)
    return {
        "<": (low, before),
        "<=": (low, behind),
        ">": (behind, high),
        ">=": (before, high),
        "=": (before, behind),
        "!=": (low, before, behind, high),
    }[operator]


def linear_form(node: Node, name: str) -> tuple[Fraction, Fraction] | None:
    """(slope, offset), found at two points and checked at two more."""
    known: list[Fraction] = []
    for point in LINE:
        value = real_value(replaced(node, {name: Number(Fraction(point))}))
        if value is None:
            return None
        known.append(value)
    slope = known[1] - known[0]
    gaps = [abs(known[0] + slope * x - value) for x, value in zip(LINE, known, strict=True)]
    return (slope, known[0]) if max(gaps) * 10**EXACT <= max(map(abs, known)) else None


def operated(name: str, first: RealSet | None, second: RealSet | None) -> RealSet | None:
    if first is None or second is None:
        return None
    result: list[Cut] = []
    for place in sorted({*first, *second}):
        if INSIDE[name](holds(first, place), holds(second, place)) != len(result) % 2:
            result.append(place)
    return tuple(result)


def holds(pieces: RealSet, place: Cut) -> bool:
    """Whether what follows a cut is in the set."""
    return bisect_right(pieces, place) % 2 == 1


def same_cut(left: Cut, right: Cut) -> bool:
    if isinstance(left[0], float) or isinstance(right[0], float):
        return left == right
    return left[1] == right[1] and near(left[0], right[0], EXACT)
