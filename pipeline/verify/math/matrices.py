"""Matrices and vectors: their arithmetic, the identity, lists of rows, sums of unit vectors."""

from fractions import Fraction

from pipeline.verify.math.scalars import same_value
from pipeline.verify.math.tree import (
    Apply,
    Constant,
    Group,
    Matrix,
    Node,
    Number,
    Variable,
    replaced,
    variables_of,
    walk,
    with_parts,
)

IDENTITY = frozenset({"I", "I_2", "I_3", "I_4", "I_n", "E"})
MAX_DETERMINANT = 4  # rows
ZERO, ONE = Number(Fraction(0)), Number(Fraction(1))
AXES = ("i", "j", "k")
UNIT_VECTORS = {f"\\{accent}{{{name}}}": name for accent in ("hat", "vec", "bar") for name in AXES} | {
    f"\\hat{{{name}}}": axis for name, axis in zip("xyz", AXES, strict=True)
}


def holds_matrix(node: Node) -> bool:
    return any(isinstance(part, Matrix) for part in walk(node))


def as_matrix(node: Node, other: Node) -> Node:
    """Computed where it is arithmetic with matrices; I is the identity of the other's size."""
    size = len(other.rows) if isinstance(other, Matrix) and len(other.rows) == len(other.rows[0]) else 0
    found = computed(node, size)
    return node if found is None else found


def computed(node: Node, size: int) -> Matrix | None:
    match node:
        case Matrix(_):
            return node
        case Variable(name) if size and name in IDENTITY:
            return Matrix(tuple(tuple(ONE if i == j else ZERO for j in range(size)) for i in range(size)))
        case Apply("neg", (inner,)):
            return scaled(Apply("neg", (ONE,)), computed(inner, size))
        case Apply("add", (left, right)):
            ours, theirs = computed(left, size), computed(right, size)
            if ours is None or theirs is None or [*map(len, ours.rows)] != [*map(len, theirs.rows)]:
                return None
            pairs = [zip(*rows, strict=True) for rows in zip(ours.rows, theirs.rows, strict=True)]
            return Matrix(tuple(tuple(Apply("add", pair) for pair in row) for row in pairs))
        case Apply("div", (top, bottom)):
            return scaled(Apply("div", (ONE, bottom)), computed(top, size))
        case Apply("mul", (left, right)):
            return scaled(left, computed(right, size)) or scaled(right, computed(left, size))
        case Group("bracket", (inner,)):
            return computed(inner, size)
    return None


def scaled(factor: Node, matrix: Matrix | None) -> Matrix | None:
    if matrix is None or holds_matrix(factor):
        return None
    return Matrix(tuple(tuple(Apply("mul", (factor, entry)) for entry in row) for row in matrix.rows))


def dot(row: tuple[Node, ...], column: tuple[Node, ...]) -> Node:
    terms = [Apply("mul", pair) for pair in zip(row, column, strict=True)]
    total: Node = terms[0]
    for term in terms[1:]:
        total = Apply("add", (total, term))
    return total


def determinant(rows: tuple[tuple[Node, ...], ...]) -> Node | None:
    """Along the first row; None for what is not square or has many rows."""
    if len(rows) == 1:
        return rows[0][0]
    if len(rows) > MAX_DETERMINANT or len(rows) != len(rows[0]):
        return None
    total: Node = ZERO
    for column, entry in enumerate(rows[0]):
        minor = determinant(tuple(row[:column] + row[column + 1 :] for row in rows[1:]))
        term: Node = Apply("mul", (entry, minor or ZERO))
        total = Apply("add", (total, Apply("neg", (term,)) if column % 2 else term))
    return total


def vector_of(node: Node, other: Node) -> Node:
    """3i + 4j as (3, 4) where the other side is a vector; with hats on both sides, without them."""
    ordered = (isinstance(other, Group) and other.kind == "bracket" and other.left in "(<") or (
        isinstance(other, Matrix) and 1 in (len(other.rows), len(other.rows[0]))
    )
    num_axes = len(other.items) if isinstance(other, Group) else 0
    if isinstance(other, Matrix):
        num_axes = max(len(other.rows), len(other.rows[0]))
    node = plain_axes(node) if ordered or has_hats(other) or has_hats(node) else node
    names = variables_of(node)
    if not ordered or num_axes not in (2, 3) or isinstance(node, Group | Matrix) or not names & set(AXES):
        return node
    if not names <= set(AXES[:num_axes]):
        return node
    parts = [at_axes(node, [ONE if name == axis else ZERO for axis in AXES]) for name in AXES[:num_axes]]
    total, none = at_axes(node, [ONE] * 3), at_axes(node, [ZERO] * 3)
    if not same_value(none, ZERO) or not same_value(total, dot(tuple(parts), (ONE,) * num_axes)):
        return node
    return Group("bracket", tuple(parts), "(", ")")


def at_axes(node: Node, values: list[Number]) -> Node:
    return replaced(node, dict(zip(AXES, values, strict=True)))


def has_hats(node: Node) -> bool:
    return any(name in UNIT_VECTORS for name in variables_of(node))


def plain_axes(node: Node) -> Node:
    """Unit vectors without their hats, and i beside j or k as one of them."""
    node = replaced(node, {name: Variable(axis) for name, axis in UNIT_VECTORS.items()})
    if not variables_of(node) & {"i", "j", "k"}:
        return node
    return without_i(node)


def without_i(node: Node) -> Node:
    return Variable("i") if node == Constant("i") else with_parts(node, without_i)
