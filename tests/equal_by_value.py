"""Whether two answers in LaTeX are equal by value: a second opinion for the fuzz, by sympy and in a worker of its own.

It shares nothing with the verifiers' own readers. What stands around arithmetic (commas, brackets, relations, words,
units) must be the same in both; the arithmetic between is evaluated at three points with 30 digits. It reads little and
says None to all else: a person decides that.
"""

import multiprocessing
import re
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sympy

AROUND = re.compile(
    r"(\\begin\{\w+\}|\\end\{\w+\}|\\\\|&|,|\\cup|\\cap|\\text\{[^{}]*\}|\^\{?\\circ\}?|\\%|\\\$|\\\{|\\\}"
    r"|=|<|>|\\leq?(?![a-z])|\\geq?(?![a-z])|\\neq?(?![a-z])|\\in(?![a-z])|:)"
)
ARITHMETIC = re.compile(
    r"(?:\\(?:frac|sqrt|pi|cdot|times|infty|theta|sin|cos|tan|cot|sec|csc|log|ln|arcsin|arccos|arctan)(?![A-Za-z])"
    r"|\d+(?:\.\d+)?|\.\d+|[A-Za-z]|[-+*/^!(){}|\[\] ])*"
)
SPELLED = {
    "\\left": "",
    "\\right": "",
    "\\!": "",
    "\\,": " ",
    "\\;": " ",
    "\\ ": " ",
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
}
SPELLING = re.compile(r"(?<!\\)(?:\\left(?![a-z])|\\right(?![a-z])|\\[!,; ]|\\[dt]frac)")
SHORT_FRACTION = re.compile(r"\\frac\s*(\d|\{[^{}]*\})\s*(\d|\{[^{}]*\})")
SHORT_ROOT = re.compile(r"\\sqrt\s*(\d)")
BASED = re.compile(r"(\d+)_\{?(\d+)\}?")
LONG_POWER = re.compile(r"\^(\d\d+)")  # x^10, as it is meant
DEADLINE_SECONDS = 10.0
NUM_POINTS = 3
NOISE = 1e-20


class Unreadable(Exception):
    """Not in the little that is read here."""


def spelled(text: str) -> str:
    text = SPELLING.sub(lambda match: SPELLED[match.group()], text)
    text = BASED.sub(based, text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = SHORT_FRACTION.sub(
        lambda match: "\\frac" + "".join(f"{{{part.strip('{}')}}}" for part in match.groups()), text
    )
    return LONG_POWER.sub(r"^{\1}", text)


def braced(text: str) -> str:
    """With the braces at its end that it needs: they are markup, and one more or less changes no value."""
    depth = len(re.findall(r"(?<!\\)\{", text)) - len(re.findall(r"(?<!\\)\}", text))
    return text + "}" * depth if depth >= 0 else re.sub(rf"\}}{{{-depth}}}$", "", text)


def based(match: re.Match[str]) -> str:
    """141_{13} in decimal; as it is where it has no value."""
    digits, base = match.group(1), int(match.group(2))
    return (
        str(int(digits, base))
        if 2 <= base <= 10 and all(int(digit) < base for digit in digits)
        else match.group()
    )


def parts_of(text: str) -> tuple[list[str], list[str]]:
    """What stands around the arithmetic, and the arithmetic. A bracket without its partner stands around."""
    around: list[str] = []
    chunks: list[str] = []
    for part in AROUND.split(spelled(text)):
        if AROUND.fullmatch(part):
            around.append("degrees" if "circ" in part else part.strip())
            continue
        chunk = part.strip()
        while chunk[:1] in ("(", "[") and not balanced(chunk):
            around.append(chunk[0])
            chunk = chunk[1:].strip()
        closing = []
        while chunk[-1:] in (")", "]") and not balanced(chunk):
            closing.append(chunk[-1])
            chunk = chunk[:-1].strip()
        if chunk:
            chunks.append(chunk)
            around.append("#")
        around += closing
    return around, chunks


def balanced(text: str) -> bool:
    closed_by, open_ones = {")": "(", "]": "[", "}": "{"}, []
    for character in text:
        if character in "([{":
            open_ones.append(character)
        elif character in closed_by and (not open_ones or open_ones.pop() != closed_by[character]):
            return False
    return not open_ones


def same_value(gold: str, answer: str) -> bool | None:
    if gold != answer and gold.casefold() == answer.casefold():
        return False  # latex2sympy does not tell x from X
    (around, chunks), (other_around, others) = parts_of(gold), parts_of(braced(answer))
    if around != other_around:
        return None
    try:
        values, other_values = [value_of(chunk) for chunk in chunks], [value_of(chunk) for chunk in others]
    except Unreadable:
        return None
    if around.count("degrees") == len(chunks):  # each of them is an angle
        around = [part for part in around if part != "degrees"]
    if set(around) <= {"#", ","} or {"\\{", "\\}"} <= set(around) <= {"#", ",", "\\{", "\\}"}:  # no order
        values, other_values = sorted(values), sorted(other_values)
    return values == other_values


def value_of(chunk: str) -> tuple[str, ...]:
    """What the arithmetic is at each point. Raises Unreadable."""
    from latex2sympy2_extended import latex2sympy

    if not ARITHMETIC.fullmatch(chunk) or not balanced(chunk):
        raise Unreadable(chunk)
    try:
        expression = latex2sympy(chunk)
        return tuple(digits_at(expression, point) for point in range(NUM_POINTS))
    except Exception as error:  # latex2sympy raises this class itself; what it cannot read has no value here
        raise Unreadable(chunk) from error


def digits_at(expression: "sympy.Expr", point: int) -> str:
    """20 digits of the real and imaginary part; a part that is 1e-20 of the other is noise."""
    import sympy

    known = {"i": sympy.I, "e": sympy.E}
    drawn = {
        name: known.get(str(name), sympy.Rational(sum(ord(letter) for letter in str(name)) + 31 * point, 97))
        for name in expression.free_symbols
    }
    value = sympy.N(expression.subs(drawn), 30)
    if value in (sympy.oo, -sympy.oo):
        return str(value)
    if not (value.is_number and value.is_finite):
        raise Unreadable(str(expression)[:80])
    parts = value.as_real_imag()
    largest = max(abs(part) for part in parts)
    return " ".join("0" if abs(part) <= largest * NOISE else str(sympy.N(part, 20)) for part in parts)


def answer_pairs(connection: Connection) -> None:
    while True:
        gold, answer = connection.recv()
        connection.send(same_value(gold, answer))


def all_same(pairs: list[tuple[str, str]]) -> list[bool | None]:
    """The opinion on each pair; None, too, where it took longer than the deadline: that worker is killed."""
    context = multiprocessing.get_context("spawn")
    opinions: list[bool | None] = []
    worker = None
    try:
        for pair in pairs:
            if worker is None:
                ours, theirs = context.Pipe()
                worker = context.Process(target=answer_pairs, args=(theirs,), daemon=True)
                worker.start()
            ours.send(pair)
            if ours.poll(DEADLINE_SECONDS if opinions else 60.0):
                opinions.append(ours.recv())
                continue
            opinions.append(None)
            worker.kill()
            worker = None
    finally:
        if worker is not None:
            worker.kill()
    return opinions
