"""Values of trees: exact rationals where there are any, else to any number of digits (mpmath).

Everything is bounded: a power, factorial or binomial whose result would be large raises TooBig before it is
computed, so no tree can take longer than its size.
"""

import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import Any

import mpmath

from pipeline.verify.math.tree import Apply, Constant, Group, Node, Number, Quantity, Variable

MAX_BITS = 60_000  # of a numerator or denominator
MAX_ROOT_BITS = 900  # what a float holds
MAX_FACTORIAL = 3_000
MAX_GAMMA = 1_000
MAX_EXPONENT = 10**12  # of a power that is not rational

Value = Any  # mpf or mpc; float or complex where the context is mpmath.fp


class TooBig(Exception):
    """The value is out of all reasonable range; nothing was computed."""


class Undefined(Exception):
    """No value here: division by zero, a root or logarithm outside its real domain, no number at all."""


def exact(node: Node, values: Mapping[str, Fraction] = MappingProxyType({})) -> Fraction | None:
    """The rational value, None where there is none or it cannot be seen. Raises TooBig, Undefined."""
    match node:
        case Number(value, _, ellipsis):
            return None if ellipsis else value
        case Quantity(inner, unit):
            number = exact(inner, values)
            return number / 100 if unit.dimension == "percent" and number is not None else number
        case Apply(name, args) if name in EXACT:
            numbers = [number for arg in args if (number := exact(arg, values)) is not None]
            if len(numbers) == len(args):
                return bounded(EXACT[name], numbers)
        case Group("bracket", (only,), "("):
            return exact(only, values)
        case Variable(name):
            return values.get(name)
    return None


def bounded(function: Callable[..., Fraction | None], numbers: list[Fraction]) -> Fraction | None:
    try:
        result = function(*numbers)
    except ZeroDivisionError:
        raise Undefined from None
    if result is not None and (abs(result.numerator) | result.denominator).bit_length() > MAX_BITS:
        raise TooBig
    return result


def exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = exact_root(base, Fraction(exponent.denominator))
        return None if root is None else exact_power(root, Fraction(exponent.numerator))
    if abs(base) in (0, 1):
        return base ** (exponent.numerator if base >= 0 else exponent.numerator % 2)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS:
        raise TooBig
    return base**exponent.numerator


def exact_root(radicand: Fraction, index: Fraction) -> Fraction | None:
    """The rational root, where the radicand is a perfect power."""
    if index.denominator != 1 or not 1 <= index <= 64 or (radicand < 0 and index % 2 == 0):
        return None
    parts = (abs(radicand.numerator), radicand.denominator)
    if max(parts).bit_length() > MAX_ROOT_BITS:
        return None
    top, bottom = (math.isqrt(part) if index == 2 else round(part ** (1 / index)) for part in parts)
    root = Fraction(top if radicand > 0 else -top, bottom)
    return root if root**index.numerator == radicand else None


def counted(number: Fraction) -> int:
    if number.denominator != 1 or number < 0:
        raise Undefined
    if number > MAX_FACTORIAL:
        raise TooBig
    return int(number)


EXACT: dict[str, Callable[..., Fraction | None]] = {
    "add": operator.add,
    "mul": operator.mul,
    "neg": operator.neg,
    "div": operator.truediv,
    "pow": exact_power,
    "root": exact_root,
    "fact": lambda number: Fraction(math.factorial(counted(number))),
    "binom": lambda top, bottom: Fraction(math.comb(counted(top), counted(bottom))),
    "abs": abs,
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
}


def approximate(node: Node, values: Mapping[str, Fraction], digits: int = 30, real: bool = False) -> Value:
    """The value to about so many digits. With `real`, an even root or a logarithm of what is not positive is
    Undefined. Raises TooBig, Undefined."""
    context = mpmath.mp if digits > 15 else mpmath.fp
    if digits > 15 and mpmath.mp.dps != digits:
        with mpmath.workdps(digits):
            return approximate(node, values, digits, real)
    try:
        result = Evaluator(context, values, real).value(node)
        if not mpmath.isfinite(result):
            raise Undefined
    except (OverflowError, ZeroDivisionError, ValueError, mpmath.libmp.NoConvergence):
        raise Undefined from None
    return result


