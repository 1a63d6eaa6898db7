"""Reads an answer into trees, best first: lists, relations, sets, intervals, matrices, ratios, times.

`read_answer` gives every sensible reading (1,234 is a number or a list) or none."""

import re
from functools import lru_cache

from pipeline.verify.math.matrices import determinant
from pipeline.verify.math.notation import (
    COMMA_THOUSANDS,
    join_thousands,
    plain,
    rephrase,
    spelled,
    tokenize,
)
from pipeline.verify.math.terms import STOP_WORDS, Cursor, Unreadable, as_set, read_enclosed, read_sum
from pipeline.verify.math.tree import (
    Apply,
    Builder,
    Constant,
    Group,
    Matrix,
    Node,
    Number,
    Quantity,
    Relation,
    Text,
    Time,
    Variable,
    walk,
)
from pipeline.verify.math.units import read_unit
from pipeline.verify.math.words import meaning, number_in_words

MAX_LENGTH = 20_000  # characters of an answer; longer ones are compared as text only
MAX_ITEMS = 3_000
RELATIONS = {
    "=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\le": "<=", "\\ge": ">=",
    "\\ne": "!=", "\\in": "in", "\\equiv": "equiv", "\\approx": "approx", "\\sim": "approx",
}  # fmt: skip
CONNECTORS = {"or": "or", "and": "and", "\\lor": "or", "\\land": "and", "&": "and",
              ",": "comma", ";": "comma", "\\\\": "comma"}  # fmt: skip
SET_OPERATORS = {"\\cup": "cup", "u": "cup", "union": "cup", "\\cap": "cap", "intersect": "cap",
                 "intersection": "cap", "\\setminus": "setminus"}  # fmt: skip
