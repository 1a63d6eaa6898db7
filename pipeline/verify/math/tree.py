"""The trees that answers are read into, and what their form alone says.

That is: the variables of a tree, its label ("x =", "Area ="), the domains that it declares ("k in Z") and the
alternatives of its plus-minus signs. Plain data: nothing is computed when a tree is built.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, product, repeat

from pipeline.verify.math.units import Unit


@dataclass(frozen=True, slots=True)
class Number:
    """`decimals`: places stated after the point, None for what is exact. `ellipsis`: "0.333..." goes on."""

    value: Fraction
    decimals: int | None = None
    ellipsis: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """pi, e, i, infinity, ellipsis, or one of the sets reals, integers, naturals, rationals,
    complexes, empty."""

    name: str


@dataclass(frozen=True, slots=True)
class Variable:
    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation or function: add mul div pow neg pm mp fact root abs sin ... cup cap setminus."""

    name: str
    args: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    value: "Node"
    unit: Unit


@dataclass(frozen=True, slots=True)
class Group:
    """Several items. `kind`: bracket (left, right are its brackets), set, cases, comma, or, and."""

    kind: str
    items: tuple["Node", ...]
    left: str = ""
    right: str = ""


@dataclass(frozen=True, slots=True)
class Relation:
    """sides[0] operators[0] sides[1] ...; operators are = != < <= > >= in equiv approx."""

    sides: tuple["Node", ...]
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Builder:
    """{element | condition}"""

    element: "Node"
    condition: "Node"


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple["Node", ...], ...]


@dataclass(frozen=True, slots=True)
class Time:
    """Minutes since midnight. `half` of the day: "a", "p", "24" where the hour tells it, "" for none."""

    minutes: int
    half: str


@dataclass(frozen=True, slots=True)
class Text:
    words: str


Node = Number | Constant | Variable | Apply | Quantity | Group | Relation | Builder | Matrix | Text | Time


def parts_of(node: Node) -> tuple[Node, ...]:
    match node:
        case Apply(args=parts) | Group(items=parts) | Relation(sides=parts):
            return parts
        case Quantity(value=part):
            return (part,)
        case Matrix(rows):
            return tuple(chain(*rows))
    return ()


def with_parts(node: Node, change: Callable[[Node], Node]) -> Node:
    """The node with each of its parts changed."""
    match node:
        case Apply(name, args):
            return Apply(name, tuple(map(change, args)))
        case Group(kind, items, left, right):
            return Group(kind, tuple(map(change, items)), left, right)
        case Relation(sides, operators):
            return Relation(tuple(map(change, sides)), operators)
        case Quantity(value, unit):
            return Quantity(change(value), unit)
        case Matrix(rows):
            return Matrix(tuple(tuple(map(change, row)) for row in rows))
    return node


def walk(node: Node) -> list[Node]:
    """The node and all below it."""
    found = [node]
    for part in found:
        found += parts_of(part)
    return found


def variables_of(*nodes: Node) -> set[str]:
    return {part.name for node in nodes for part in walk(node) if isinstance(part, Variable)}


def replaced(node: Node, values: Mapping[str, Node]) -> Node:
    """With other nodes in place of variables."""
    if isinstance(node, Variable):
        return values.get(node.name, node)
    return with_parts(node, lambda part: replaced(part, values)) if values else node


DOMAINS = frozenset({"reals", "integers", "naturals", "rationals", "complexes"})
WHOLE = frozenset({"integers", "naturals"})
OPPOSITE = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=", "approx": "approx"}


@dataclass(frozen=True, slots=True)
class Assignment:
    """`worded`: the label is text; `rounded`: the value stands behind an approximation sign."""

    label: str
    value: Node
    worded: bool = False
    rounded: bool = False


