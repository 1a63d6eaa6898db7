"""Values of trees: exact rationals where there are any, else floating point at given values of the variables.

Everything is bounded: a power, factorial or binomial whose result would be large raises TooBig before it is
computed, so no tree can take longer than its size.
"""

import cmath
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from pipeline.verify.tree import Apply, Constant, Group, Node, Number, Quantity, Variable

MAX_BITS = 60_000  # of a numerator or denominator
MAX_FACTORIAL = 3_000
CONSTANTS = {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}
FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "cot": lambda z: 1 / cmath.tan(z),
    "sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z), "arctan": cmath.atan,
    "arccot": lambda z: cmath.pi / 2 - cmath.atan(z), "sinh": cmath.sinh, "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "exp": cmath.exp, "abs": lambda z: complex(abs(z)),
}  # fmt: skip
DEGREE = Fraction(1, 180)


class TooBig(Exception):
    """The value is out of all reasonable range; nothing was computed."""


class Undefined(Exception):
    """No value here: division by zero, a root or logarithm outside its real domain, no number at all."""


def checked(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise TooBig
    return value


def exact(node: Node) -> Fraction | None:
    """The rational value, None where there is none or it cannot be seen. Raises TooBig, Undefined."""
    match node:
        case Number(value, _, ellipsis):
            return None if ellipsis else value
        case Quantity(value, unit):
            inner = exact(value)
            return inner / 100 if unit.dimension == "percent" and inner is not None else inner
        case Apply(name, args):
            values = [exact(arg) for arg in args]
            if any(value is None for value in values):
                return None
            return exact_apply(name, [value for value in values if value is not None])
    return None


def exact_apply(name: str, args: list[Fraction]) -> Fraction | None:
    match name:
        case "add":
            return checked(args[0] + args[1])
        case "mul":
            return checked(args[0] * args[1])
        case "neg":
            return -args[0]
        case "div":
            if args[1] == 0:
                raise Undefined
            return checked(args[0] / args[1])
        case "pow":
            return exact_power(*args)
        case "root":
            return exact_root(*args)
        case "fact":
            return exact_factorial(args[0])
        case "binom":
            return exact_binomial(*args)
        case "abs":
            return abs(args[0])
        case "floor":
            return Fraction(math.floor(args[0]))
        case "ceil":
            return Fraction(math.ceil(args[0]))
    return None


def exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = exact_root(base, Fraction(exponent.denominator))
        return None if root is None else exact_power(root, Fraction(exponent.numerator))
    if base == 0 and exponent < 0:
        raise Undefined
    if base in (0, 1) or exponent == 0:
        return Fraction(1) if exponent == 0 else base
    if base == -1:
        return Fraction(1 if exponent % 2 == 0 else -1)
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
    if number.denominator != 1 or number < 0:
        raise Undefined
    if number > MAX_FACTORIAL:
        raise TooBig
    return Fraction(math.factorial(int(number)))


def exact_binomial(top: Fraction, bottom: Fraction) -> Fraction:
    if top.denominator != 1 or bottom.denominator != 1 or top < 0 or bottom < 0:
        raise Undefined
    if top > MAX_FACTORIAL:
        raise TooBig
    return Fraction(math.comb(int(top), int(bottom)))


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
        case Number(value):
            return complex(float(value))
        case Constant(name):
            if name not in CONSTANTS:
                raise Undefined
            return CONSTANTS[name]
        case Variable(name):
            if name not in values:
                raise Undefined
            return values[name]
        case Quantity(value, unit):
            scale = {"percent": 0.01, "angle": math.pi / 180 * float(unit.size)}.get(unit.dimension, 1.0)
            return approximate_node(value, values, real) * scale
        case Group("bracket", (only,)):
            return approximate_node(only, values, real)
        case Apply("fact" | "binom", _):
            number = exact(node)
            return gamma_form(node, values) if number is None else complex(float(number))
        case Apply(name, args):
            return apply_float(name, [approximate_node(arg, values, real) for arg in args], real)
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


def apply_float(name: str, args: list[complex], real: bool) -> complex:
    match name:
        case "add":
            return args[0] + args[1]
        case "mul":
            return args[0] * args[1]
        case "neg":
            return -args[0]
        case "div":
            return args[0] / args[1]
        case "pow":
            return power_float(args[0], args[1], real)
        case "root":
            return root_float(args[0], args[1], real)
        case "ln":
            return log_float(args[0], real)
        case "logbase":
            return log_float(args[0], real) / log_float(args[1], real)
        case "floor" | "ceil":
            near = round(args[0].real)
            if abs(args[0].real - near) < 1e-9:  # what floating point made of an integer
                return complex(near)
            return complex(math.floor(args[0].real) if name == "floor" else math.ceil(args[0].real))
        case "arcsin" | "arccos":
            if real and abs(args[0]) > 1:
                raise Undefined
            return cmath.asin(args[0]) if name == "arcsin" else cmath.acos(args[0])
    if name not in FUNCTIONS:
        raise Undefined
    return FUNCTIONS[name](args[0])


def log_float(value: complex, real: bool) -> complex:
    if real and (value.imag or value.real <= 0):
        raise Undefined
    return cmath.log(value)


def power_float(base: complex, exponent: complex, real: bool) -> complex:
    if exponent.imag == 0 and exponent.real.is_integer():
        if abs(exponent.real) > 2_000:
            raise TooBig
        return base ** int(exponent.real)
    if real and (base.imag or base.real < 0):
        raise Undefined
    result: complex = base**exponent
    return result


def root_float(radicand: complex, index: complex, real: bool) -> complex:
    degree = index.real
    if radicand.imag == 0 and radicand.real < 0 and degree % 2 == 1 and index.imag == 0:
        return complex(-((-radicand.real) ** (1 / degree)))
    if real and (radicand.imag or radicand.real < 0):
        raise Undefined
    if degree == 2 and index.imag == 0:
        return cmath.sqrt(radicand)
    result: complex = radicand ** (1 / index)
    return result
