"""Values of trees: exact rationals where there are any, else floating point at given values of the variables.

Everything is bounded: a power, factorial or binomial whose result would be large raises TooBig before it is
computed, so no tree can take longer than its size.
"""

import cmath
import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial

from pipeline.verify.math.tree import Apply, Constant, Group, Node, Number, Quantity, Variable

MAX_BITS = 60_000  # of a numerator or denominator
MAX_FACTORIAL = 3_000
CONSTANTS = {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}


class TooBig(Exception):
    """The value is out of all reasonable range; nothing was computed."""


class Undefined(Exception):
    """No value here: division by zero, a root or logarithm outside its real domain, no number at all."""


def exact(node: Node) -> Fraction | None:
    """The rational value, None where there is none or it cannot be seen. Raises TooBig, Undefined."""
    match node:
        case Number(value, _, ellipsis):
            return None if ellipsis else value
        case Quantity(inner, unit):
            number = exact(inner)
            return number / 100 if unit.dimension == "percent" and number is not None else number
        case Apply(name, args) if name in EXACT:
            numbers = [number for arg in args if (number := exact(arg)) is not None]
            if len(numbers) == len(args):
                return bounded(EXACT[name], numbers)
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
        return base ** int(exponent)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS:
        raise TooBig
    return base ** int(exponent)


def exact_root(radicand: Fraction, index: Fraction) -> Fraction | None:
    """The rational root, where the radicand is a perfect power."""
    if index.denominator != 1 or not 1 <= index <= 64:
        return None
    degree = int(index)
    if radicand < 0:
        if degree % 2 == 0:
            return None
        root = exact_root(-radicand, index)
        return None if root is None else -root
    top, bottom = integer_root(radicand.numerator, degree), integer_root(radicand.denominator, degree)
    return None if top is None or bottom is None else Fraction(top, bottom)


def integer_root(number: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(number)
        return root if root * root == number else None
    if number.bit_length() > 900:
        return None
    root = round(float(number) ** (1 / degree))
    return next((near for near in (root - 1, root, root + 1) if near**degree == number), None)


def exact_factorial(number: Fraction) -> Fraction:
    return Fraction(math.factorial(counted(number)))


def exact_binomial(top: Fraction, bottom: Fraction) -> Fraction:
    return Fraction(math.comb(counted(top), counted(bottom)))


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
    "fact": exact_factorial,
    "binom": exact_binomial,
    "abs": abs,
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
}


def approximate(node: Node, values: Mapping[str, complex], real: bool = False) -> complex:
    """Floating point value. With `real`, an even root or logarithm of what is not positive is Undefined.

    Raises TooBig, Undefined.
    """
    try:
        result = approximate_node(node, values, real)
    except (OverflowError, ZeroDivisionError, ValueError):
        raise Undefined from None
    if not cmath.isfinite(result):
        raise Undefined
    return result


def approximate_node(node: Node, values: Mapping[str, complex], real: bool) -> complex:
    match node:
        case Apply(name, args) if name in FUNCTIONS:
            return FUNCTIONS[name](*[approximate_node(arg, values, real) for arg in args])
        case Apply(name, args) if name in WITHIN_DOMAIN:
            return WITHIN_DOMAIN[name](real, *[approximate_node(arg, values, real) for arg in args])
        case Apply("fact" | "binom", _):
            number = exact(node)
            return gamma_form(node, values) if number is None else complex(float(number))
        case Number(value):
            return complex(float(value))
        case Variable(name) if name in values:
            return values[name]
        case Constant(name) if name in CONSTANTS:
            return CONSTANTS[name]
        case Quantity(value, unit):
            scale = {"percent": 0.01, "angle": math.pi / 180 * float(unit.size)}.get(unit.dimension, 1.0)
            return approximate_node(value, values, real) * scale
        case Group("bracket", (only,)):
            return approximate_node(only, values, real)
    raise Undefined


def gamma_form(node: Apply, values: Mapping[str, complex]) -> complex:
    """n! and binomials of expressions by the gamma function, for moderate real arguments."""
    args = [approximate_node(arg, values, True).real for arg in node.args]
    if any(not -100 < value < 100 for value in args):
        raise TooBig
    if node.name == "fact":
        return complex(math.gamma(args[0] + 1))
    top, bottom = args
    return complex(math.gamma(top + 1) / (math.gamma(bottom + 1) * math.gamma(top - bottom + 1)))


def whole(rounding: Callable[[float], int], value: complex) -> complex:
    near = round(value.real)
    # what floating point made of an integer is that integer
    return complex(near if abs(value.real - near) < 1e-9 else rounding(value.real))


def log_float(real: bool, value: complex, base: complex = complex(math.e)) -> complex:
    if real and any(number.imag or number.real <= 0 for number in (value, base)):
        raise Undefined
    return cmath.log(value, base)


def power_float(real: bool, base: complex, exponent: complex) -> complex:
    if exponent.imag == 0 and exponent.real.is_integer():
        if abs(exponent.real) > 2_000:
            raise TooBig
        return base ** int(exponent.real)
    if real and (base.imag or base.real < 0):
        raise Undefined
    return base**exponent


def root_float(real: bool, radicand: complex, index: complex) -> complex:
    degree = index.real
    if radicand.imag == 0 and radicand.real < 0 and degree % 2 == 1 and index.imag == 0:
        return complex(-((-radicand.real) ** (1 / degree)))
    if real and (radicand.imag or radicand.real < 0):
        raise Undefined
    if index == 2:
        return cmath.sqrt(radicand)
    return radicand ** (1 / index)


def arc(function: Callable[[complex], complex], real: bool, value: complex) -> complex:
    if real and abs(value) > 1:
        raise Undefined
    return function(value)


FUNCTIONS: dict[str, Callable[..., complex]] = {
    "add": operator.add, "mul": operator.mul, "div": operator.truediv,
    "neg": lambda z: 0 - z,  # -z would put -9 on the other side of the square root's cut
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "cot": lambda z: 1 / cmath.tan(z),
    "sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z), "arctan": cmath.atan,
    "arccot": lambda z: cmath.pi / 2 - cmath.atan(z), "sinh": cmath.sinh, "cosh": cmath.cosh,
    "tanh": cmath.tanh, "exp": cmath.exp, "abs": lambda z: complex(abs(z)),
    "floor": partial(whole, math.floor), "ceil": partial(whole, math.ceil),
}  # fmt: skip
# these first take whether only the real domain counts
WITHIN_DOMAIN: dict[str, Callable[..., complex]] = {
    "pow": power_float, "root": root_float, "ln": log_float, "logbase": log_float,
    "arcsin": partial(arc, cmath.asin), "arccos": partial(arc, cmath.acos),
}  # fmt: skip
