"""Reads arithmetic: sums, products, powers, fractions, roots, functions, absolute values.

A cursor walks over the tokens; what stands inside brackets (tuples, sets, conditions) is read by
`pipeline.verify.math.grammar`, which hands its readers to the cursor. Nothing is computed here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

from pipeline.verify.math.notation import Token, read_decimal
from pipeline.verify.math.tree import (
    Apply,
    Constant,
    Group,
    Node,
    Number,
    Quantity,
    Variable,
    variables_of,
)
from pipeline.verify.math.units import LETTERS, read_unit
from pipeline.verify.math.words import number_in_words

# fmt: off
GREEK = frozenset([
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda",
    "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta",
    "Theta", "Lambda", "Xi", "Sigma", "Phi", "Psi", "Omega", "ell",
])
FUNCTIONS = frozenset([
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "sinh",
    "cosh", "tanh", "exp", "ln", "log", "lg", "sqrt", "cbrt", "abs", "floor", "ceil", "cis",
])
# fmt: on
ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "cosec": "csc", "ceiling": "ceil"}
CONSTANTS = {
    "pi": "pi", "infty": "infinity", "infinity": "infinity", "inf": "infinity", "oo": "infinity",
    "reals": "reals", "integers": "integers", "naturals": "naturals", "rationals": "rationals",
    "complexes": "complexes", "emptyset": "empty",
}  # fmt: skip
STOP_WORDS = frozenset(
    {"or", "and", "to", "mod", "base", "union", "intersect", "intersection", "where", "for", "with"}
)
FENCES = {"lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil")}
UNKNOWN_FUNCTIONS = frozenset("fgh")
ACCENTS = {
    **{name: name for name in ("hat", "vec", "tilde", "dot", "ddot", "neg", "angle", "triangle", "overline")},
    "widehat": "hat", "overrightarrow": "vec", "bar": "overline", "widetilde": "tilde", "lnot": "neg",
    "measuredangle": "angle",
}  # fmt: skip
CURRENCIES = ("$", "€", "£", "¥", "₹")
FACTORS = GREEK | FUNCTIONS | FENCES.keys() | ACCENTS.keys() | {"frac", "pi", "sqrt", "binom", "langle"}
SIGNS = {"+": "", "-": "neg", "\\pm": "pm", "\\mp": "mp"}
MAX_DEPTH = 20  # of brackets, groups and arguments


class Unreadable(Exception):
    """The answer is not written in this grammar; its text says what stood in the way."""


@dataclass(slots=True)
class Cursor:
    """`with cursor:` stands around what may hold another of its kind, and `bars` counts the open constructs
    in which a vertical bar closes or separates."""

    tokens: list[Token]
    read_list: Callable[["Cursor"], Node]
    read_bracket: Callable[["Cursor"], Node]
    position: int = 0
    depth: int = 0
    bars: int = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.position]

    def at(self, *texts: str) -> bool:
        token = self.tokens[self.position]
        return token.text in texts and token.kind in ("symbol", "command")

    def take(self, *texts: str) -> bool:
        if self.at(*texts):
            self.position += 1
            return True
        return False

    def expect(self, *texts: str) -> None:
        if not self.take(*texts):
            raise Unreadable(f"expected {texts[0]!r}, found {self.token.text!r}")

    def next(self) -> Token:
        token = self.token
        self.position += 1
        return token

    def peek(self, offset: int = 1) -> Token:
        return self.tokens[min(self.position + offset, len(self.tokens) - 1)]

    def __enter__(self) -> None:
        if self.depth == MAX_DEPTH:
            raise Unreadable("nested too deeply")
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1

    @contextmanager
    def with_bars(self, bars: int) -> Iterator[None]:
        self.bars, before = bars, self.bars
        try:
            yield
        finally:
            self.bars = before


def read_enclosed(cursor: Cursor, opening: str, closing: str) -> str:
    """The text from a bracket to the one that closes it, both included."""
    parts, depth = [], 0
    while cursor.token.kind != "end":
        token = cursor.next()
        parts.append(token.text)
        depth += (token.text == opening) - (token.text == closing)
        if depth == 0:
            return "".join(parts)
    raise Unreadable("an open bracket")


def read_literal(cursor: Cursor) -> Number:
    token = cursor.next()
    value = read_decimal(token.text) if token.kind == "number" else None
    if value is None:
        raise Unreadable(f"no number: {token.text[:20]!r}")
    if value[1] is not None and cursor.take("\\ldots"):
        return Number(*value, ellipsis=True)
    return Number(*value)


def read_number_words(cursor: Cursor) -> Node | None:
    words: list[str] = []
    best: tuple[int, tuple[int, int]] | None = None
    for offset in range(8):
        token = cursor.peek(offset)
        if token.text == "-" and words:
            continue
        if token.kind != "word":
            break
        words.append(token.text)
        if (value := number_in_words(" ".join(words))) is not None:
            best = (offset + 1, value)
    if best is None:
        return None
    cursor.position += best[0]
    top, bottom = best[1]
    return Number(Fraction(top, bottom))


def read_sum(cursor: Cursor) -> Node:
    node = read_product(cursor)
    while cursor.at(*SIGNS):
        node = Apply("add", (node, signed(cursor.next().text, read_product(cursor))))
    return node


def read_product(cursor: Cursor) -> Node:
    if cursor.at(*SIGNS):
        sign = cursor.next().text
        with cursor:
            return signed(sign, read_product(cursor))
    if cursor.at(*CURRENCIES):
        unit = read_unit(cursor.next().text)
        return Quantity(read_product(cursor), unit)
    node = read_power(cursor)
    while True:
        if cursor.at("*", "/"):
            name = "mul" if cursor.next().text == "*" else "div"
            node = Apply(name, (node, read_signed_power(cursor)))
        elif cursor.take("\\angle"):
            node = Apply("mul", (node, Apply("cis", (with_postfix_unit(cursor, read_power(cursor)),))))
        elif starts_factor(cursor, node):
            node = join(cursor, node)
        else:
            return with_postfix_unit(cursor, node)


def signed(sign: str, node: Node) -> Node:
    """The sign goes inside a quantity: -5% is (-5)%."""
    if sign == "+":
        return node
    if isinstance(node, Quantity):
        return Quantity(Apply(SIGNS[sign], (node.value,)), node.unit)
    return Apply(SIGNS[sign], (node,))


def read_signed_power(cursor: Cursor) -> Node:
    sign = cursor.next().text if cursor.at("+", "-") else "+"
    return signed(sign, read_power(cursor))


def starts_factor(cursor: Cursor, left: Node) -> bool:
    """Whether a factor follows without an operator."""
    token = cursor.token
    if cursor.at("\\begin"):
        return not isinstance(left, Group)
    if isinstance(left, Group) or (isinstance(left, Constant) and left.name not in ("pi", "e", "i")):
        return False
    if token.kind == "number":
        return not isinstance(left, Number) or mixed_follows(cursor, left)
    if token.kind == "letter":
        return not (token.text == "U" and cursor.peek().text in ("(", "["))
    if token.kind == "word":
        return token.text in FUNCTIONS or token.text in ALIASES or token.text == "pi" or letters_only(token)
    if token.kind == "command":
        return token.text[1:] in FACTORS
    if token.text == "(":
        return cursor.peek().text not in ("mod", "base", "in", "where")
    return token.text == "{" or (token.text == "|" and not cursor.bars)


def letters_only(token: Token) -> bool:
    """A short plain word in a formula is a product of variables: 2xy, ab."""
    word = token.text
    return (
        len(word) <= 3
        and word.isascii()
        and word not in STOP_WORDS
        and not read_unit(word).dimension
        and not token.spaced
    )


def join(cursor: Cursor, left: Node) -> Node:
    """Implicit multiplication, mixed numbers (2\\frac12, 2 1/2), and "5 m" at the end as a unit."""
    if isinstance(left, Number) and mixed_follows(cursor, left):
        return Apply("add", (left, read_fraction(cursor)))
    token = cursor.token
    last = cursor.peek().kind == "end" or cursor.peek().text in (",", ")")
    letter = token.kind == "letter" and token.spaced and token.text in LETTERS
    if isinstance(left, Number) and letter and last:
        cursor.next()
        return Quantity(left, read_unit(token.text))
    return Apply("mul", (left, read_power(cursor)))


def mixed_follows(cursor: Cursor, left: Number) -> bool:
    """Whether a proper fraction of two literals follows an integer."""
    if left.decimals is not None or not (cursor.token.kind == "number" or cursor.at("\\frac")):
        return False
    start = cursor.position
    try:
        fraction = read_fraction(cursor)
    except Unreadable:
        return False
    finally:
        cursor.position = start
    match fraction:
        case Apply("div", (Number(top, None), Number(bottom, None))):
            return 0 < top < bottom
    return False


def read_fraction(cursor: Cursor) -> Node:
    """A fraction written with \\frac or a slash, of which the cursor stands at the beginning."""
    if cursor.take("\\frac"):
        top, bottom = read_argument(cursor), read_argument(cursor)
        if "d" in variables_of(top) and is_differential(bottom):
            raise Unreadable("a derivative")
        return Apply("div", (top, bottom))
    top = read_literal(cursor)
    cursor.expect("/")
    return Apply("div", (top, read_literal(cursor)))


def is_differential(node: Node) -> bool:
    return isinstance(node, Apply) and node.args[0] == Variable("d") and isinstance(node.args[-1], Variable)


def read_argument(cursor: Cursor) -> Node:
    """The argument of a command: a group, or one token (of a number its first digit)."""
    if cursor.at("{"):
        return read_group(cursor)
    token = cursor.token
    if token.kind == "number" and token.text.isdigit():
        digits = [Token("number", token.text[:1]), Token("number", token.text[1:])]
        cursor.tokens[cursor.position : cursor.position + 1] = [digit for digit in digits if digit.text]
    return read_atom(cursor)


def read_group(cursor: Cursor) -> Node:
    """{...}: LaTeX grouping, or a set where it holds a list."""
    cursor.expect("{")
    with cursor.with_bars(0):
        node = cursor.read_list(cursor)
    cursor.expect("}")
    return as_set(node) or node


def as_set(node: Node) -> Group | None:
    """Of a plain list; None for another node."""
    return Group("set", node.items) if isinstance(node, Group) and node.kind in ("comma", "and") else None


def read_power(cursor: Cursor) -> Node:
    node = read_atom(cursor)
    while True:
        if cursor.take("^"):
            if cursor.at("*", "'"):
                raise Unreadable("exponent")
            node = Apply("pow", (node, read_exponent(cursor)))
        elif cursor.take("!"):
            if cursor.at("!"):
                raise Unreadable("a double factorial")
            node = Apply("fact", (node,))
        else:
            return node


def read_exponent(cursor: Cursor) -> Node:
    with cursor:
        if cursor.at("{"):
            return read_group(cursor)
        if cursor.take("-"):
            return Apply("neg", (read_power(cursor),))
        node = read_atom(cursor)
        return Apply("pow", (node, read_exponent(cursor))) if cursor.take("^") else node


def with_postfix_unit(cursor: Cursor, node: Node) -> Node:
    """5\\%, 30°, 20°C."""
    if cursor.at("%", "°", "¢", *CURRENCIES):
        phrase = cursor.next().text
        if phrase == "°" and cursor.token.kind == "letter" and cursor.token.text in "CF":
            phrase += cursor.next().text
        elif phrase == "°":
            node = with_minutes(cursor, node)
        return Quantity(node, read_unit(phrase))
    return node


def with_minutes(cursor: Cursor, node: Node) -> Node:
    """45 degrees 30' 15", of which the degrees have been read."""
    for marks, size in ((("'", "minutes", "minute"), 60), (('"', "seconds", "second", "'"), 3600)):
        if cursor.token.kind == "number" and cursor.peek().text in marks:
            node = Apply("add", (node, Apply("div", (read_literal(cursor), Number(Fraction(size))))))
            while cursor.token.text in marks:
                cursor.next()
    return node