def assignment(node: Node) -> Assignment | None:
    """label = value, label = ... = value, value = label; None for other relations."""
    if not isinstance(node, Relation) or not set(node.operators) <= {"=", "approx"}:
        return None
    label = label_of(node.sides[0])
    value = node.sides[-1]
    rounded = node.operators[-1] == "approx"
    if label is None:
        label = label_of(value)
        if label is None or variables_of(node.sides[0]):
            return None
        value = node.sides[0]
    if isinstance(value, Relation) or label in variables_of(value):
        return None
    if rounded and len(node.sides) > 2:
        return Assignment(label, node.sides[-2])  # x = sqrt 2 approx 1.41
    worded = any(isinstance(side, Text) for side in (node.sides[0], node.sides[-1]))
    return Assignment(label, value, worded, rounded)


def unlabelled(node: Node) -> Node:
    """What an assignment says its label is; other nodes as they are."""
    named = assignment(node)
    return node if named is None else named.value


def label_of(node: Node) -> str | None:
    """x, AB, x_1, f(2), "Area"; None for what is not a name."""
    match node:
        case Variable(name):
            return name
        case Text(words):
            return words.casefold()
        case Quantity(Variable(name), _):
            return name
        case Apply("mul", (Variable(name), Number(value))) if len(name) > 2:  # zeta(2)
            return f"{name}({value})"
        case Apply("mul", (left, right)):
            first, second = label_of(left), label_of(right)
            return None if first is None or second is None else first + second
        case Group("bracket", items):
            labels = [label_of(item) for item in items]
            return ",".join(label for label in labels if label) if all(labels) else None
    return None


def items_of(node: Node) -> tuple[Node, ...]:
    """Those of a plain list; another node stands for itself."""
    return node.items if isinstance(node, Group) and node.kind in ("comma", "and", "or") else (node,)


def strip_domains(node: Node) -> Node:
    """Without items that only say where a variable lives."""
    items = items_of(node)
    kept = tuple(item for item in items if not declared(item))
    if not isinstance(node, Group) or len(kept) in (0, len(items)):
        return node
    return kept[0] if len(kept) == 1 else Group(node.kind, kept)


def domains_of(node: Node) -> dict[str, str]:
    """Of the integer parameters that a list declares."""
    if not isinstance(node, Group):
        return {}
    return {name: domain for item in node.items for name, domain in declared(item) if domain in WHOLE}


def declared(node: Node) -> list[tuple[str, str]]:
    """The variables that an item like "k in Z" or "m, n in Z" declares, each with its domain."""
    match node:
        case Relation((Variable(name), Constant(domain)), ("in",)) if domain in DOMAINS:
            return [(name, domain)]
    return []


MAX_SIGNS = 4


def is_sign(node: Node) -> bool:
    return isinstance(node, Apply) and node.name in ("pm", "mp")


def count_signs(node: Node) -> int:
    """Plus-minus and minus-plus signs in a tree."""
    return sum(map(is_sign, walk(node)))


def has_linked_signs(node: Node) -> bool:
    return any(isinstance(part, Apply) and part.name == "mp" for part in walk(node))


def alternatives(node: Node, linked: bool) -> Node:
    """A list of the alternatives. `linked`: all signs of one item are upper signs, or all lower ones, as they
    always are where one of them is a minus-plus."""
    if isinstance(node, Group) and node.kind != "bracket":
        items = [alternative for item in node.items for alternative in alternatives_of(item, linked)]
        return Group(node.kind, tuple(items))
    if isinstance(node, Relation) and node.operators == ("in",):
        return Relation((node.sides[0], alternatives(node.sides[1], linked)), ("in",))
    items = alternatives_of(node, linked)
    return items[0] if len(items) == 1 else Group("or", tuple(items))


def alternatives_of(node: Node, linked: bool) -> list[Node]:
    count = count_signs(node)
    if count and (linked or has_linked_signs(node) or count > MAX_SIGNS):
        return [choose(node, repeat(upper)) for upper in (True, False)]
    return [choose(node, iter(signs)) for signs in product((True, False), repeat=count)]


def choose(node: Node, signs: Iterator[bool]) -> Node:
    """The tree with its signs chosen in order, each the upper one or the lower one."""
    if isinstance(node, Apply) and is_sign(node):
        positive = next(signs) == (node.name == "pm")
        inner = choose(node.args[0], signs)
        return inner if positive else Apply("neg", (inner,))
    return with_parts(node, lambda part: choose(part, signs))
