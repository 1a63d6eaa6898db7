"""Are two answers the same mathematical object? Dispatch on what they are.

True and False are certain, None means undecided. Raises TooBig where a value is out of all range.
"""

import re
from fractions import Fraction

from pipeline.verify.evaluate import Undefined, approximate
from pipeline.verify.expand import alternatives, count_signs
from pipeline.verify.labels import Assignment, assignment, strip_domains
from pipeline.verify.realsets import is_definite_set, same_real_set
from pipeline.verify.residues import same_residues
from pipeline.verify.scalars import close, same_scalar, same_value, variables_of
from pipeline.verify.several_values import collect, same_collection
from pipeline.verify.tree import (
    Apply,
    Based,
    Constant,
    Definition,
    Group,
    Matrix,
    Modular,
    Node,
    Number,
    Quantity,
    Ratio,
    Relation,
    Text,
    Variable,
)
from pipeline.verify.words import meaning

POINTS = tuple(0.37 + 0.73 * k for k in range(6)) + tuple(-0.41 - 0.83 * k for k in range(6))
INTEGRATION = frozenset({"C", "c", "K", "C_1", "c_1"})  # names of a constant of integration
OPPOSITE = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=", "approx": "approx"}


def same(gold: Node, answer: Node, rounded: bool = False) -> bool | None:
    if gold == answer:
        return True
    num_signs = count_signs(gold), count_signs(answer)
    if any(num_signs):
        verdict = same_kind(alternatives(gold, True), alternatives(answer, True), rounded)
        if verdict or max(num_signs) < 2:
            return verdict
        return same_kind(alternatives(gold, False), alternatives(answer, False), rounded)
    return same_kind(gold, answer, rounded)


def same_kind(gold: Node, answer: Node, rounded: bool) -> bool | None:
    if isinstance(gold, Text) and isinstance(answer, Text):
        return meaning(gold.words) == meaning(answer.words)
    classes = same_residues(gold, answer)
    if classes is not None:
        return classes
    gold, answer = strip_domains(gold), strip_domains(answer)
    if (is_definite_set(gold) or is_definite_set(answer)) and not python_list(gold, answer):
        sets = same_real_set(gold, answer)
        if sets is not None:
            return sets
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        gold, answer = nested_matrix(gold), nested_matrix(answer)
    left, right = collect(gold), collect(answer)
    if left is not None or right is not None:
        return same_collection(left, right, (gold, answer), same)
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        return same_matrix(gold, answer)
    if isinstance(gold, Relation | Definition) or isinstance(answer, Relation | Definition):
        return same_labelled(gold, answer, rounded)
    return same_single(gold, answer, rounded)


def nested_matrix(node: Node) -> Node:
    """[[1, 2], [3, 4]] and A = ... as a matrix."""
    named = assignment(node) if isinstance(node, Relation) else None
    node = node if named is None else named.value
    if isinstance(node, Group) and all(
        isinstance(item, Group) and item.kind == "bracket" for item in node.items
    ):
        rows = tuple(item.items for item in node.items if isinstance(item, Group))
        if len({len(row) for row in rows}) == 1:
            return Matrix(rows)
    return node


def python_list(gold: Node, answer: Node) -> bool:
    """[1, 2] for a list or a vector is a list, not an interval."""
    square = isinstance(answer, Group) and (answer.left, answer.right) == ("[", "]")
    return square and (
        isinstance(gold, Matrix) or (isinstance(gold, Group) and gold.kind in ("comma", "and"))
    )


