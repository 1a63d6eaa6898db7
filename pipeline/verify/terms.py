"""Reads arithmetic: sums, products, powers, fractions, roots, functions, absolute values.

A cursor walks over the tokens; what stands inside brackets (tuples, sets, conditions) is read by
`pipeline.verify.grammar`, which hands its readers to the cursor. Nothing is computed here.
"""

from fractions import Fraction

from pipeline.verify.cursor import (
    Cursor,
    Unreadable,
    read_call,
    read_literal,
    read_number_words,
    read_subscript,
)
from pipeline.verify.notation import Token
from pipeline.verify.tree import Apply, Constant, Group, Matrix, Node, Number, Quantity, Variable
from pipeline.verify.units import LETTERS, read_unit

# fmt: off
GREEK = frozenset([
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta",
    "Theta", "Lambda", "Xi", "Sigma", "Phi", "Psi", "Omega", "ell",
])
# fmt: on
# fmt: off
FUNCTIONS = frozenset([
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "sinh",
    "cosh", "tanh", "exp", "ln", "log", "lg", "sqrt", "cbrt", "abs", "floor", "ceil",
])
# fmt: on
ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "cosec": "csc", "ceiling": "ceil"}
CONSTANTS = {
    "pi": "pi", "infty": "infinity", "infinity": "infinity", "inf": "infinity", "oo": "infinity",
    "reals": "reals",
    "integers": "integers", "naturals": "naturals", "rationals": "rationals", "complexes": "complexes",
    "emptyset": "empty",
}  # fmt: skip
STOP_WORDS = frozenset(
    {"or", "and", "to", "mod", "base", "union", "intersect", "intersection", "where", "for", "with"}
)
FENCES = {"lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil")}
UNKNOWN_FUNCTIONS = frozenset("fgh")
SKIPPED = frozenset({"angle", "measuredangle", "triangle", "vec", "hat", "overrightarrow"})


def read_sum(cursor: Cursor) -> Node:
    cursor.enter()
    node = read_product(cursor)
    while cursor.at("+", "-", "\\pm", "\\mp"):
        sign = cursor.next().text
        right = read_product(cursor)
        if sign == "+":
            node = Apply("add", (node, right))
        elif sign == "-":
            node = Apply("add", (node, Apply("neg", (right,))))
        else:
            node = Apply("add", (node, Apply(sign[1:], (right,))))
    cursor.depth -= 1
    return node


def read_product(cursor: Cursor) -> Node:
    sign = cursor.token.text
    if cursor.take("-", "+", "\\pm", "\\mp"):
        cursor.enter()
        node = read_product(cursor)
        cursor.depth -= 1
        if sign == "+":
            return node
        return signed("neg" if sign == "-" else sign[1:], node)
    if cursor.at("$", "€", "£"):
        unit = read_unit(cursor.next().text)
        return Quantity(read_product(cursor), unit)
    node = read_power(cursor)
    while True:
        if cursor.take("*"):
            node = Apply("mul", (node, read_signed_power(cursor)))
        elif cursor.take("/"):
            node = Apply("div", (node, read_signed_power(cursor)))
        elif starts_factor(cursor, node):
            node = join(cursor, node)
        else:
            return with_postfix_unit(cursor, node)


def signed(name: str, node: Node) -> Node:
    """The sign goes inside a quantity: -5% is (-5)%."""
    if isinstance(node, Quantity):
        return Quantity(Apply(name, (node.value,)), node.unit)
    return Apply(name, (node,))


def read_signed_power(cursor: Cursor) -> Node:
    if cursor.take("-"):
        return Apply("neg", (read_power(cursor),))
    cursor.take("+")
    return read_power(cursor)


def starts_factor(cursor: Cursor, left: Node) -> bool:
    """Whether a factor follows without an operator."""
    token = cursor.token
    if isinstance(left, Group | Matrix) or (isinstance(left, Constant) and left.name not in ("pi", "e", "i")):
        return False
    if token.kind == "number":
        return not isinstance(left, Number) or mixed_follows(cursor, left)
    if token.kind == "letter":
        return not (token.text == "U" and cursor.peek().text in ("(", "["))
    if token.kind == "word":
        return token.text in FUNCTIONS or token.text in ALIASES or token.text == "pi" or letters_only(token)
    if token.kind == "command":
        return token.text[1:] in GREEK | FUNCTIONS | set(FENCES) | {"frac", "pi", "sqrt", "binom", "langle"}
    if token.text == "(":
        return cursor.peek().text not in ("mod", "base", "in", "where")
    return token.text == "{" or (token.text == "|" and not cursor.bars)


def letters_only(token: Token) -> bool:
    """A short plain word in a formula is a product of variables: 2xy, ab."""
    word = token.text
    return len(word) <= 3 and word not in STOP_WORDS and not read_unit(word).dimension and not token.spaced


