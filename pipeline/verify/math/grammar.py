"""Reads an answer into trees, best first: lists, relations, sets, intervals, matrices, ratios, residues, ...

`read_answer` gives every sensible reading (1,234 is a number or a list) or none."""

import re
from functools import lru_cache

from pipeline.verify.math.notation import (
    COMMA_THOUSANDS,
    clean,
    join_thousands,
    plain,
    read_based,
    rephrase,
    strip_marks,
    tokenize,
)
from pipeline.verify.math.terms import STOP_WORDS, Cursor, Unreadable, as_set, read_enclosed, read_sum
from pipeline.verify.math.tree import (
    Apply,
    Based,
    Builder,
    Constant,
    Definition,
    Group,
    Matrix,
    Modular,
    Node,
    Number,
    Quantity,
    Ratio,
    Relation,
    Text,
    Variable,
)
from pipeline.verify.math.units import read_unit
from pipeline.verify.math.words import ORDINAL, meaning

MAX_LENGTH = 20_000  # characters of an answer; longer ones are compared as text only
MAX_ITEMS = 3_000
RELATIONS = {
    "=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\le": "<=", "\\ge": ">=",
    "\\ne": "!=",
    "\\in": "in", "\\equiv": "equiv", "\\approx": "approx", "\\sim": "approx",
}  # fmt: skip
CONNECTORS = {"or": "or", "and": "and", "\\lor": "or", "\\land": "and", "&": "and",
              ",": "comma", ";": "comma", "\\\\": "comma"}  # fmt: skip
SET_OPERATORS = {"\\cup": "cup", "u": "cup", "union": "cup", "\\cap": "cap", "intersect": "cap",
                 "intersection": "cap", "\\setminus": "setminus"}  # fmt: skip
