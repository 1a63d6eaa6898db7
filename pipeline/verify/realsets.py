"""Sets of real numbers as unions of intervals: intervals, inequalities, set-builder notation, exclusions.

Endpoints are floats: equality within 1e-9 is all that a comparison of answers needs.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from pipeline.verify.evaluate import Undefined, approximate, exact
from pipeline.verify.scalars import infinity_sign, variables_of
from pipeline.verify.tree import Apply, Builder, Constant, Group, Node, Number, Quantity, Relation, Variable

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
INEQUALITIES = frozenset({"<", ">", "<=", ">=", "!="})


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float
    has_low: bool
    has_high: bool


RealSet = tuple[Interval, ...]
ALL: RealSet = (Interval(-math.inf, math.inf, False, False),)


def same_real_set(gold: Node, answer: Node) -> bool | None:
    """None where one of the two is no set of reals that this module can read."""
    left, right = real_set(gold), real_set(answer)
    if left is None or right is None:
        return None
    left, right = merged(left), merged(right)
    return len(left) == len(right) and all(map(same_interval, left, right))


def same_interval(left: Interval, right: Interval) -> bool:
    ends = same_end(left.low, right.low) and same_end(left.high, right.high)
    return ends and left.has_low == right.has_low and left.has_high == right.has_high


def same_end(left: float, right: float) -> bool:
    return left == right or math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)


def is_definite_set(node: Node) -> bool:
    """Whether a node can be nothing but a set of reals (unlike (1, 2), which may be a point)."""
    match node:
        case Group("bracket", (low, high), left, right):
            infinite = infinity_sign(low) or infinity_sign(high)
            return bool(infinite) or left == "[" or right == "]" or left == "]"
        case Apply("cup" | "cap" | "setminus", _) | Builder(_, _):
            return True
        case Constant("reals" | "empty"):
            return True
        case Relation(sides, operators):
            if operators == ("in",):
                return is_definite_set(sides[1]) or isinstance(sides[1], Group)
            return bool(INEQUALITIES & set(operators)) and len(variables_of_all(sides)) == 1
        case Group("or" | "and" | "comma", items):
            return any(is_definite_set(item) for item in items)
    return False


def variables_of_all(sides: tuple[Node, ...]) -> set[str]:
    return set().union(*(variables_of(side) for side in sides))


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
        case Quantity(value, _):
            return points((value,))
    return points((node,))


def end_value(node: Node) -> float | None:
    if (sign := infinity_sign(node)) != 0:
        return sign * math.inf
    if isinstance(node, Apply) and node.name == "add" and infinity_sign(node.args[0]):
        return None
    if isinstance(node, Quantity):
        node = node.value
    try:
        value = exact(node)
        if value is not None:
            return float(value)
        number = approximate(node, {})
    except (Undefined, OverflowError):
        return None
    return number.real if abs(number.imag) < 1e-12 else None


def interval(low: Node, high: Node, has_low: bool, has_high: bool) -> RealSet | None:
    start, end = end_value(low), end_value(high)
    if start is None or end is None or start > end:
        return None
    if start == end:
        return (Interval(start, end, True, True),) if has_low and has_high else ()
    return (Interval(start, end, has_low, has_high),)  # closed at infinity is kept, and equals nothing


def points(items: tuple[Node, ...]) -> RealSet | None:
    values = [end_value(item) for item in items]
    if any(value is None or math.isinf(value) for value in values):
        return None
    return tuple(Interval(value, value, True, True) for value in values if value is not None)


def built(element: Node, condition: Node) -> RealSet | None:
    """{x | ...}, {x in R | ...}: a domain other than the reals is not read."""
    match element:
        case Variable(_):
            return real_set(condition)
        case Relation((Variable(_), Constant("reals")), ("in",)):
            return real_set(condition)
        case Relation((Variable(_), Constant(_)), ("in",)):
            return None
        case Relation((Variable(_), domain), ("in",)):
            return operated("cap", real_set(domain), real_set(condition))
    return None


def combined(kind: str, items: tuple[Node, ...]) -> RealSet | None:
    """ "or" is a union, "and" an intersection; a comma is an intersection unless that is empty."""
    items = tuple(item for item in items if item != Relation((Variable("x"), Constant("reals")), ("in",)))
    sets = [real_set(item) for item in items]
    if kind == "comma" and all(is_definite_set(item) for item in items):
        common = fold("cap", sets)
        if common is None or common:
            return common
    return fold("cap" if kind == "and" and all(map(is_definite_set, items)) else "cup", sets)


def fold(name: str, sets: list[RealSet | None]) -> RealSet | None:
    result = sets[0]
    for other in sets[1:]:
        result = operated(name, result, other)
    return result


def relation_set(sides: tuple[Node, ...], operators: tuple[str, ...]) -> RealSet | None:
    """A chain of (in)equalities in one variable that is linear on every side, or x in a set."""
    if operators == ("in",) and isinstance(sides[0], Variable):
        return real_set(sides[1])
    names = variables_of_all(sides)
    if len(names) != 1 or not set(operators) <= FLIPPED.keys():
        return None
    result: RealSet | None = ALL
    for left, operator, right in zip(sides, operators, sides[1:], strict=False):
        result = operated("cap", result, inequality_set(left, operator, right, next(iter(names))))
    return result


def inequality_set(left: Node, operator: str, right: Node, name: str) -> RealSet | None:
    if isinstance(right, Apply) and right.name == "abs":
        left, operator, right = right, FLIPPED[operator], left
    if isinstance(left, Apply) and left.name == "abs" and name not in variables_of(right):
        return absolute_set(left.args[0], operator, right, name)
    if isinstance(left, Variable) and infinity_sign(right):
        return ALL  # x < infinity
    if isinstance(right, Variable) and infinity_sign(left):
        return ALL
    linear = linear_form(Apply("add", (left, Apply("neg", (right,)))), name)
    if linear is None or abs(linear[0]) < 1e-12:
        return None
    slope, offset = linear
    return half_line(-offset / slope, operator if slope > 0 else FLIPPED[operator])


def absolute_set(inner: Node, operator: str, right: Node, name: str) -> RealSet | None:
    """|linear| < constant and its kin."""
    parts = (Apply("add", (inner, Apply("neg", (right,)))), Apply("add", (inner, right)))
    upper, lower = (linear_form(part, name) for part in parts)
    if upper is None or lower is None or abs(upper[0]) < 1e-12:
        return None
    ends = sorted((-upper[1] / upper[0], -lower[1] / lower[0]))
    bound = end_value(right)
    if bound is None or bound < 0:
        return None
    closed = operator in ("<=", "=")
    inside: RealSet = (Interval(ends[0], ends[1], closed, closed),) if ends[0] < ends[1] or closed else ()
    match operator:
        case "<" | "<=":
            return inside
        case ">" | ">=":
            outer = (Interval(ends[0], ends[1], operator == ">", operator == ">"),)
            return complement(outer if ends[0] < ends[1] or operator == ">" else ())
    return None


def half_line(bound: float, operator: str) -> RealSet:
    match operator:
        case "<" | "<=":
            return (Interval(-math.inf, bound, False, operator == "<="),)
        case ">" | ">=":
            return (Interval(bound, math.inf, operator == ">=", False),)
        case "=":
            return (Interval(bound, bound, True, True),)
    return complement((Interval(bound, bound, True, True),))


def linear_form(node: Node, name: str) -> tuple[float, float] | None:
    """(slope, offset), found at three points and checked at a fourth."""
    values = []
    for point in (0, 1, 2, 7):
        try:
            value = exact(substituted(node, name, Fraction(point)))
            number = complex(float(value)) if value is not None else approximate(node, {name: complex(point)})
        except (Undefined, OverflowError):
            return None
        if number.imag:
            return None
        values.append(number.real)
    slope = values[1] - values[0]
    scale = max(map(abs, values)) + 1.0
    straight = all(
        abs(values[0] + slope * point - value) < 1e-9 * scale
        for point, value in zip((0, 1, 2, 7), values, strict=True)
    )
    return (slope, values[0]) if straight else None


def substituted(node: Node, name: str, value: Fraction) -> Node:
    match node:
        case Variable(other) if other == name:
            return Number(value)
        case Apply(operation, args):
            return Apply(operation, tuple(substituted(arg, name, value) for arg in args))
        case Quantity(inner, _):
            return substituted(inner, name, value)
    return node


def operated(name: str, first: RealSet | None, second: RealSet | None) -> RealSet | None:
    if first is None or second is None:
        return None
    if name == "cup":
        return merged(first + second)
    if name == "setminus":
        second = complement(second)
    pieces = [common for left in first for right in second if (common := overlap(left, right)) is not None]
    return merged(tuple(pieces))


def overlap(left: Interval, right: Interval) -> Interval | None:
    low, high = max(left.low, right.low), min(left.high, right.high)
    has_low = all(side.has_low for side in (left, right) if side.low == low)
    has_high = all(side.has_high for side in (left, right) if side.high == high)
    if low > high or (low == high and not (has_low and has_high)):
        return None
    return Interval(low, high, has_low, has_high)


def complement(pieces: RealSet) -> RealSet:
    result: list[Interval] = []
    low, has_low = -math.inf, False
    for piece in merged(pieces):
        if low < piece.low or (low == piece.low and has_low and not piece.has_low):
            result.append(Interval(low, piece.low, has_low, not piece.has_low))
        low, has_low = piece.high, not piece.has_high
    if low < math.inf:
        result.append(Interval(low, math.inf, has_low, False))
    return tuple(result)


def merged(pieces: RealSet) -> RealSet:
    """Sorted, with pieces that overlap or touch joined."""
    result: list[Interval] = []
    for piece in sorted(pieces, key=lambda piece: (piece.low, not piece.has_low)):
        last = result[-1] if result else None
        touches = last is not None and (
            piece.low < last.high or (same_end(piece.low, last.high) and (piece.has_low or last.has_high))
        )
        if last is None or not touches:
            result.append(piece)
            continue
        if piece.high > last.high:
            result[-1] = Interval(last.low, piece.high, last.has_low, piece.has_high)
        elif piece.high == last.high:
            result[-1] = Interval(last.low, last.high, last.has_low, last.has_high or piece.has_high)
    return tuple(result)
