"""The math-verify layer: its LaTeX parse and comparison, in the worker, without its alarm.

Only its LaTeX grammar is used, never its reader of plain expressions, which is built on parse_expr. A parsed
expression is compared and dropped: it is never printed, logged or returned (str of a power tower hangs).
"""

from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.sympify import SympifyError
from sympy.polys.polyerrors import BasePolynomialError

MAX_LENGTH = 1_000  # characters; longer answers are not parsed here
CONFIG = [LatexExtractionConfig(boxed_match_priority=0)]

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
    found = parse(
        f"\\boxed{{{text}}}", CONFIG, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True
    )
    return found[0] if found else None
