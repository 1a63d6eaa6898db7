"""Residue classes and families with an integer parameter: 3 mod 7, x = 7k + 3, pi/4 + 2 pi n."""

from dataclasses import dataclass
from fractions import Fraction

from pipeline.verify.evaluate import Undefined, approximate
from pipeline.verify.labels import PARAMETERS, assignment, declared, strip_domains
from pipeline.verify.realsets import linear_form
from pipeline.verify.scalars import exact_or_none, same_value, variables_of
from pipeline.verify.tree import Constant, Group, Modular, Node, Quantity, Relation


@dataclass(frozen=True, slots=True)
class Classes:
    residues: tuple[float, ...]
    modulus: float


def same_residues(gold: Node, answer: Node) -> bool | None:
    """None where neither is a residue class."""
    left, right = read_classes(gold, False), read_classes(answer, False)
    if left is None and right is None:
        return same_families(gold, answer)
    if left is None:
        right_value = single_value(answer)
        if isinstance(gold, Relation | Group) or right_value is None:
            left = read_classes(gold, True)
        else:
            return same_value(gold, right_value)
    if right is None:
        right = read_classes(answer, True)
        if right is None and left is not None:
            return same_least(left, answer)
    if left is None or right is None:
        return None
    return same_classes(left, right)


def same_families(gold: Node, answer: Node) -> bool | None:
    """Both written with a parameter that may be called differently, as pi/4 + 2 pi k and pi/4 + 2 pi n."""
    names = variables_of_all(gold) | variables_of_all(answer)
    if not names & PARAMETERS or not (has_parameter(gold) and has_parameter(answer)):
        return None
    left, right = read_classes(gold, True), read_classes(answer, True)
    if left is None or right is None or not (is_declared(gold) or is_declared(answer)):
        return None
    return same_classes(left, right)


def has_parameter(node: Node) -> bool:
    return bool(variables_of_all(node) & PARAMETERS)


def is_declared(node: Node) -> bool:
    return isinstance(node, Group) and any(declared(item) for item in node.items)


def variables_of_all(node: Node) -> set[str]:
    match node:
        case Relation(sides, _):
            return set().union(*map(variables_of_all, sides))
        case Group(_, items):
            return set().union(*map(variables_of_all, items))
    return variables_of(node)


def read_classes(node: Node, parametric: bool) -> Classes | None:
    """The classes that are written with a modulus; with `parametric` also those with a parameter."""
    explicit = read_modular(node)
    if explicit is not None or not (parametric or is_declared(node)):
        return explicit
    inner = strip_domains(node)
    items = inner.items if isinstance(inner, Group) and inner.kind in ("comma", "or", "and") else (inner,)
    families = [read_family(item) for item in items]
    found = [family for family in families if family is not None]
    if len(found) < len(families) or len({round(modulus, 9) for _, modulus in found}) != 1:
        return None
    return Classes(tuple(offset for offset, _ in found), found[0][1])


def read_family(node: Node) -> tuple[float, float] | None:
    """(offset, step) of a value that is linear in one parameter."""
    named = assignment(node)
    value = node if named is None else named.value
    if isinstance(value, Quantity):
        value = value.value
    names = variables_of(value)
    if len(names) != 1:
        return None
    linear = linear_form(value, next(iter(names)))
    if linear is None or linear[0] == 0:
        return None
    return linear[1], abs(linear[0])


def read_modular(node: Node) -> Classes | None:
    """v mod m; x = v mod m; a list of values whose last one carries the modulus."""
    items = node.items if isinstance(node, Group) and node.kind in ("comma", "or", "and") else (node,)
    values: list[Node] = []
    modulus: Node | None = None
    for item in items:
        value = item
        if isinstance(item, Relation) and item.operators[-1] in ("equiv", "="):
            value = item.sides[-1]
        if isinstance(value, Modular):
            if modulus is not None and same_value(modulus, value.modulus) is not True:
                return None
            modulus, value = value.modulus, value.value
        values.append(value)
    if modulus is None:
        return None
    numbers = [real_number(value) for value in (modulus, *values)]
    if any(number is None for number in numbers) or not numbers[0]:
        return None
    size, *residues = [float(number) for number in numbers if number is not None]
    return Classes(tuple(residues), abs(size))


def real_number(node: Node) -> Fraction | None:
    value = exact_or_none(node)
    if value is not None or isinstance(node, Constant | Group | Relation):
        return value
    try:
        number = approximate(node, {})
    except Undefined:
        return None
    return Fraction(number.real)


def single_value(node: Node) -> Node | None:
    value = node.sides[-1] if isinstance(node, Relation) else node
    return value.value if isinstance(value, Modular) else None


def same_classes(left: Classes, right: Classes) -> bool | None:
    if abs(left.modulus - right.modulus) > 1e-9 * left.modulus:
        return False if len(left.residues) == len(right.residues) else None
    covered = all(any(congruent(a, b, left.modulus) for b in right.residues) for a in left.residues)
    covering = all(any(congruent(a, b, left.modulus) for a in left.residues) for b in right.residues)
    return covered and covering


def congruent(left: float, right: float, modulus: float) -> bool:
    quotient = (left - right) / modulus
    return abs(quotient - round(quotient)) < 1e-9


def same_least(gold: Classes, answer: Node) -> bool | None:
    """A bare number stands for its class when it is the residue that the gold writes, or the least one."""
    named = assignment(answer)
    value = real_number(answer if named is None else named.value)
    if value is None or len(gold.residues) != 1:
        return None
    least = gold.residues[0] % gold.modulus
    return any(abs(float(value) - residue) < 1e-9 for residue in (gold.residues[0], least))
