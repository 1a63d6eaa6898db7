"""Are two answers the same mathematical object? Dispatch on what they are.

True and False are certain, None means undecided. Raises TooBig where a value is out of all range.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from operator import itemgetter

from pipeline.verify.math.equations import same_relation, same_up_to_constants
from pipeline.verify.math.matrices import as_matrix, holds_matrix, vector_of
from pipeline.verify.math.scalars import all_of, any_of, exact_or_none, same_scalar
from pipeline.verify.math.sets import is_definite_set, same_real_set
from pipeline.verify.math.tree import (
    DOMAINS,
    Apply,
    Assignment,
    Builder,
    Constant,
    Group,
    Matrix,
    Node,
    Number,
    Quantity,
    Relation,
    Text,
    Time,
    Variable,
    alternatives,
    assignment,
    count_signs,
    domains_of,
    replaced,
    strip_domains,
    unlabelled,
    variables_of,
    walk,
    with_parts,
)
from pipeline.verify.math.units import LETTERS
from pipeline.verify.math.words import KNOWN_MEANINGS, meaning

MAX_PAIRS = 32  # values of a set that are matched pair by pair; larger ones must be rational
MAX_ITEMS = 3_000  # of a list that is written with an ellipsis
PARAMETERS = frozenset({"s", "t", "k", "u", "m", "n", "r", "lambda", "alpha", "mu"})
ELLIPSIS = Constant("ellipsis")


def same(gold: Node, answer: Node, rounded: bool = False) -> bool | None:
    if gold == answer:
        return True
    if is_plain(gold) and is_plain(answer):
        return same_single(gold, answer, rounded)
    gold, answer = with_integers(gold, answer)
    verdict = same_signed(gold, answer, rounded)
    return verdict or (None if domains_of(gold) or domains_of(answer) else verdict)


def same_signed(gold: Node, answer: Node, rounded: bool) -> bool | None:
    """With what plus-minus signs stand for written out."""
    num_signs = count_signs(gold), count_signs(answer)
    if not any(num_signs):
        return same_kind(gold, answer, rounded)
    if is_definite_set(gold) or is_definite_set(answer):
        return None  # an interval has no two ends in one place
    verdict = same_kind(alternatives(gold, False), alternatives(answer, False), rounded)
    if verdict or max(num_signs) < 2:
        return verdict
    linked = same_kind(alternatives(gold, True), alternatives(answer, True), rounded)
    return linked if linked is False or all(num_signs) else None


def is_plain(node: Node) -> bool:
    """Arithmetic with numbers and letters, the common case: one value, without a second look at its form."""
    for part in walk(node):
        match part:
            case Number() | Quantity() | Constant("pi" | "e" | "i"):
                pass
            case Variable(name) if "\\" not in name:
                pass
            case Apply(name, _) if name not in ("pm", "mp", "cup", "cap", "setminus"):
                pass
            case _:
                return False
    return True


def with_integers(gold: Node, answer: Node) -> tuple[Node, Node]:
    """Parameters that either side declares as integers, by order of their names under common ones (#1)."""
    ours, theirs = (sorted(domains_of(node)) for node in (gold, answer))
    if len(ours) == len(theirs):
        both = [
            replaced(node, {name: Variable(f"#{place}") for place, name in enumerate(names)})
            for node, names in ((gold, ours), (answer, theirs))
        ]
        return both[0], both[1]
    names = {name: Variable("#" + name) for name in ours + theirs}
    return replaced(gold, names), replaced(answer, names)


def same_kind(gold: Node, answer: Node, rounded: bool) -> bool | None:
    if isinstance(gold, Text) and isinstance(answer, Text):
        meanings = meaning(gold.words), meaning(answer.words)
        return meanings[0] == meanings[1] or (False if set(meanings) <= KNOWN_MEANINGS else None)
    if named_apart(gold, answer):
        return None
    gold, answer = strip_domains(gold), strip_domains(answer)
    if (is_definite_set(gold) or is_definite_set(answer)) and not python_list(gold, answer):
        sets = same_real_set(gold, answer)
        if sets is not None:
            return sets
        if is_half_open(gold) != is_half_open(answer):
            return None
    if holds_matrix(gold) or holds_matrix(answer):
        gold, answer = as_matrix(gold, answer), as_matrix(answer, gold)
    gold, answer = vector_of(gold, answer), vector_of(answer, gold)
    answer = with_parameter(gold, answer)
    left, right = collect(gold), collect(answer)
    if left is not None or right is not None:
        return same_collection(left, right, (gold, answer))
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        rows = list(zip(gold.rows, answer.rows, strict=False))
        return len(gold.rows) == len(answer.rows) and all_of(same_ordered(*pair) for pair in rows)
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return same_labelled(gold, answer, rounded)
    return same_single(gold, answer, rounded)


def with_parameter(gold: Node, answer: Node) -> Node:
    """(t, 2t) and (s, 2s) are the same points."""
    ours, theirs = variables_of(gold), variables_of(answer)
    if len(ours) == len(theirs) == 1 and ours | theirs <= PARAMETERS and isinstance(gold, Group | Matrix):
        return replaced(answer, {theirs.pop(): Variable(ours.pop())})
    return answer


def named_apart(gold: Node, answer: Node) -> bool:
    """Statements about unknowns of other names, and lists of bare letters joined by another word."""
    match gold, answer:
        case Relation(left, ("in" | "equiv" | "<" | ">" | "<=" | ">=" | "!=", *_)), Relation(
            right, operators
        ):
            return operators != ("=",) and variables_of(*left) != variables_of(*right)
        case Group("or" | "and" as kind, items), Group("or" | "and" as other, _):
            return kind != other and all(isinstance(item, Variable) for item in items)
    return False


def is_half_open(node: Node) -> bool:
    return isinstance(node, Group) and (node.left, node.right) in (("(", "]"), ("[", ")"))


def python_list(gold: Node, answer: Node) -> bool:
    """[1, 2] for a list or a vector is a list, not an interval."""
    square = isinstance(answer, Group) and (answer.left, answer.right) == ("[", "]")
    return square and (
        isinstance(gold, Matrix) or (isinstance(gold, Group) and gold.kind in ("comma", "and"))
    )


def same_single(gold: Node, answer: Node, rounded: bool) -> bool | None:
    if isinstance(gold, Time) or isinstance(answer, Time):
        return same_time(gold, answer)
    if isinstance(gold, Text | Matrix | Builder) or isinstance(answer, Text | Matrix | Builder):
        return None
    if any(isinstance(node, Constant) and node.name in DOMAINS | {"empty"} for node in (gold, answer)):
        return False
    verdict = same_scalar(gold, answer, rounded)
    if verdict:
        return True
    if verdict is False and (may_measure(gold, answer) or may_measure(answer, gold)):
        return None
    if verdict is False and same_scalar(to_base_ten(gold), to_base_ten(answer)):
        return None  # a logarithm without a base
    names = variables_of(gold), variables_of(answer)
    if not names[0] and not names[1]:
        return verdict
    constants = same_up_to_constants(gold, answer, same_scalar)
    if constants is not None:
        return constants
    if len(names[0]) != len(names[1]) or names[0] == names[1]:
        return verdict
    # 8t/3 and 8x/3: whether both name the same is not said
    renaming = dict(zip(sorted(names[1]), map(Variable, sorted(names[0])), strict=True))
    return None if same_scalar(gold, replaced(answer, renaming)) else verdict


def may_measure(node: Node, other: Node) -> bool:
    """5m beside "5 meters", 12k beside 12000: a number with a letter that may be no variable."""
    match node:
        case Apply("mul", (Number(), Variable(name))):
            return name in LETTERS | {"k", "M", "B"} and not variables_of(other)
    return False


def to_base_ten(node: Node) -> Node:
    if isinstance(node, Apply) and node.name == "log":
        return Apply("logbase", (to_base_ten(node.args[0]), Number(Fraction(10))))
    return with_parts(node, to_base_ten)


def same_time(gold: Node, answer: Node) -> bool | None:
    """Times of day; one that does not say which half of the day it is fits both."""
    match gold, answer:
        case Time(left, ours), Time(right, theirs):
            if ours and theirs:
                return left == right
            if "24" in (ours, theirs):
                return None  # 15:00 may be 3:00 in the afternoon
            return left % 720 == right % 720 or None  # 10:15 and 2:30 may be ratios
    return None


def same_labelled(gold: Node, answer: Node, rounded: bool) -> bool | None:
    """Equations, inequalities in several variables, and "x = 5" against "5"."""
    left, right = assignment(gold), assignment(answer)
    if left is not None and right is not None and same_label(left, right):
        return same(left.value, right.value, rounded or right.rounded)
    if left is not None and isinstance(answer, Relation) and variables_of(gold) == {left.label}:
        return None  # 2x + 3 = 7 is the question again, x = 2 its answer
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return same_relation(gold, answer) if len(gold.operators) == len(answer.operators) == 1 else None
    if isinstance(gold, Relation):
        return None if left is None else same(left.value, answer, rounded)
    if right is not None:
        return same(gold, right.value, rounded or right.rounded)
    if (
        not isinstance(answer, Relation)
        or variables_of(answer)
        or not set(answer.operators) <= {"=", "approx"}
    ):
        return None
    ends = same(gold, answer.sides[0], rounded), same(gold, answer.sides[-1], rounded)
    return (ends[0] and (ends[1] or answer.operators[-1] == "approx")) or None  # 8 pi = 25.13


def same_label(left: Assignment, right: Assignment) -> bool:
    """A label in words names what is asked, so a letter matches it, but no words that say something else."""
    if left.worded and right.worded:
        ours, theirs = set(left.label.split()), set(right.label.split())
        return ours <= theirs or theirs <= ours
    return left.label == right.label or left.worded or right.worded


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
        case Group("set" | "cases", items):
            return Collection(continued(items), "set")
        case Group(_, items):
            return named(continued(items), "free")
        case Constant("empty"):
            return Collection((), "set")
        case Matrix(rows) if len(rows) == 1 or len(rows[0]) == 1:
            return Collection(tuple(item for row in rows for item in row), "ordered")
        case Relation((_, Group(_, _) as group), ("in",)):
            return collect(group)
        case Relation(_, _) if (found := assignment(node)) is not None:
            return collect(found.value)
    return None


def continued(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """1, 2, ..., 10 written out, where the steps before the ellipsis lead to what follows it."""
    if items.count(ELLIPSIS) != 1 or (place := items.index(ELLIPSIS)) in (0, len(items) - 1):
        return items
    before, after = [exact_or_none(item) for item in items[:place]], exact_or_none(items[place + 1])
    known = [value for value in before if value is not None]
    if after is None or len(known) < len(before):
        return items
    step = known[-1] - known[-2] if len(known) > 1 else Fraction(1)
    between: list[Node] = []
    value = known[-1] + step
    steps = {right - left for left, right in pairwise(known)}
    while len(steps) < 2 and step and (after - value) / step > 0 and len(between) < MAX_ITEMS:
        between.append(Number(value))
        value += step
    return items[:place] + tuple(between) + items[place + 1 :] if value == after else items


def named(items: tuple[Node, ...], order: str) -> Collection:
    """Names in front of the values are taken off: all the same (x = 1, x = 2), or one for each."""
    found = [assignment(item) for item in items]
    labels = tuple(one.label for one in found if one is not None)
    values = tuple(item if one is None else one.value for item, one in zip(items, found, strict=True))
    if len(labels) < len(items):  # x = 1 or 2
        only_first = found[0] is not None and len(labels) == 1
        return Collection(values if only_first else items, order)
    if len(set(labels)) == 1:
        return Collection(values, "set" if len(values) > 1 else order)
    return Collection(values, order, labels) if len(set(labels)) == len(values) else Collection(items, order)


def same_collection(
    gold: Collection | None, answer: Collection | None, nodes: tuple[Node, Node]
) -> bool | None:
    """At least one of the two is a collection; `nodes` are the originals."""
    if gold is None or answer is None:
        only, other = (answer, nodes[0]) if gold is None else (gold, nodes[1])
        cases = Group("cases", only.items if only else ())
        if only is None or isinstance(other, Text | Builder) or holds_matrix(other) or cases in nodes:
            return None
        if len(only.items) == 1:
            return same_element(other, only.items[0]) if gold is None else same_element(only.items[0], other)
        return False if is_plain(unlabelled(other)) else None
    if gold.labels or answer.labels:
        return same_named(gold, answer)
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
    """Under equal names; with names on one side in the order in which they stand, or in that of the names."""
    if gold.labels and answer.labels:
        verdict = same_ordered(by_name(gold), by_name(answer))
        swapped = verdict is False and number_roots(gold, answer) and same_unordered(gold.items, answer.items)
        return verdict if set(gold.labels) == set(answer.labels) and not swapped else None
    if number_roots(gold, answer) and "ordered" not in (gold.order, answer.order):
        return same_unordered(gold.items, answer.items)
    return any_of([same_ordered(gold.items, answer.items), same_ordered(by_name(gold), by_name(answer))])


def number_roots(*collections: Collection) -> bool:
    """Whether the names may number the roots in any order: x_1 and x_2 may, p_1 and p_2 may not."""
    return {label.partition("_")[0] for one in collections for label in one.labels} in ({"x"}, {"z"})


def by_name(collection: Collection) -> tuple[Node, ...]:
    """The items in the order of their labels, if they have labels."""
    if not collection.labels:
        return collection.items
    pairs = zip(collection.labels, collection.items, strict=True)
    return tuple(item for _, item in sorted(pairs, key=itemgetter(0)))


def is_set(node: Node) -> bool:
    return isinstance(node, Group) and node.kind == "set"


def same_ordered(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> bool | None:
    return len(gold) == len(answer) and all_of(map(same, gold, answer))


def same_unordered(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> bool | None:
    """Every value of one side has its match on the other; what is written twice counts once."""
    left, right = ({exact_or_none(item) for item in items} for items in (gold, answer))
    if left == right and None not in left:
        return True
    if max(num_values(gold), num_values(answer)) > MAX_PAIRS:
        return None if None in left | right else False
    rows = [[same_element(one, other) for other in answer] for one in gold]
    columns = [[row[index] for row in rows] for index in range(len(answer))]
    return all_of(map(any_of, rows + columns))


def num_values(items: tuple[Node, ...]) -> int:
    return sum(num_values(item.items) if isinstance(item, Group) else 1 for item in items)


def same_element(gold: Node, answer: Node) -> bool | None:
    """A set as an element of a set is not what is in it."""
    return same(gold, answer) if is_set(gold) == is_set(answer) else None
