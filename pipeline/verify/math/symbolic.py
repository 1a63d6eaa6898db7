"""What sympy decides: the math-verify layer, and the factors of polynomials.

math-verify's LaTeX parse and comparison run in the worker, without its alarm. Only its LaTeX grammar is used,
never its reader of plain expressions, which is built on parse_expr. A parsed expression is compared and
dropped: it is never printed, logged or returned (str of a power tower hangs). It drops what it does not know
(accents, marks, units), so only what is made of known commands is shown to it.
"""

import re
from itertools import accumulate
from math import prod
from operator import add, mul, truediv
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import QQ
from sympy.core.sympify import SympifyError
from sympy.polys.fields import field
from sympy.polys.polyerrors import BasePolynomialError

from pipeline.verify.math.tree import Apply, Group, Node, Number, Variable

MAX_LENGTH = 1_000  # characters; longer answers are not parsed here
MAX_DEPTH = 8  # of brackets: its parser takes twice as long for each more
CONFIG = [LatexExtractionConfig(boxed_match_priority=0)]
COMMAND = re.compile(r"\\([A-Za-z]+|.)")
KNOWN = frozenset([
    "frac", "dfrac", "tfrac", "sqrt", "int", "sum", "prod", "lim", "infty", "to", "pi", "cdot", "times",
    "div", "sin", "cos", "tan", "ln", "log", "exp", "left", "right", "binom", "alpha", "beta", "gamma",
    "theta", "lambda", "mu", "phi", "omega", "le", "leq", "ge", "geq", "in", "cup", "cap", "{", "}", ",",
    ";", "%", " ", "pm", "emptyset", "arctan", "arcsin", "arccos", "dx", "quad",
])  # fmt: skip
# marks, words, derivatives, and indices of numbers
MARKS = re.compile(
    r"[\d)}\]]\s*_|\}\s*\{\s*d|\bd[a-z]/d|[!'\"?#&@`~\u0080-\uffff]|[A-Za-z]{4}|\b0[xXbBoO]\w|[0-9A-Z]{2}\s*_"
)
MAX_ATOMS = 8
MAX_POWER = 8
MAX_DEGREE = 10
MAX_BITS = 200
MAX_TERMS = 300  # of a product of polynomials, before like terms are collected
ARITHMETIC = {"add": add, "mul": mul, "div": truediv}

# what sympy raises on objects that it cannot compare
COMPARE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BasePolynomialError,
    LookupError,
    NotImplementedError,
    RecursionError,
    SympifyError,
    TypeError,
    ValueError,
)


class Unparsable(Exception):
    """Its text is the reason: bad_gold, unparsable_answer, too_long or error."""


def same_symbolic(gold: str, answer: str) -> bool:
    """Raises Unparsable where math-verify cannot read one of the two or fails on the pair."""
    if max(len(gold), len(answer)) > MAX_LENGTH:
        raise Unparsable("too_long")
    left = read(gold)
    if left is None:
        raise Unparsable("bad_gold")
    right = read(answer)
    if right is None:
        raise Unparsable("unparsable_answer")
    try:
        return bool(verify(left, right, timeout_seconds=None, raise_on_error=True))
    except COMPARE_ERRORS as error:
        raise Unparsable("error") from error


def read(text: str) -> object:
    """The parsed expression; None where there is none."""
    if depth_of(text) > MAX_DEPTH:
        return None
    balanced = all(text.count(left) == text.count(right) for left, right in ("{}", "()", "[]"))
    if not balanced or not KNOWN.issuperset(COMMAND.findall(text)) or MARKS.search(COMMAND.sub("", text)):
        return None
    found = parse(
        f"\\boxed{{{text}}}", CONFIG, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True
    )
    return found[0] if found else None


def depth_of(text: str) -> int:
    """How many brackets are open at most."""
    steps = ((one in "{([") - (one in "})]") for one in text)
    return max(accumulate(steps), default=0)


def same_factors(gold: Node, answer: Node) -> bool | None:
    """Whether two numerators have the same irreducible factors; False where both are straight, else None."""
    atoms = list(dict.fromkeys([*atoms_of(gold), *atoms_of(answer)]))
    if not 1 <= len(atoms) <= MAX_ATOMS:
        return None
    space, *generators = field([f"x{place}" for place in range(len(atoms))], QQ)
    names = dict(zip(atoms, generators, strict=True))
    left, right = (reduced(node, names, space) for node in (gold, answer))
    if left is None or right is None or not left or not right:
        return None
    left, right = left.numer.sqf_part().monic(), right.numer.sqf_part().monic()
    if left == right:
        return not left.is_ground or None
    straight = all(sum(powers) <= 1 for powers in [*left.monoms(), *right.monoms()])
    return False if straight and all(isinstance(atom, Variable) for atom in atoms) else None


def atoms_of(node: Node) -> list[Node]:
    """What is not arithmetic: variables, constants, functions."""
    match node:
        case Number():
            return []
        case Group("bracket", (inner,), "(") | Apply("neg", (inner,)):
            return atoms_of(inner)
        case Apply("pow", (base, Number(exponent))) if exponent in range(1, MAX_POWER + 1):
            return atoms_of(base)
        case Apply(name, (left, right)) if name in ARITHMETIC:
            return atoms_of(left) + atoms_of(right)
    return [node]


def reduced(node: Node, names: dict[Node, Any], space: Any) -> Any:
    """A fraction of polynomials in the atoms; None for a large one, or a division by zero."""
    match node:
        case Number(value):
            return space(QQ(value.numerator, value.denominator))
        case Group("bracket", (inner,), "("):
            return reduced(inner, names, space)
        case Apply("neg", (inner,)):
            found = reduced(inner, names, space)
            return None if found is None else -found
        case Apply("pow", (base, Number(exponent))) if node not in names:
            return combined("mul", [reduced(base, names, space)] * int(exponent))
        case Apply(name, args) if name in ARITHMETIC:
            return combined(name, [reduced(arg, names, space) for arg in args])
    return names[node]


def combined(name: str, values: list[Any]) -> Any:
    total, *rest = values
    for value in rest:
        if total is None or value is None or (name == "div" and not value):
            return None
        if prod(len(part.numer) + len(part.denom) for part in (total, value)) > MAX_TERMS:
            return None
        total = ARITHMETIC[name](total, value)
        if not (is_small(total.numer) and is_small(total.denom)):
            return None
    return total


def is_small(polynomial: Any) -> bool:
    """In degree and in its numbers."""
    return all(
        sum(powers) <= MAX_DEGREE and (abs(number.numerator) | number.denominator).bit_length() <= MAX_BITS
        for powers, number in polynomial.terms()
    )
