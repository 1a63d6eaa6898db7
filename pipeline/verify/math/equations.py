"""Have two equations the same solutions? And what is equal up to the names and values of free constants.

Equations that differ by more than a factor are the same where their numerators have the same irreducible
factors, so that no solution is lost or won but where a denominator vanishes. All others are undecided:
solutions that are found numerically never show that there are no more.
"""

from collections.abc import Callable
from fractions import Fraction
from itertools import islice, permutations

import mpmath

from pipeline.verify.math.scalars import DIGITS, near, same_at_points, values_at_points
from pipeline.verify.math.symbolic import same_factors
from pipeline.verify.math.tree import (
    OPPOSITE,
    Apply,
    Constant,
    Node,
    Number,
    Relation,
    Variable,
    replaced,
    variables_of,
    walk,
)

INTEGRATION = frozenset({"C", "c", "K", "k", "C_0"})  # names of what is added to an antiderivative
CONSTANTS = frozenset("A B C D K C_1 C_2 C_3 c_1 c_2 c_3 C_0".split())  # noqa: SIM905
BASES = (Fraction(7, 10), Fraction(17, 10), Fraction(33, 10), Fraction(-7, 10))


def difference(left: Node, right: Node) -> Node:
    return Apply("add", (left, Apply("neg", (right,))))


def without_logarithm(left: Node, right: Node) -> tuple[Node, Node]:
    """ln y = 2x is y = e^(2x)."""
    match left, right:
        case (Apply("ln", (inner,)), other) | (other, Apply("ln", (inner,))):
            return inner, Apply("pow", (Constant("e"), other))
    return left, right


def same_relation(gold: Relation, answer: Relation) -> bool | None:
    """Two sides each. Equal up to a factor (which may turn an inequality round), or in their factors."""
    operators = gold.operators[0], answer.operators[0]
    if not set(operators) <= OPPOSITE.keys():
        return None
    left, right = (difference(*without_logarithm(*node.sides)) for node in (gold, answer))
    if variables_of(left) != variables_of(right):
        return None
    factor = constant_factor(left, right)
    if factor:
        return operators[1] == (operators[0] if factor > 0 else OPPOSITE[operators[0]])
    return same_factors(left, right) if operators == ("=", "=") else None


def constant_factor(gold: Node, answer: Node) -> int | None:
    """The sign of the constant c where answer = c * gold at all points; 0 without one, None where unclear."""
    names = sorted(variables_of(gold, answer))
    sides = [sides for _, _, *sides in islice(values_at_points(gold, answer, names), 4) if all(sides)]
    if len(sides) < 2 or any(abs(left) < 1e-60 for left, _ in sides):
        return None
    with mpmath.workdps(DIGITS):
        factors = [right / left for left, right in sides]
    if abs(factors[0].imag) > 1e-60 or not all(
        near(factors[0], factor, DIGITS - 20) for factor in factors[1:]
    ):
        return 0
    return 1 if factors[0].real > 0 else -1


def same_up_to_constants(
    gold: Node, answer: Node, compare: Callable[[Node, Node], bool | None]
) -> bool | None:
    """Where the gold has free constants: equal under other names, or (+ C) up to the value of one."""
    free = [(sorted(variables_of(node) & INTEGRATION), node) for node in (gold, answer)]
    if all(len(names) == 1 < len(variables_of(node)) and is_added(node, names[0]) for names, node in free):
        left, right = (replaced(node, {names[0]: Number(Fraction(0))}) for names, node in free)
        return is_constant(difference(left, right))
    ours, theirs = (sorted(variables_of(node) & CONSTANTS) for node in (gold, answer))
    extra = set(theirs) - set(ours)
    if not extra or len(ours) != len(theirs) or len(ours) > 3 or len(variables_of(gold)) == len(ours):
        return None
    # C e^x, of a differential equation, may be A e^x
    solves = len(ours) == 1 and Constant("e") in walk(gold) and is_factor(gold, ours[0])
    if len(ours) == 1 and not (solves or (extra | set(ours)) <= INTEGRATION | {"C_1"}):
        return None
    for names in permutations(ours):
        if compare(gold, replaced(answer, dict(zip(theirs, map(Variable, names), strict=True)))):
            return True
    return None


def is_added(node: Node, name: str) -> bool:
    """Whether the constant is only added: with 1 in its place the value is 1 more than with 0."""
    zero, one = (replaced(node, {name: Number(Fraction(k))}) for k in (0, 1))
    return same_at_points(Apply("add", (zero, Number(Fraction(1)))), one) is True


def is_factor(node: Node, name: str) -> bool:
    one, two = (replaced(node, {name: Number(Fraction(k))}) for k in (1, 2))
    return same_at_points(Apply("mul", (Number(Fraction(2)), one)), two) is True


def is_constant(node: Node) -> bool | None:
    names = variables_of(node)
    if not names:
        return True
    for base in BASES:
        verdict = same_at_points(node, replaced(node, dict.fromkeys(names, Number(base))))
        if verdict is not None:
            return verdict
    return None