def read_atom(cursor: Cursor) -> Node:
    token = cursor.token
    with cursor:
        if token.kind in READERS:
            return READERS[token.kind](cursor)
        if token.text == "{":
            return read_group(cursor)
        if token.text in ("(", "["):
            return cursor.read_bracket(cursor)
        if cursor.take("|"):
            return read_fenced(cursor, "|", "abs")
    raise Unreadable(f"unexpected {token.text[:20]!r}")


def read_fenced(cursor: Cursor, closing: str, name: str) -> Node:
    with cursor.with_bars(cursor.bars + 1):
        node = read_sum(cursor)
    cursor.expect(closing)
    return Apply(name, (node,))


def read_variable(cursor: Cursor) -> Node:
    letter = name = cursor.next().text.removeprefix("\\")
    if name in ("e", "i"):
        return Constant(name)
    if cursor.take("_"):
        name += "_" + (read_enclosed(cursor, "{", "}")[1:-1] if cursor.at("{") else cursor.next().text)
    while cursor.take("'"):
        name += "'"
    if name in UNKNOWN_FUNCTIONS and [cursor.peek(k).text for k in range(6)] == [*"^{-1}("]:
        cursor.position += 5
        name += "^{-1}"
    if (letter in UNKNOWN_FUNCTIONS and cursor.at("(") and not cursor.token.spaced) or is_called(
        cursor, letter
    ):
        name += read_enclosed(cursor, "(", ")")  # the value of an unknown function is a variable of its own
    return Variable(name)


