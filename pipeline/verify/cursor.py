"""A cursor over the tokens of an answer, and the readers that need nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from pipeline.verify.notation import Token, read_decimal
from pipeline.verify.tree import Node, Number
from pipeline.verify.words import number_in_words

MAX_DEPTH = 40  # of brackets, groups and arguments


class Unreadable(Exception):
    """The answer is not written in this grammar; its text says what stood in the way."""


@dataclass(slots=True)
class Cursor:
    """`bars` counts the open constructs in which a vertical bar closes or separates."""

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
        token = self.token
        return token.kind in ("symbol", "command") and token.text in texts

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

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")


def read_call(cursor: Cursor) -> str:
    """The argument of f(2): the value of an unknown function is a variable of its own."""
    parts, depth = [], 0
    while cursor.token.kind != "end":
        token = cursor.next()
        parts.append(token.text)
        depth += (token.text == "(") - (token.text == ")")
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


def read_subscript(cursor: Cursor) -> str:
    if not cursor.take("{"):
        return cursor.next().text
    parts = []
    while not cursor.take("}"):
        if cursor.token.kind == "end":
            raise Unreadable("subscript")
        parts.append(cursor.next().text)
    return "".join(parts)


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
