"""Infinite sets: unions of real intervals, and residue classes.

Intervals, inequalities, set-builder notation and exclusions are unions of intervals, whose ends are floats:
equality within 1e-9 is all that a comparison of answers needs. 3 mod 7, x = 7k + 3 and pi/4 + 2 pi n are
residue classes, written with a modulus or with an integer parameter.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import partial, reduce
from operator import and_, gt, or_

from pipeline.verify.math.scalars import any_of, infinity_sign, real_value, same_value
from pipeline.verify.math.tree import (
    OPPOSITE,
    Apply,
    Builder,
    Constant,
    Group,
    Modular,
    Node,
    Number,
    Quantity,
    Relation,
    Variable,
    declared,
    items_of,
    strip_domains,
    unlabelled,
    variables_of,
    with_parts,
)

INEQUALITIES = frozenset({"<", ">", "<=", ">=", "!="})
LINE = (0, 1, 2, 7)  # places at which a line is told from a curve

Cut = tuple[float, bool]  # the place right before a number, or (True) right behind it
RealSet = tuple[Cut, ...]  # ascending: the set begins at the first cut, ends at the second, begins again, ...
ALL: RealSet = ((-math.inf, True), (math.inf, False))
INSIDE = {"cup": or_, "cap": and_, "setminus": gt}  # whether a place in A (in B) is in the result


def same_real_set(gold: Node, answer: Node) -> bool | None:
    """None where one of the two cannot be read as a set of reals."""
    left, right = real_set(gold), real_set(answer)
    if left is None or right is None:
        return None
    return len(left) == len(right) and all(map(same_cut, left, right))


def same_cut(left: Cut, right: Cut) -> bool:
    return left[1] == right[1] and math.isclose(left[0], right[0], rel_tol=1e-9, abs_tol=1e-9)


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


def end_value(node: Node) -> float | None:
    """Twelve digits of it, so that ends which are written differently still meet."""
    if (sign := infinity_sign(node)) != 0:
        return sign * math.inf
    value = real_value(node.value if isinstance(node, Quantity) else node)
    try:
        return None if value is None else float(f"{float(value):.12g}")
    except OverflowError:
        return None


def interval(low: Node, high: Node, has_low: bool, has_high: bool) -> RealSet | None:
    start, end = end_value(low), end_value(high)
    if start is None or end is None or start > end:
        return None
    cuts = (start, not has_low), (end, has_high)  # closed at infinity is kept, and equals nothing
    return cuts if cuts[0] < cuts[1] else ()


def points(items: tuple[Node, ...]) -> RealSet | None:
    values = {end_value(item) for item in items}
    numbers = sorted(value for value in values if value is not None and math.isfinite(value))
    if len(numbers) < len(values):
        return None
    return tuple((number, behind) for number in numbers for behind in (False, True))


def built(element: Node, condition: Node) -> RealSet | None:
    """{x | ...}, {x in R | ...}: a domain other than a set of reals is not read."""
    match element:
        case Variable(_):
            return real_set(condition)
        case Relation((Variable(_), domain), ("in",)):
            return operated("cap", real_set(domain), real_set(condition))
    return None


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
    if linear is None or abs(linear[0]) < 1e-12:
        return None
    slope, offset = linear
    bound = end_value(Number(-offset / slope))
    return None if bound is None else half_line(bound, operator if slope > 0 else OPPOSITE[operator])


def half_line(bound: float, operator: str) -> RealSet:
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
        value = real_value(substituted(node, name, Number(Fraction(point))))
        if value is None:
            return None
        known.append(value)
    slope = known[1] - known[0]
    tolerance = (max(map(abs, known)) + 1) / 10**9
    straight = all(
        abs(known[0] + slope * point - value) < tolerance for point, value in zip(LINE, known, strict=True)
    )
    return (slope, known[0]) if straight else None


def substituted(node: Node, name: str, value: Node) -> Node:
    if isinstance(node, Quantity) and node.unit.dimension == "percent":  # as in the ends of an interval
        return substituted(node.value, name, value)
    if node == Variable(name):
        return value
    return with_parts(node, lambda part: substituted(part, name, value))


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


@dataclass(frozen=True, slots=True)
class Classes:
    residues: tuple[Fraction, ...]
    modulus: Fraction


def same_residues(gold: Node, answer: Node) -> bool | None:
    """None where neither is a residue class."""
    left, right = read_classes(gold, False), read_classes(answer, False)
    if left is None and right is None:
        return None
    if left is None:
        value = answer.sides[-1] if isinstance(answer, Relation) else answer
        if isinstance(value, Modular) and not isinstance(gold, Relation | Group):
            return same_value(gold, value.value)
        left = read_classes(gold, True)
    if right is None:
        right = read_classes(answer, True)
        if right is None and left is not None:
            return same_least(left, answer)
    if left is None or right is None:
        return None
    return same_classes(left, right)


def is_declared(node: Node) -> bool:
    return isinstance(node, Group) and any(declared(item) for item in node.items)


def read_classes(node: Node, parametric: bool) -> Classes | None:
    """The classes that are written with a modulus; with `parametric` also those with a parameter."""
    explicit = read_modular(node)
    if explicit is not None or not (parametric or is_declared(node)):
        return explicit
    families = [read_family(item) for item in items_of(strip_domains(node))]
    found = [family for family in families if family is not None]
    if len(found) < len(families) or len({round(modulus, 9) for _, modulus in found}) != 1:
        return None
    return Classes(tuple(offset for offset, _ in found), found[0][1])


def read_family(node: Node) -> tuple[Fraction, Fraction] | None:
    """(offset, step) of a value that is linear in one parameter."""
    value = unlabelled(node)
    if isinstance(value, Quantity):
        value = value.value
    names = variables_of(value)
    linear = linear_form(value, names.pop()) if len(names) == 1 else None
    return (linear[1], abs(linear[0])) if linear is not None and linear[0] else None


def read_modular(node: Node) -> Classes | None:
    """v mod m; x = v mod m; a list of values whose last one carries the modulus."""
    values = [
        item.sides[-1] if isinstance(item, Relation) and item.operators[-1] in ("equiv", "=") else item
        for item in items_of(node)
    ]
    moduli = {real_value(value.modulus) for value in values if isinstance(value, Modular)}
    if len(moduli) != 1 or not (modulus := moduli.pop()):
        return None
    residues = [real_value(value.value if isinstance(value, Modular) else value) for value in values]
    known = tuple(residue for residue in residues if residue is not None)
    return Classes(known, abs(modulus)) if len(known) == len(residues) else None


def same_classes(left: Classes, right: Classes) -> bool | None:
    if abs(left.modulus / right.modulus - 1) > 1e-9:
        return False if len(left.residues) == len(right.residues) else None
    covered = all(any(congruent(a, b, left.modulus) for b in right.residues) for a in left.residues)
    covering = all(any(congruent(a, b, left.modulus) for a in left.residues) for b in right.residues)
    return covered and covering


def congruent(left: Fraction, right: Fraction, modulus: Fraction) -> bool:
    quotient = (left - right) / modulus
    return abs(quotient - round(quotient)) < 1e-9


def same_least(gold: Classes, answer: Node) -> bool | None:
    """A bare number stands for its class when it is the residue that the gold writes, or the least one."""
    value = unlabelled(answer)
    if variables_of(value) or len(gold.residues) != 1:
        return None
    written = gold.residues[0]
    return any_of(same_value(Number(residue), value) for residue in (written, written % gold.modulus))