HEDGES = frozenset(
    "approximately about exactly roughly approx around only just simply precisely".split()  # noqa: SIM905
)
CLOSING = {"(": (")", "]"), "[": ("]", ")"), "\\langle": ("\\rangle",), "\\{": ("\\}",)}
MATRICES = frozenset({"pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "smallmatrix", "array"})
LABEL = re.compile(
    r"(?:^|[,;\n]|\band\b)\s{0,5}(?:\$\s{0,3})?(?:[Pp]art\s{0,3})?(?:\\text(?:bf)?\{)?"
    r"(?:\(([a-zA-Z]{1,4}|\d)\)|([a-zA-Z]{1,4}|\d)(?:\)|:|\.(?=\s)))\}?\s{0,5}"
)
SEQUENCES = (tuple("abcdefgh"), ("i", "ii", "iii", "iv", "v", "vi"), tuple("12345678"))


@lru_cache(maxsize=4096)
def read_answer(text: str) -> tuple[Node, ...]:
    """The readings of an answer; none where the grammar does not hold."""
    if len(text) > MAX_LENGTH:
        return ()
    cleaned = strip_marks(clean(text))
    special = read_labelled(text) or read_special(plain(cleaned))
    if special is not None:
        return (special,)
    readings: list[Node] = []
    with_commas = rephrase(cleaned)
    joined = COMMA_THOUSANDS.sub(join_thousands, with_commas)
    for candidate in dict.fromkeys((joined, with_commas)):
        try:
            readings.append(read_text(candidate))
        except Unreadable:
            continue
    return tuple(readings)


def read_special(text: str) -> Node | None:
    """Whole answers with a notation of their own: 506_7, 5th, words with a fixed meaning."""
    if (based := read_based(text)) is not None:
        return Based(*based)
    if match := ORDINAL.match(text):
        return read_text(match.group(1).replace(",", ""))
    words = meaning(text)
    if words == "no solution":
        return Constant("empty")
    if words in ("undefined", "infinitely many", "yes", "no"):
        return Text(words)
    return None


def read_labelled(text: str) -> Node | None:
    """(a) 1, (b) 2 and its kin: two items or more, labelled in sequence, which makes them ordered."""
    labels = list(LABEL.finditer(text[:MAX_LENGTH]))
    names = [(match.group(1) or match.group(2)).casefold() for match in labels]
    if (
        len(names) < 2
        or labels[0].start() > 0
        or not any(names == list(row[: len(names)]) for row in SEQUENCES)
    ):
        return None
    ends = [match.start() for match in labels[1:]] + [len(text)]
    parts = [text[match.end() : end].strip(" ,;\n") for match, end in zip(labels, ends, strict=True)]
    items = [read_answer(part) for part in parts]
    if not all(items):
        return None
    return Group("bracket", tuple(readings[0] for readings in items), "(", ")")


def read_text(text: str) -> Node:
    """Raises Unreadable."""
    tokens = tokenize(text)
    if tokens is None:
        raise Unreadable("a character without meaning")
    cursor = Cursor(tokens, read_list, read_bracket)
    node = read_list(cursor)
    if cursor.token.kind != "end":
        raise Unreadable(f"unexpected {cursor.token.text[:20]!r}")
    return node


def read_list(cursor: Cursor) -> Node:
    """Items between commas, semicolons, "and", "or"; a single item stands for itself."""
    items: list[Node] = [read_item(cursor)]
    kinds: list[str] = []
    while (kind := take_connector(cursor)) is not None:
        if cursor.token.kind == "end" or cursor.at(")", "]", "\\}", "}", "\\end"):
            break
        kinds.append(kind)
        items.append(read_item(cursor))
        if len(items) > MAX_ITEMS:
            raise Unreadable("too many items")
    if len(items) == 1:
        return items[0]
    kind = "or" if "or" in kinds else "comma" if "comma" in kinds else "and"
    return Group(kind, tuple(items))


def take_connector(cursor: Cursor) -> str | None:
    """The strongest of consecutive separators: ", or" is or."""
    found: str | None = None
    while cursor.token.kind in ("symbol", "command", "word", "text"):
        kind = CONNECTORS.get(cursor.token.text.casefold())
        if kind is None:
            break
        found = kind if found is None or kind != "comma" else found
        cursor.next()
    return found


def read_item(cursor: Cursor) -> Node:
    """A value with its unit, a relation chain, a definition, a residue class, or words."""
    while cursor.token.kind in ("word", "text") and cursor.token.text.casefold() in HEDGES:
        cursor.next()
    if (definition := read_definition(cursor)) is not None:
        return definition
    sides: list[Node] = []
    operators: list[str] = []
    if relation_at(cursor):  # "> 5", "= 3": the left side is understood
        sides.append(Variable(""))
    else:
        sides.append(read_side(cursor))
    while (operator := relation_at(cursor)) is not None:
        cursor.next()
        operators.append(operator)
        sides.append(read_side(cursor))
    if not operators:
        return sides[0]
    if sides[0] == Variable("") and operators in (["="], ["approx"]):
        return sides[1]
    return Relation(tuple(sides), tuple(operators))


def relation_at(cursor: Cursor) -> str | None:
    token = cursor.token
    return RELATIONS.get(token.text) if token.kind in ("symbol", "command") else None


def read_definition(cursor: Cursor) -> Node | None:
    """f(x) = ..., g(s, t) = ..., f^{-1}(x) = ..."""
    start = cursor.position
    if cursor.token.kind != "letter":
        return None
    name = cursor.next().text
    if cursor.at("^") and [cursor.peek(k).text for k in range(5)] == ["^", "{", "-", "1", "}"]:
        cursor.position += 5
        name += "^-1"
    while cursor.take("'"):
        name += "'"
    parameters: list[str] = []
    if cursor.take("("):
        while cursor.token.kind == "letter" or (cursor.token.kind == "command" and not cursor.at("\\{")):
            parameters.append(cursor.next().text.removeprefix("\\"))
            if not cursor.take(","):
                break
        if parameters and cursor.take(")") and cursor.take("="):
            body = read_side(cursor)
            while cursor.take("="):
                body = read_side(cursor)
            return Definition(name, tuple(parameters), body)
    cursor.position = start
    return None


def read_side(cursor: Cursor) -> Node:
    """Sets joined by union, intersection or difference; else a ratio or a value."""
    node = read_ratio(cursor)
    while (name := SET_OPERATORS.get(cursor.token.text.casefold())) is not None:
        cursor.next()
        node = Apply(name, (node, read_ratio(cursor)))
    return node


def read_ratio(cursor: Cursor) -> Node:
    parts = [read_value(cursor)]
    while (cursor.at(":") and not cursor.bars) or (
        cursor.token.kind == "word" and cursor.token.text == "to" and cursor.peek().kind in ("number", "word")
    ):
        cursor.next()
        parts.append(read_value(cursor))
    return parts[0] if len(parts) == 1 else Ratio(tuple(parts))


def read_value(cursor: Cursor) -> Node:
    """Arithmetic with a unit phrase and a modulus behind it; else words."""
    start = cursor.position
    try:
        node = read_sum(cursor)
    except Unreadable:
        cursor.position = start
        words = read_words(cursor)
        if words is None:
            raise
        return words
    phrase = read_phrase(cursor)
    if phrase and isinstance(node, Variable) and not read_unit(phrase).dimension:
        return Text(f"{node.name} {phrase}")  # "I give up"
    if phrase and not isinstance(node, Quantity):
        node = with_smaller_unit(cursor, Quantity(node, read_unit(phrase)))
    return read_modulus(cursor, node)


def with_smaller_unit(cursor: Cursor, quantity: Quantity) -> Quantity:
    """2 hours 30 minutes, 5 dollars and 50 cents: one quantity."""
    start = cursor.position
    while cursor.token.text in ("and", ","):
        cursor.next()
    if cursor.token.kind == "number" and quantity.unit.size:
        second = read_value(cursor)
        if isinstance(second, Quantity) and second.unit.dimension == quantity.unit.dimension:
            factor = second.unit.size / quantity.unit.size
            if quantity.unit.dimension and factor < 1:
                part = Apply("mul", (Number(factor), second.value))
                return Quantity(Apply("add", (quantity.value, part)), quantity.unit)
    cursor.position = start
    return quantity


def read_words(cursor: Cursor) -> Node | None:
    """A run of words (and whatever they enclose) up to the next separator or relation."""
    if cursor.token.kind not in ("word", "text"):
        return None
    parts = []
    while cursor.token.kind in ("word", "text", "letter", "number") or cursor.at("'", "-", "/", ".", "?"):
        if cursor.token.text.casefold() in CONNECTORS:
            break
        parts.append(cursor.next().text)
    return Text(" ".join(parts))


def read_phrase(cursor: Cursor) -> str:
    """The unit behind a value: words, with powers and "per" between them."""
    parts: list[str] = []
    while True:
        token = cursor.token
        if token.kind in ("word", "text"):
            if token.text.casefold() in CONNECTORS or token.text in STOP_WORDS:
                break
            parts.append(token.text)
        elif parts and (
            token.text in ("^", "/", ".", "-", "'")
            or token.kind == "letter"
            or ((token.text in ("{", "}") or token.kind == "number") and "^" in parts[-3:])
        ):
            parts.append(token.text)
        else:
            break
        cursor.next()
    return " ".join(parts).replace(" ^ ", "^").replace(" / ", "/")


def read_modulus(cursor: Cursor, node: Node) -> Node:
    """(mod 7), \\pmod{7}, \\mod 7, mod 7."""
    bracketed = cursor.at("(") and cursor.peek().text in ("mod", "\\mod", "\\bmod")
    if bracketed:
        cursor.next()
    if cursor.at("\\pmod", "\\mod", "\\bmod") or (
        cursor.token.kind in ("word", "text") and cursor.token.text in ("mod", "modulo")
    ):
        cursor.next()
        node = Modular(node, read_sum(cursor))
        if bracketed:
            cursor.expect(")")
    return node


def read_bracket(cursor: Cursor) -> Node:
    """Brackets, sets and matrices, which the arithmetic reader leaves to this module."""
    opening = cursor.token.text
    if opening == "\\begin":
        return read_matrix(cursor)
    cursor.next()
    if opening == "\\{":
        return read_set(cursor)
    with cursor.with_bars(0):
        node = read_list(cursor)
    closing = cursor.token.text
    cursor.expect(*CLOSING[opening])
    if isinstance(node, Group) and node.kind in ("comma", "and"):
        left = "(" if opening == "\\langle" else opening
        return Group("bracket", node.items, left, ")" if closing == "\\rangle" else closing)
    if opening == "[" and not isinstance(node, Group) and closing == "]":
        return Group("bracket", (node,), "[", "]")
    return node


def read_set(cursor: Cursor) -> Node:
    """\\{...\\} behind its opening: a list of elements, or element | condition."""
    if cursor.take("\\}"):
        return Constant("empty")
    with cursor.with_bars(1):
        node = read_list(cursor)
    if cursor.take("|", ":"):
        with cursor.with_bars(0):
            node = Builder(node, read_list(cursor))
    else:
        node = as_set(node) or Group("set", (node,))
    cursor.expect("\\}")
    return node


def read_matrix(cursor: Cursor) -> Node:
    cursor.expect("\\begin")
    name = read_environment(cursor)
    if name == "array" and cursor.at("{"):
        read_enclosed(cursor, "{", "}")
    rows: list[tuple[Node, ...]] = []
    row: list[Node] = []
    while not cursor.at("\\end"):
        row.append(read_value(cursor))
        if cursor.take("\\\\"):
            rows.append(tuple(row))
            row = []
        elif not cursor.take("&") and not cursor.at("\\end"):
            raise Unreadable("matrix")
    if row:
        rows.append(tuple(row))
    cursor.expect("\\end")
    if read_environment(cursor) != name or not rows or len({len(row) for row in rows}) != 1:
        raise Unreadable("matrix")
    return Matrix(tuple(rows))


def read_environment(cursor: Cursor) -> str:
    name = read_enclosed(cursor, "{", "}")[1:-1]
    if name not in MATRICES:
        raise Unreadable(f"the environment {name[:20]}")
    return name