def is_called(cursor: Cursor, name: str) -> bool:
    """P(A), zeta(2), pi(10), C(5, 2): a capital or a Greek letter before a single symbol is a function."""
    if not cursor.at("(") or (name.islower() and name not in GREEK | {"pi"}):
        return False
    single = cursor.peek().kind in ("number", "letter", "word") and cursor.peek(2).text in (")", ",", "|")
    return single or (cursor.peek().kind == "command" and cursor.peek(2).text == ")")


def read_word(cursor: Cursor) -> Node:
    """Functions, constants, numbers in words, and short words as products of variables."""
    word = ALIASES.get(cursor.token.text, cursor.token.text)
    if len(word) == 2 and word[0] == "d":
        raise Unreadable("a differential")
    if word in FUNCTIONS:
        cursor.next()
        return read_function(cursor, word)
    if word.casefold() in CONSTANTS:
        cursor.next()
        return Constant(CONSTANTS[word.casefold()])
    number = read_number_words(cursor)
    if number is not None:
        return number
    if len(word) > 3 and cursor.position and cursor.tokens[cursor.position - 1].text in ("+", "*", "/"):
        return read_named(cursor)
    if len(word) > 3 or word in STOP_WORDS or (len(word) == 3 and word[0].isupper() and word[1:].islower()):
        raise Unreadable(f"the word {word[:20]!r}")
    if cursor.peek().text in ("^", "_", "!"):  # xy^2 is x y^2
        cursor.tokens[cursor.position : cursor.position + 1] = [Token("letter", letter) for letter in word]
        return read_variable(cursor)
    cursor.next()
    if len(word) == 3 and word.isupper():
        return Variable(word)  # an order of letters, or an angle
    factors: list[Node] = [Constant(c) if c in "ei" else Variable(c) for c in word]
    node = factors[0]
    for factor in factors[1:]:
        node = Apply("mul", (node, factor))
    return node


