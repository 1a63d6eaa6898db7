"""What a plus-minus sign stands for: every alternative written out."""

from itertools import product

from pipeline.verify.tree import Apply, Group, Matrix, Modular, Node, Quantity, Relation

MAX_SIGNS = 4


def count_signs(node: Node) -> int:
    """Plus-minus and minus-plus signs in a tree."""
    match node:
        case Apply(name, args):
            return (name in ("pm", "mp")) + sum(map(count_signs, args))
        case Group(_, items):
            return sum(map(count_signs, items))
        case Relation(sides, _):
            return sum(map(count_signs, sides))
        case Quantity(value, _) | Modular(value, _):
            return count_signs(value)
        case Matrix(rows):
            return sum(count_signs(item) for row in rows for item in row)
    return 0


def alternatives(node: Node, linked: bool) -> Node:
    """A list of the alternatives. `linked`: all signs of one item are upper signs, or all lower ones."""
    if isinstance(node, Group) and node.kind != "bracket":
        items = [alternative for item in node.items for alternative in alternatives_of(item, linked)]
        return Group(node.kind, tuple(items))
    if isinstance(node, Relation) and node.operators == ("in",):
        return Relation((node.sides[0], alternatives(node.sides[1], linked)), ("in",))
    items = alternatives_of(node, linked)
    return items[0] if len(items) == 1 else Group("or", tuple(items))


def alternatives_of(node: Node, linked: bool) -> list[Node]:
    count = count_signs(node)
    if count == 0:
        return [node]
    if linked or count > MAX_SIGNS:
        return [choose(node, [upper] * count) for upper in (True, False)]
    return [choose(node, list(signs)) for signs in product((True, False), repeat=count)]


def choose(node: Node, signs: list[bool]) -> Node:
    """The tree with its signs chosen in order; consumes `signs`."""
    match node:
        case Apply("pm" | "mp" as name, args):
            positive = signs.pop(0) == (name == "pm")
            inner = tuple(choose(arg, signs) for arg in args)
            return inner[0] if positive else Apply("neg", inner)
        case Apply(name, args):
            return Apply(name, tuple(choose(arg, signs) for arg in args))
        case Group(kind, items, left, right):
            return Group(kind, tuple(choose(item, signs) for item in items), left, right)
        case Relation(sides, operators):
            return Relation(tuple(choose(side, signs) for side in sides), operators)
        case Quantity(value, unit):
            return Quantity(choose(value, signs), unit)
        case Modular(value, modulus):
            return Modular(choose(value, signs), modulus)
        case Matrix(rows):
            return Matrix(tuple(tuple(choose(item, signs) for item in row) for row in rows))
    return node
