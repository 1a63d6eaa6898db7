"""What stands before the value of an answer: "x =", "Area =", and the declaration behind it: "k in Z"."""

from dataclasses import dataclass

from pipeline.verify.scalars import variables_of
from pipeline.verify.tree import Apply, Constant, Group, Node, Quantity, Relation, Text, Variable

PARAMETERS = frozenset("knmjlt")
DOMAINS = frozenset({"reals", "integers", "naturals", "rationals", "complexes"})


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
    return Assignment(label, value, isinstance(node.sides[0], Text), rounded)


def label_of(node: Node) -> str | None:
    """x, AB, x_1, f(2), "Area"; None for what is no name."""
    match node:
        case Variable(name):
            return name
        case Text(words):
            return words.casefold()
        case Constant("e" | "i" as name):
            return name
        case Quantity(Variable(name), _):
            return name
        case Apply("mul", (left, right)):
            first, second = label_of(left), label_of(right)
            return None if first is None or second is None else first + second
        case Group("bracket", items):
            labels = [label_of(item) for item in items]
            return ",".join(label for label in labels if label) if all(labels) else None
    return None


def strip_domains(node: Node) -> Node:
    """Without items that only say where a variable lives."""
    if not isinstance(node, Group) or node.kind not in ("comma", "and", "or"):
        return node
    kept = tuple(item for item in node.items if declared(item) is None)
    if not kept or len(kept) == len(node.items):
        return node
    return kept[0] if len(kept) == 1 else Group(node.kind, kept)


def declared(node: Node) -> str | None:
    """The variable that an item like "k in Z" declares."""
    match node:
        case Relation((Variable(name), Constant(domain)), ("in",)) if domain in DOMAINS:
            return name
    return None