def join(cursor: Cursor, left: Node) -> Node:
    """Implicit multiplication, mixed numbers (2\\frac12, 2 1/2), and "5 m" at the end as a unit."""
    if isinstance(left, Number) and left.decimals is None and mixed_follows(cursor, left):
        return Apply("add", (left, read_fraction(cursor)))
    token = cursor.token
    last = cursor.peek().kind == "end" or cursor.peek().text in (",", ")")
    if (
        isinstance(left, Number)
        and token.kind == "letter"
        and token.spaced
        and token.text in LETTERS
        and last
    ):
        cursor.next()
        return Quantity(left, read_unit(token.text))
    return Apply("mul", (left, read_power(cursor)))


def mixed_follows(cursor: Cursor, left: Number) -> bool:
    """Whether a proper fraction of two literals follows an integer."""
    if left.decimals is not None:
        return False
    if cursor.token.kind == "number":
        parts = [cursor.token, cursor.peek(1), cursor.peek(2)]
        return parts[1].text == "/" and parts[2].kind == "number" and is_proper(parts[0].text, parts[2].text)
    if not cursor.at("\\frac"):
        return False
    start = cursor.position
    fraction = read_fraction(cursor)
    cursor.position = start
    match fraction:
        case Apply("div", (Number(top), Number(bottom))):
            return 0 < top < bottom
    return False


def is_proper(top: str, bottom: str) -> bool:
    return (
        top.isdigit() and bottom.isdigit() and 0 < len(top) <= len(bottom) <= 9 and 0 < int(top) < int(bottom)
    )


def read_fraction(cursor: Cursor) -> Node:
    """A fraction written with \\frac or a slash, of which the cursor stands at the beginning."""
    if cursor.take("\\frac"):
        if cursor.token.kind == "number" and cursor.token.text.isdigit() and len(cursor.token.text) > 1:
            digits = cursor.next().text  # \frac12: one digit each
            return with_rest(cursor, digits)
        top = read_argument(cursor)
        return Apply("div", (top, read_argument(cursor)))
    top = read_literal(cursor)
    cursor.expect("/")
    return Apply("div", (top, read_literal(cursor)))


def with_rest(cursor: Cursor, digits: str) -> Node:
    node = Apply("div", (Number(Fraction(int(digits[0]))), Number(Fraction(int(digits[1])))))
    if len(digits) == 2:
        return node
    return Apply("mul", (node, Number(Fraction(int(digits[2:])))))


def read_argument(cursor: Cursor) -> Node:
    """The argument of a command: a group, or one token (of a number its first digit)."""
    if cursor.at("{"):
        return read_group(cursor)
    token = cursor.token
    if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
        cursor.tokens[cursor.position] = Token("number", token.text[1:])
        return Number(Fraction(int(token.text[0])))
    return read_atom(cursor)


def read_group(cursor: Cursor) -> Node:
    """{...}: LaTeX grouping, or a set where it holds a list."""
    cursor.expect("{")
    cursor.enter()
    bars, cursor.bars = cursor.bars, 0
    node = cursor.read_list(cursor)
    cursor.bars = bars
    cursor.depth -= 1
    cursor.expect("}")
    if isinstance(node, Group) and node.kind in ("comma", "and"):
        return Group("set", node.items)
    return node


def read_power(cursor: Cursor) -> Node:
    node = read_atom(cursor)
    while True:
        if cursor.take("^"):
            if cursor.at("*", "'"):
                raise Unreadable("exponent")
            node = Apply("pow", (node, read_exponent(cursor)))
        elif cursor.at("!"):
            cursor.next()
            node = Apply("fact", (node,))
        else:
            return node


def read_exponent(cursor: Cursor) -> Node:
    cursor.enter()
    if cursor.at("{"):
        node = read_group(cursor)
    elif cursor.take("-"):
        node = Apply("neg", (read_power(cursor),))
    else:
        node = read_atom(cursor)
        if cursor.take("^"):
            node = Apply("pow", (node, read_exponent(cursor)))
    cursor.depth -= 1
    return node


def with_postfix_unit(cursor: Cursor, node: Node) -> Node:
    """5\\%, 30°, 20°C."""
    if cursor.at("%", "°", "¢", "€", "£"):
        phrase = cursor.next().text
        if phrase == "°" and cursor.token.kind == "letter" and cursor.token.text in "CF":
            phrase += cursor.next().text
        return Quantity(node, read_unit(phrase))
    return node


def read_atom(cursor: Cursor) -> Node:
    token = cursor.token
    if token.kind == "number":
        return read_literal(cursor)
    if token.kind == "letter":
        return read_variable(cursor)
    if token.kind == "word":
        return read_word(cursor)
    if token.kind == "command":
        return read_command(cursor)
    if token.text == "{":
        return read_group(cursor)
    if token.text in ("(", "["):
        cursor.enter()
        node = cursor.read_bracket(cursor)
        cursor.depth -= 1
        return node
    if cursor.take("|"):
        return read_fenced(cursor, "|", "abs")
    raise Unreadable(f"unexpected {token.text[:20]!r}")