HEDGES = frozenset(
    "approximately about exactly roughly approx around only just simply precisely".split()  # noqa: SIM905
)
CLOSING = {"(": (")", "]"), "[": ("]", ")"), "\\langle": ("\\rangle",), "\\{": ("\\}",)}
MATRICES = frozenset({"pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "smallmatrix", "array", "cases"})
TIME = re.compile(r"^(?:at )?(\d{1,2})(?:(:)(\d\d)(?::00)?)?\s?(?:([ap])\.?\s?m\.?)?$", re.IGNORECASE)
DATE = re.compile(r"^\d{4}-\d\d-\d\d$")
# (a) 1, (B) 12, 0x1F, AF_{16}: not read
UNREAD = re.compile(
    r"^\(?(?:[a-hA-J]|i{1,3}|1)\)(?:\s+[^\s+*/^=<>-]|\d)|^[a-hA-J]:\s"
    r"|^-?0[xXbBoO][0-9a-fA-F]+$|^\(?-?[0-9A-Z.]{2,200}\)?\s?_\s?\{?\s?(?:\d+|\\text\{\w+\})\s?\}?$"
)
# words behind a value that are no unit: 5 factorial, 7 percent of x
OPERATION = re.compile(
    r"\b(?:half|halves|below|inverse|reciprocal|not|permille|basis|out of)\b"
    r"|\b(?:factorial|choose|modulo|mod|plus|minus|times|divided|over|than|of (?:(?!a\b)[A-Za-z]\b|\d))|\bof$"
)
PADDED = re.compile(r",0\d")
NOON = {"noon": Time(720, "p"), "midnight": Time(0, "a")}


@lru_cache(maxsize=4096)
def read_answer(text: str) -> tuple[Node, ...]:
    """The readings of an answer; none where the grammar does not hold."""
    if len(text) > MAX_LENGTH or UNREAD.match(text) or DATE.match(text.strip()):
        return ()
    cleaned = spelled(text)
    if len(cleaned) > MAX_LENGTH:
        return ()
    special = read_special(plain(cleaned))
    if special is not None and not isinstance(special, Time):
        return (special,)
    readings: list[Node] = [] if special is None else [special]
    with_commas = rephrase(cleaned)
    joined = COMMA_THOUSANDS.sub(join_thousands, with_commas)
    listed = joined if PADDED.search(with_commas) else with_commas  # 455,000 is no list
    for candidate in dict.fromkeys((joined, listed)):
        try:
            node = read_text(candidate)
        except Unreadable:
            continue
        if candidate != joined and isinstance(node, Group) and node.kind == "comma":
            node = Group("bracket", node.items, "(", ")")  # 1,234 as a list: its items do not change places
        if special is None or cleaned.upper() == cleaned.lower():  # a time may be a ratio
            readings.append(node)
    return tuple(readings)


def read_special(text: str) -> Node | None:
    """Whole answers with a notation of their own: times, words with a fixed meaning."""
    if (time := read_time(text)) is not None:
        return time
    words = meaning(text)
    if words == "no solution":
        return Constant("empty")
    known = words in ("undefined", "infinitely many", "yes", "no")
    # "cat" is no product
    word = len(words) == 3 and words.isalpha() and set(words) & set("aeiou") and list(words) != sorted(words)
    return Text(words) if known or (word and number_in_words(words) is None) else None


def read_time(text: str) -> Time | None:
    """4:30 p.m., 16:30, 4 pm, noon. What could be a number (4, 4.30) needs more than digits."""
    if text.casefold() in NOON:
        return NOON[text.casefold()]
    match = TIME.match(text)
    if match is None or (match[2] is None and match[4] is None):
        return None
    hour, minute, half = int(match[1]), int(match[3] or 0), (match[4] or "").lower()
    if hour > 24 or minute > 59 or (half and hour > 12):
        return None
    if half:
        return Time((hour % 12 + (12 if half == "p" else 0)) * 60 + minute, half)
    return Time(hour % 24 * 60 + minute, "24" if hour > 12 or hour == 0 else "")


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
    if cursor.take("\\ldots"):
        return Constant("ellipsis")
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


def read_side(cursor: Cursor) -> Node:
    """Sets joined by union, intersection or difference; a ratio a:b as a/b, a:b:c as (a/b, a/c); a value."""
    node = read_value(cursor)
    ratios: list[Node] = []
    while (cursor.at(":") and not cursor.bars) or (
        cursor.token.text == "to" and cursor.peek().kind == "number"
    ):
        cursor.next()
        ratios.append(Apply("div", (node, read_value(cursor))))
    if ratios:
        return ratios[0] if len(ratios) == 1 else Group("bracket", tuple(ratios), "(", ")")
    while (name := SET_OPERATORS.get(cursor.token.text.casefold())) is not None:
        cursor.next()
        node = Apply(name, (node, read_value(cursor)))
    return node


def read_value(cursor: Cursor) -> Node:
    """Arithmetic with a unit phrase and a modulus behind it; else words."""
    start = cursor.position
    if cursor.token.kind == "text" and cursor.peek().kind == "number":  # \\text{ watts} 20
        unit = read_unit(cursor.token.text)
        if unit.dimension:
            cursor.next()
            return Quantity(read_sum(cursor), unit)
    try:
        node = read_sum(cursor)
    except Unreadable:
        cursor.position = start
        words = read_words(cursor)
        if words is None:
            raise
        return words
    phrase = read_phrase(cursor)
    if OPERATION.search(phrase):
        raise Unreadable(f"an operation in words: {phrase[:20]!r}")
    if (
        phrase
        and not read_unit(phrase).dimension
        and not any(isinstance(part, Number) for part in walk(node))
    ):
        return Text(" ".join(token.text for token in cursor.tokens[start : cursor.position]))  # "I give up"
    if phrase and not isinstance(node, Quantity):
        node = with_smaller_unit(cursor, Quantity(node, read_unit(phrase)))
    return node


def with_smaller_unit(cursor: Cursor, quantity: Quantity) -> Quantity:
    """2 hours 30 minutes, 5 dollars and 50 cents: one quantity."""
    start = cursor.position
    while cursor.token.text in ("and", ","):
        cursor.next()
    if cursor.token.kind == "number" and quantity.unit.size and quantity.unit.dimension:
        second = read_value(cursor)
        if isinstance(second, Quantity) and second.unit.dimension == quantity.unit.dimension:
            factor = second.unit.size / quantity.unit.size
            if factor < 1:
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
            or (token.text == "*" and cursor.peek().kind in ("text", "word"))
            or token.kind == "letter"
            or ((token.text in ("{", "}") or token.kind == "number") and "^" in parts[-3:])
        ):
            parts.append(token.text)
        else:
            break
        cursor.next()
    return " ".join(parts).replace(" ^ ", "^").replace(" / ", "/").replace(" * ", " ")


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
        if len(node.items) > 2 and (left, closing) in (("(", "]"), ("[", ")")):
            raise Unreadable("three values between the ends of an interval")
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
        while name == "cases" and cursor.token.text in ("if", "for", "when", "where"):
            cursor.next()
        row.append(read_item(cursor) if name == "cases" else read_value(cursor))
        while name == "cases" and cursor.take(",", "."):
            pass
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
    if name == "cases":
        cases = [Group("bracket", row, "(", ")") if len(row) > 1 else row[0] for row in rows]
        return Group("comma" if len(rows[0]) == 1 else "cases", tuple(cases))
    if name == "vmatrix" and (value := determinant(tuple(rows))) is not None:
        return value
    return Matrix(tuple(rows))


def read_environment(cursor: Cursor) -> str:
    name = read_enclosed(cursor, "{", "}")[1:-1]
    if name not in MATRICES:
        raise Unreadable(f"the environment {name[:20]}")
    return name