def same_single(gold: Node, answer: Node, rounded: bool) -> bool | None:
    if isinstance(gold, Ratio) or isinstance(answer, Ratio):
        return same_ratio(gold, answer)
    if isinstance(gold, Based) or isinstance(answer, Based):
        return same_based(gold, answer)
    if isinstance(gold, Text | Matrix | Modular) or isinstance(answer, Text | Matrix | Modular):
        return None
    sets = ("reals", "integers", "naturals", "rationals", "complexes", "empty")
    if any(isinstance(node, Constant) and node.name in sets for node in (gold, answer)):
        return False
    extra = variables_of(gold) - variables_of(answer), variables_of(answer) - variables_of(gold)
    if all(len(names) == 1 and names <= INTEGRATION for names in extra):
        answer = renamed(answer, {extra[1].pop(): extra[0].pop()})
    return same_scalar(gold, answer, rounded)


def same_matrix(gold: Matrix, answer: Matrix) -> bool | None:
    if len(gold.rows) != len(answer.rows) or len(gold.rows[0]) != len(answer.rows[0]):
        return False
    verdicts = [
        same(left, right)
        for rows in zip(gold.rows, answer.rows, strict=True)
        for left, right in zip(*rows, strict=True)
    ]
    return all_of(verdicts)


def all_of(verdicts: list[bool | None]) -> bool | None:
    if any(verdict is False for verdict in verdicts):
        return False
    return True if all(verdicts) else None


def same_ratio(gold: Node, answer: Node) -> bool | None:
    """a:b:c up to a factor; a:b is also the fraction a/b."""
    parts = [node.parts if isinstance(node, Ratio) else fraction_parts(node) for node in (gold, answer)]
    left, right = parts
    if left is None or right is None:
        return None
    if len(left) != len(right):
        return False
    crossed = [
        same_value(Apply("mul", (left[0], b)), Apply("mul", (a, right[0])))
        for a, b in zip(left[1:], right[1:], strict=True)
    ]
    return all_of(crossed)


def fraction_parts(node: Node) -> tuple[Node, ...] | None:
    match node:
        case Apply("div", (top, bottom)):
            return (top, bottom)
        case Number() | Apply():
            return (node, Number(Fraction(1)))
    return None


def same_based(gold: Node, answer: Node) -> bool | None:
    """Equal digits in an equal base; a base that one side leaves out is taken from the other."""
    match gold, answer:
        case Based(left, left_base), Based(right, right_base):
            left, right = (re.sub("^(-?)(?:0[xbo])?0*", r"\1", digits) for digits in (left, right))
            return left_base == right_base and left == right
        case (Based(digits, _), Number(value)) | (Number(value), Based(digits, _)):
            return digits.isdigit() and Fraction(int(digits)) == value
    return None


def same_labelled(gold: Node, answer: Node, rounded: bool) -> bool | None:
    """Equations, inequalities in several variables, and "x = 5" against "5"."""
    if isinstance(gold, Definition) or isinstance(answer, Definition):
        return same_definition(gold, answer)
    left, right = assignment(gold), assignment(answer)
    if left is not None and right is not None and same_label(left, right):
        return same(left.value, right.value, rounded or right.rounded)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return same_relation(gold, answer)
    if isinstance(gold, Relation):
        return None if left is None else same(left.value, answer, rounded)
    if right is None:
        return same_chain(gold, answer, rounded)
    return same(gold, right.value, rounded or right.rounded)


def same_chain(gold: Node, answer: Node, rounded: bool) -> bool | None:
    """An answer like "2/3 = 0.6666..." or "sqrt 2 approx 1.41": its sides say the same."""
    if not isinstance(answer, Relation) or not set(answer.operators) <= {"=", "approx"}:
        return None
    if any(variables_of(side) for side in answer.sides):
        return None
    verdicts = [same(gold, side, rounded) for side in answer.sides]
    first = verdicts[0] if answer.operators[-1] == "approx" else verdicts[-1]
    return first or (verdicts[-1] if verdicts[-1] and "approx" in answer.operators else first)


def same_label(left: Assignment, right: Assignment) -> bool:
    """Labels in words name what is asked, so they match whatever the other side calls it."""
    return left.label == right.label or " " in left.label + right.label or left.worded or right.worded


