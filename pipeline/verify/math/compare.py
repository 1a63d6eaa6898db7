"""Are two answers the same mathematical object? Dispatch on what they are.

True and False are certain, None means undecided. Raises TooBig where a value is out of all range.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter

from pipeline.verify.math.scalars import (
    all_of,
    any_of,
    close,
    exact_or_none,
    same_scalar,
    same_value,
    values_at_points,
)
from pipeline.verify.math.sets import is_definite_set, same_real_set, same_residues
from pipeline.verify.math.tree import (
    DOMAINS,
    OPPOSITE,
    Apply,
    Assignment,
    Based,
    Constant,
    Definition,
    Group,
    Matrix,
    Modular,
    Node,
    Number,
    Ratio,
    Relation,
    Text,
    Variable,
    alternatives,
    assignment,
    count_signs,
    strip_domains,
    unlabelled,
    variables_of,
    with_parts,
)
from pipeline.verify.math.words import meaning

INTEGRATION = frozenset({"C", "c", "K", "C_1", "c_1"})  # names of a constant of integration
MAX_PAIRS = 60  # values of a set that are matched pair by pair; larger ones must be rational


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
        return same_collection(left, right, (gold, answer))
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        return same_matrix(gold, answer)
    if isinstance(gold, Relation | Definition) or isinstance(answer, Relation | Definition):
        return same_labelled(gold, answer, rounded)
    return same_single(gold, answer, rounded)


def nested_matrix(node: Node) -> Node:
    """[[1, 2], [3, 4]] and A = ... as a matrix."""
    node = unlabelled(node)
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
    if any(isinstance(node, Constant) and node.name in DOMAINS | {"empty"} for node in (gold, answer)):
        return False
    extra = variables_of(gold) - variables_of(answer), variables_of(answer) - variables_of(gold)
    if all(len(names) == 1 and names <= INTEGRATION for names in extra):
        answer = renamed(answer, {extra[1].pop(): extra[0].pop()})
    return same_scalar(gold, answer, rounded)


def same_matrix(gold: Matrix, answer: Matrix) -> bool | None:
    if len(gold.rows) != len(answer.rows):
        return False
    return all_of(map(same_ordered, gold.rows, answer.rows))


def same_ratio(gold: Node, answer: Node) -> bool | None:
    """a:b:c up to a factor; a:b is also the fraction a/b."""
    left, right = ratio_parts(gold), ratio_parts(answer)
    if left is None or right is None:
        return None
    if len(left) != len(right):
        return False
    return all_of(
        same_value(Apply("mul", (left[0], b)), Apply("mul", (a, right[0])))
        for a, b in zip(left[1:], right[1:], strict=True)
    )


def ratio_parts(node: Node) -> tuple[Node, ...] | None:
    match node:
        case Ratio(parts) | Apply("div", parts):
            return parts
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
    if variables_of(answer):
        return None
    last = same(gold, answer.sides[-1], rounded)
    if last or answer.operators[-1] == "=":
        return last
    return same(gold, answer.sides[0], rounded)


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
        return same(gold.body, unlabelled(answer))
    if not isinstance(answer, Definition):
        return None
    body = unlabelled(gold)
    verdict = same(body, answer.body)
    names = list(variables_of(body))
    if not verdict and len(names) == len(answer.parameters) == 1:
        return same(body, renamed(answer.body, {answer.parameters[0]: names[0]}))
    return verdict


def renamed(node: Node, names: dict[str, str]) -> Node:
    if isinstance(node, Variable):
        return Variable(names.get(node.name, node.name))
    return with_parts(node, lambda part: renamed(part, names))


def same_relation(gold: Relation, answer: Relation) -> bool | None:
    """Equal up to a constant factor; a negative one turns an inequality round."""
    if len(gold.operators) > 1 or len(answer.operators) > 1:
        return same_long_chain(gold, answer)
    operators = gold.operators[0], answer.operators[0]
    if not set(operators) <= OPPOSITE.keys():
        return None
    left, right = (
        Apply("add", (relation.sides[0], Apply("neg", (relation.sides[1],)))) for relation in (gold, answer)
    )
    if variables_of(left) != variables_of(right):
        return False
    factor = constant_factor(left, right)
    if factor is None:
        return None
    if factor == 0:
        return False
    return operators[1] == (operators[0] if factor > 0 else OPPOSITE[operators[0]])


def constant_factor(gold: Node, answer: Node) -> float | None:
    """answer = factor * gold at all points; 0 where there is no such factor, None where it is unclear."""
    factors: list[complex] = []
    names = sorted(variables_of(gold, answer))
    for bottom, top in values_at_points(gold, answer, names, real=True):
        if abs(bottom) >= 1e-9 and abs(top) >= 1e-9:
            factors.append(top / bottom)
        elif max(abs(bottom), abs(top)) > 1e-6:
            return 0
    if len(factors) < 3:
        return None
    constant = all_of(close(factors[0], factor) for factor in factors[1:])
    if not constant:
        return None if constant is None else 0
    return factors[0].real if abs(factors[0].imag) < 1e-9 else 0


def same_long_chain(gold: Relation, answer: Relation) -> bool | None:
    """1 < x < y against itself or y > x > 1."""
    turned = Relation(
        answer.sides[::-1], tuple(OPPOSITE.get(operator, "") for operator in answer.operators[::-1])
    )
    ways = [way for way in (answer, turned) if way.operators == gold.operators]
    return True if any(same_ordered(gold.sides, way.sides) for way in ways) else None


@dataclass(frozen=True, slots=True)
class Collection:
    """An answer that is several values: a list, set, tuple, vector or named components.

    `order`: a tuple or vector is ordered, a set has no order ("set"), a plain list takes its order from the
    other side ("free"). `labels`: the distinct names of the values, if they have names.
    """

    items: tuple[Node, ...]
    order: str
    labels: tuple[str, ...] = ()


def collect(node: Node) -> Collection | None:
    """None for a single value."""
    match node:
        case Group("bracket", items):
            return None if len(items) == 1 else named(items, "ordered")
        case Group("set", items):
            return Collection(items, "set")
        case Group(_, items):
            return named(items, "free")
        case Constant("empty"):
            return Collection((), "set")
        case Matrix(rows) if len(rows) == 1 or len(rows[0]) == 1:
            return Collection(tuple(item for row in rows for item in row), "ordered")
        case Relation((_, Group(_, _) as group), ("in",)):
            return collect(group)
        case Relation(_, _) if (found := assignment(node)) is not None:
            return collect(found.value)
    return None


def named(items: tuple[Node, ...], order: str) -> Collection:
    """Names in front of the values are taken off: all the same (x = 1, x = 2), or one for each."""
    found = [assignment(item) for item in items]
    labels = tuple(one.label for one in found if one is not None)
    values = tuple(item if one is None else one.value for item, one in zip(items, found, strict=True))
    if len(labels) < len(items):  # x = 1 or 2
        only_first = found[0] is not None and len(labels) == 1
        return Collection(values if only_first else items, order)
    distinct = tuple(dict.fromkeys(labels))
    if len(distinct) == 1:
        return Collection(values, "set" if len(values) > 1 else order)
    if len(distinct) == len(values):
        return Collection(values, order, labels)
    size = len(distinct)
    if len(values) % size == 0 and labels == distinct * (len(values) // size):
        tuples = [Group("bracket", values[k : k + size], "(", ")") for k in range(0, len(values), size)]
        return Collection(tuple(tuples), "set")
    return Collection(items, order)


def same_collection(
    gold: Collection | None, answer: Collection | None, nodes: tuple[Node, Node]
) -> bool | None:
    """At least one of the two is a collection; `nodes` are the originals."""
    if gold is None or answer is None:
        only, other = (answer, nodes[0]) if gold is None else (gold, nodes[1])
        if only is None or isinstance(other, Text | Matrix):
            return None
        if len(only.items) == 1:
            return same(other, only.items[0]) if gold is None else same(only.items[0], other)
        return None if isinstance(other, Relation) and assignment(other) is None else False
    if gold.labels and answer.labels:
        return same_named(gold, answer)
    if gold.labels or answer.labels:
        return same_half_named(gold, answer)
    orders = {gold.order, answer.order}
    if orders == {"ordered", "set"}:
        return False if len(gold.items) > 1 else same_unordered(gold.items, answer.items)
    if "ordered" in orders:
        square = isinstance(nodes[1], Group) and nodes[1].left == "[" and gold.order == "free"
        return (same_unordered if square else same_ordered)(gold.items, answer.items)
    verdict = same_unordered(gold.items, answer.items)
    if verdict and orders == {"free"} and len(gold.items) <= MAX_PAIRS:
        return same_repeats(gold.items, answer.items)
    return verdict


def same_repeats(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
    """In a plain list what is written twice counts twice."""
    return all(
        sum(bool(same(item, other)) for other in gold) == sum(bool(same(item, other)) for other in answer)
        for item in gold
    )


def same_named(gold: Collection, answer: Collection) -> bool | None:
    if set(gold.labels) != set(answer.labels):
        return roots(gold) and roots(answer) and same_unordered(gold.items, answer.items)
    verdict = same_ordered(by_name(gold), by_name(answer))
    return verdict or (same_unordered(gold.items, answer.items) if roots(gold) else verdict)


def same_half_named(gold: Collection, answer: Collection) -> bool | None:
    """Names on one side: the values in the order in which they stand, or in that of the names."""
    labelled, other = (gold, answer) if gold.labels else (answer, gold)
    if other.order != "ordered" and (roots(labelled) or other.order == "set"):
        return same_unordered(gold.items, answer.items)
    return any_of([same_ordered(gold.items, answer.items), same_ordered(by_name(gold), by_name(answer))])


def by_name(collection: Collection) -> tuple[Node, ...]:
    """The items in the order of their labels, if they have labels."""
    if not collection.labels:
        return collection.items
    pairs = zip(collection.labels, collection.items, strict=True)
    return tuple(item for _, item in sorted(pairs, key=itemgetter(0)))


def roots(collection: Collection) -> bool:
    """x_1 and x_2 number the solutions of one unknown."""
    return len({label.partition("_")[0] for label in collection.labels}) == 1


def same_ordered(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> bool | None:
    return len(gold) == len(answer) and all_of(map(same, gold, answer))


def same_unordered(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> bool | None:
    """Every value of one side has its match on the other; what is written twice counts once."""
    left, right = ({exact_or_none(item) for item in items} for items in (gold, answer))
    if left == right and None not in left:
        return True
    if max(len(gold), len(answer)) > MAX_PAIRS:
        return None if None in left | right else False
    rows = [[same(one, other) for other in answer] for one in gold]
    columns = [[row[index] for row in rows] for index in range(len(answer))]
    return all_of(map(any_of, rows + columns))