def read_named(cursor: Cursor) -> Node:
    """10 + John's age: what has a name of words is a variable."""
    words = [cursor.next().text]
    while cursor.token.kind in ("word", "letter") or cursor.at("'"):
        words.append(cursor.next().text)
    return Variable(" ".join(words))


def read_command(cursor: Cursor) -> Node:
    name = cursor.token.text[1:]
    if name == "frac":
        return read_fraction(cursor)
    if name in GREEK:
        return read_variable(cursor)
    if name in ("{", "langle", "begin"):
        return cursor.read_bracket(cursor)
    cursor.next()
    if is_called(cursor, name):
        return Variable(name + read_enclosed(cursor, "(", ")"))
    if name in CONSTANTS:
        return Constant(CONSTANTS[name])
    if name in FUNCTIONS:
        return read_function(cursor, name)
    if name in FENCES:
        return read_fenced(cursor, "\\" + FENCES[name][0], FENCES[name][1])
    if name == "binom":
        top = read_argument(cursor)
        return Apply("binom", (top, read_argument(cursor)))
    if name in ACCENTS:  # the variable with its accent is another one than the variable without
        inner = read_enclosed(cursor, "{", "}")[1:-1] if cursor.at("{") else cursor.next().text
        inner = {"\\imath": "i", "\\jmath": "j"}.get(inner, inner)
        if not inner.isalpha():
            raise Unreadable(f"\\{name} over {inner[:20]}")
        return Variable(f"\\{ACCENTS[name]}{{{inner}}}")
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
        node = Apply(name, (argument,))
    return node if power is None else Apply("pow", (node, power))


def read_root(cursor: Cursor) -> Node:
    index: Node = Number(Fraction(2))
    if cursor.take("["):
        index = read_sum(cursor)
        cursor.expect("]")
    return Apply("root", (read_atom(cursor), index))


def read_function_argument(cursor: Cursor) -> Node:
    """What stands in brackets, else the factors up to the next operator or function."""
    bracketed = cursor.at("(", "{", "[", "|")
    # \sin(x)^2 is the square of the sine
    node = read_atom(cursor) if cursor.at("(", "[", "|") else read_signed_power(cursor)
    while not bracketed and starts_factor(cursor, node) and not is_function(cursor.token):
        node = join(cursor, node)
    if not bracketed and cursor.take("/"):  # \sin \pi/6
        node = Apply("div", (node, read_power(cursor)))
    return with_postfix_unit(cursor, node)


def is_function(token: Token) -> bool:
    name = token.text.removeprefix("\\")
    return name in FUNCTIONS or name in ALIASES or token.text in ("(", "[")


READERS: dict[str, Callable[[Cursor], Node]] = {
    "number": read_literal,
    "letter": read_variable,
    "word": read_word,
    "command": read_command,
}