def read_fenced(cursor: Cursor, closing: str, name: str) -> Node:
    cursor.bars += 1
    node = read_sum(cursor)
    cursor.bars -= 1
    cursor.expect(closing)
    return Apply(name, (node,))


def read_variable(cursor: Cursor) -> Node:
    name = cursor.next().text.removeprefix("\\")
    if name in ("e", "i"):
        return Constant(name)
    if cursor.take("_"):
        name += "_" + read_subscript(cursor)
    while cursor.take("'"):
        name += "'"
    if name in UNKNOWN_FUNCTIONS and cursor.at("(") and not cursor.token.spaced:
        name += read_call(cursor)
    return Variable(name)


def read_word(cursor: Cursor) -> Node:
    """Functions, constants, numbers in words, and short words as products of variables."""
    word = ALIASES.get(cursor.token.text, cursor.token.text)
    if word in FUNCTIONS:
        cursor.next()
        return read_function(cursor, word)
    if word.casefold() in CONSTANTS:
        cursor.next()
        return Constant(CONSTANTS[word.casefold()])
    number = read_number_words(cursor)
    if number is not None:
        return number
    if len(word) > 3 or word in STOP_WORDS:
        raise Unreadable(f"the word {word[:20]!r}")
    cursor.next()
    factors: list[Node] = [Constant(c) if c in "ei" else Variable(c) for c in word]
    node = factors[0]
    for factor in factors[1:]:
        node = Apply("mul", (node, factor))
    return node


def read_command(cursor: Cursor) -> Node:
    name = cursor.token.text[1:]
    if name == "frac":
        return read_fraction(cursor)
    if name in GREEK:
        return read_variable(cursor)
    if name in ("{", "langle", "begin"):
        cursor.enter()
        node = cursor.read_bracket(cursor)
        cursor.depth -= 1
        return node
    cursor.next()
    if name in CONSTANTS:
        return Constant(CONSTANTS[name])
    if name in FUNCTIONS:
        return read_function(cursor, name)
    if name in FENCES:
        return read_fenced(cursor, "\\" + FENCES[name][0], FENCES[name][1])
    if name == "binom":
        top = read_argument(cursor)
        return Apply("binom", (top, read_argument(cursor)))
    if name in SKIPPED:
        return read_atom(cursor)
    raise Unreadable(f"the command \\{name[:20]}")


def read_function(cursor: Cursor, name: str) -> Node:
    """A function with its base or root index, its power (\\sin^2 x, \\sin^{-1} x) and its argument."""
    if name == "sqrt":
        return read_root(cursor)
    base: Node | None = None
    power: Node | None = None
    if cursor.take("_"):
        base = read_argument(cursor)
    if cursor.take("^"):
        power = read_exponent(cursor)
    argument = read_function_argument(cursor)
    inverse = power == Apply("neg", (Number(Fraction(1)),))
    if inverse and name in ("sin", "cos", "tan", "cot"):
        return Apply("arc" + name, (argument,))
    if name == "lg" or (name == "log" and base is not None):
        node: Node = Apply("logbase", (argument, base or Number(Fraction(10))))
    elif name == "cbrt":
        node = Apply("root", (argument, Number(Fraction(3))))
    else:
        node = Apply("ln" if name == "log" else name, (argument,))
    return node if power is None else Apply("pow", (node, power))


def read_root(cursor: Cursor) -> Node:
    index: Node = Number(Fraction(2))
    if cursor.take("["):
        index = read_sum(cursor)
        cursor.expect("]")
    cursor.enter()
    radicand = read_group(cursor) if cursor.at("{") else read_atom(cursor)
    cursor.depth -= 1
    return Apply("root", (radicand, index))


def read_function_argument(cursor: Cursor) -> Node:
    """What stands in brackets, else the factors up to the next operator or function."""
    cursor.enter()
    bracketed = cursor.at("(", "{", "[", "|")
    if cursor.take("-"):
        node: Node = Apply("neg", (read_power(cursor),))
    else:
        node = read_power(cursor)
    while not bracketed and starts_factor(cursor, node) and not is_function(cursor.token):
        node = join(cursor, node)
    if not bracketed and cursor.take("/"):  # \sin \pi/6
        node = Apply("div", (node, read_power(cursor)))
    cursor.depth -= 1
    return with_postfix_unit(cursor, node)


def is_function(token: Token) -> bool:
    name = token.text.removeprefix("\\")
    return name in FUNCTIONS or name in ALIASES or token.text in ("(", "[")