class Evaluator:
    """`context` is mpmath.mp at its precision of the moment, or mpmath.fp, which computes with floats."""

    def __init__(self, context: Any, values: Mapping[str, Fraction], real: bool) -> None:
        self.context = context
        self.values = values
        self.real = real

    def value(self, node: Node) -> Value:
        match node:  # the most frequent first
            case Number(value):
                return self.number(value)
            case Variable(name) if name in self.values:
                return self.number(self.values[name])
            case Apply("fact" | "binom", _):
                number = exact(node)
                return self.gamma_form(node) if number is None else self.number(number)
            case Apply(name, args):
                function = OPERATORS.get(name) or getattr(self, f"of_{name}", None) or self.library(name)
                return function(*[self.value(arg) for arg in args])
            case Constant("pi"):
                return +self.context.pi
            case Constant("e"):
                return +self.context.e
            case Constant("i"):
                return self.context.mpc(0, 1)
            case Quantity(value, unit):
                return self.value(value) * self.scale(unit.dimension, unit.size)
            case Group("bracket", (only,), "("):
                return self.value(only)
        raise Undefined

    def number(self, value: Fraction) -> Value:
        if value.denominator == 1:
            return self.context.mpf(value.numerator)
        return self.context.mpf(value.numerator) / value.denominator

    def scale(self, dimension: str, size: Fraction) -> Value:
        if dimension == "percent":
            return self.number(Fraction(1, 100))
        return self.context.pi / 180 * self.number(size) if dimension == "angle" else 1

    def library(self, name: str) -> Callable[..., Value]:
        if name not in LIBRARY:
            raise Undefined
        function: Callable[..., Value] = getattr(self.context, LIBRARY[name])
        return partial(self.rounded, function) if name in ("floor", "ceil") else function

    def gamma_form(self, node: Apply) -> Value:
        """n! and binomials of expressions by the gamma function, for moderate real arguments."""
        top, *rest = [self.value(arg) for arg in node.args]
        if any(not abs(value) < MAX_GAMMA for value in (top, *rest)):
            raise TooBig
        parts = [part for bottom in rest for part in (bottom, top - bottom)]
        return self.context.gammaprod([top + 1], [part + 1 for part in parts])

    def positive(self, value: Value) -> None:
        """In the real domain, what a logarithm or an even root takes."""
        if self.real and (self.context.im(value) or self.context.re(value) < 0):
            raise Undefined

    def of_neg(self, value: Value) -> Value:
        return 0 - value  # -z would put -9 on the other side of the square root's cut

    def of_pow(self, base: Value, exponent: Value) -> Value:
        if abs(exponent) > MAX_EXPONENT:
            raise TooBig
        whole = self.context.isint(exponent)
        if not whole:
            self.positive(base)
        return base ** (int(self.context.re(exponent)) if whole else exponent)

    def of_root(self, radicand: Value, index: Value) -> Value:
        degree = int(self.context.re(index)) if self.context.isint(index) else 0
        if degree % 2 and not self.context.im(radicand) and self.context.re(radicand) < 0:
            return -((-radicand) ** (self.context.one / degree))
        self.positive(radicand)
        return self.context.sqrt(radicand) if degree == 2 else radicand ** (1 / index)

    def of_ln(self, value: Value) -> Value:
        self.positive(value)
        return self.context.ln(value)

    of_log = of_ln  # whether it is meant to base 10 is for whoever compares

    def of_logbase(self, value: Value, base: Value) -> Value:
        return self.of_ln(value) / self.of_ln(base)

    def of_arcsin(self, value: Value) -> Value:
        return self.context.asin(self.within_one(value))

    def of_arccos(self, value: Value) -> Value:
        return self.context.acos(self.within_one(value))

    def of_arccot(self, value: Value) -> Value:
        return self.context.pi / 2 - self.context.atan(value)

    def within_one(self, value: Value) -> Value:
        if self.real and (self.context.im(value) or abs(value) > 1):
            raise Undefined
        return value

    def of_cis(self, angle: Value) -> Value:
        return self.context.cos(angle) + self.context.sin(angle) * self.context.mpc(0, 1)

    def rounded(self, rounding: Callable[[Value], Value], value: Value) -> Value:
        """What the precision made of an integer is that integer."""
        real = self.context.re(value)
        near = self.number(Fraction(round(real)))
        return near if abs(real - near) < 10 ** (-self.context.dps // 2) else rounding(real)


OPERATORS: dict[str, Callable[..., Value]] = {
    "add": operator.add,
    "mul": operator.mul,
    "div": operator.truediv,
    "abs": abs,
}
LIBRARY = {"sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
           "arctan": "atan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "exp": "exp", "floor": "floor",
           "ceil": "ceil"}  # fmt: skip