def same_definition(gold: Node, answer: Node) -> bool | None:
    """Functions whose parameters may be called differently; a bare body stands for its function."""
    if isinstance(gold, Definition) and isinstance(answer, Definition):
        if len(gold.parameters) != len(answer.parameters) or gold.name != answer.name:
            return False
        renaming = dict(zip(answer.parameters, gold.parameters, strict=True))
        return same(gold.body, renamed(answer.body, renaming))
    if isinstance(gold, Definition):
        body = assignment(answer)
        return same(gold.body, answer if body is None else body.value)
    if not isinstance(answer, Definition):
        return None
    left = assignment(gold)
    body_of_gold = gold if left is None else left.value
    verdict = same(body_of_gold, answer.body)
    names = sorted(variables_of(body_of_gold))
    if not verdict and len(names) == len(answer.parameters) == 1:
        return same(body_of_gold, renamed(answer.body, {answer.parameters[0]: names[0]}))
    return verdict


def renamed(node: Node, names: dict[str, str]) -> Node:
    match node:
        case Variable(name):
            return Variable(names.get(name, name))
        case Apply(name, args):
            return Apply(name, tuple(renamed(arg, names) for arg in args))
        case Quantity(value, unit):
            return Quantity(renamed(value, names), unit)
        case Group(kind, items, left, right):
            return Group(kind, tuple(renamed(item, names) for item in items), left, right)
    return node


def same_relation(gold: Relation, answer: Relation) -> bool | None:
    """Equal up to a constant factor; a negative one turns an inequality round."""
    if len(gold.operators) > 1 or len(answer.operators) > 1:
        return same_long_chain(gold, answer)
    operators = gold.operators[0], answer.operators[0]
    if not set(operators) <= OPPOSITE.keys():
        return None
    differences = [
        Apply("add", (relation.sides[0], Apply("neg", (relation.sides[1],)))) for relation in (gold, answer)
    ]
    names = sorted(variables_of(differences[0]) | variables_of(differences[1]))
    if variables_of(differences[0]) != variables_of(differences[1]):
        return False
    factor = constant_factor(differences[0], differences[1], names)
    if factor is None:
        return None
    if factor == 0:
        return False
    if operators[0] in ("=", "!=", "approx"):
        return operators[0] == operators[1]
    return operators[1] == (operators[0] if factor > 0 else OPPOSITE[operators[0]])


def constant_factor(left: Node, right: Node, names: list[str]) -> float | None:
    """answer = factor * gold at all points; 0 where there is no such factor, None where it is unclear."""
    factors: list[complex] = []
    for index in range(len(POINTS)):
        values = {
            name: complex(POINTS[(index + 5 * k) % len(POINTS)] + 0.1 * k) for k, name in enumerate(names)
        }
        try:
            bottom, top = approximate(left, values, True), approximate(right, values, True)
        except Undefined:
            continue
        if abs(bottom) < 1e-9 or abs(top) < 1e-9:
            if max(abs(bottom), abs(top)) > 1e-6:
                return 0
            continue
        factors.append(top / bottom)
    if len(factors) < 3:
        return None
    verdicts = [close(factors[0], factor) for factor in factors[1:]]
    if not all(verdicts):
        return 0 if any(verdict is False for verdict in verdicts) else None
    return factors[0].real if abs(factors[0].imag) < 1e-9 else 0


def same_long_chain(gold: Relation, answer: Relation) -> bool | None:
    """1 < x < y against itself or y > x > 1."""
    if len(gold.sides) != len(answer.sides):
        return None
    for sides, operators in (
        (answer.sides, answer.operators),
        (answer.sides[::-1], tuple(OPPOSITE.get(operator, "") for operator in answer.operators[::-1])),
    ):
        if operators == gold.operators:
            verdicts = [same(left, right) for left, right in zip(gold.sides, sides, strict=True)]
            if all(verdicts):
                return True
    return None
