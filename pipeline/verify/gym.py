"""reasoning_gym: the library's own scorer for an allow-listed family. Only a score of exactly 1.0 is correct.

Partial credit exists in the library ("it is 3" scores 0.14 where 3 is right), so anything less is wrong. Nor
is its full score enough: scorers search an answer for what they want ("17 or 18" is 17), ignore what they
cannot read, and compare too loosely. The answer must also be one answer: of a family with several right ones
written in its form, else the same value or the same numbers and words as the gold.
Reads metadata {"family": name, "entry": the entry with question, answer and metadata}.
"""

import cmath
import math
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

from reasoning_gym import get_score_answer_fn

from pipeline.verify.extract import find_answer
from pipeline.verify.families import ALLOWED, SEVERAL
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong

# what a scorer may raise on an answer of the wrong shape, or on an entry that lacks what it reads
SCORER_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
SIGN = re.compile(r"\s*([+-])\s*")  # with the blanks around it
WHOLE = re.compile(r"(-?\d+)(?:\.0+)?")
REAL = re.compile(r"[+-]?\d+(?:/\d+|(?:\.\d*)?(?:e[+-]?\d{1,3})?)|[+-]?\.\d+", re.IGNORECASE)
NUMBER = re.compile(r"\d{1,300}(?:\.\d{1,300})?", re.ASCII)
# blanks, separators, brackets and quotes are the form of an answer, and so the scorer's to judge
WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[^\s\w.,;:()\[\]{}\"'$°]")


@cache
def scorer_of(family: str) -> Callable[[str, dict[str, Any]], float]:
    """Building the default data set takes milliseconds, scoring microseconds."""
    scorer: Callable[[str, dict[str, Any]], float] = get_score_answer_fn(family)
    return scorer


def verify_reasoning_gym(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    family, entry = metadata.get("family"), metadata.get("entry")
    if family not in ALLOWED or not isinstance(entry, dict) or "answer" not in entry:
        return unverifiable("bad_gold")
    answer = find_answer(response)
    if answer is None:
        return wrong(None, "", "no_answer")
    # inside \boxed, models escape what LaTeX would take as markup
    candidates = dict.fromkeys([answer, plain_text(answer), plain_number(answer)])
    try:
        full = [candidate for candidate in candidates if scorer_of(family)(candidate, entry) == 1.0]
        right = any(is_one_answer(family, candidate, entry["answer"]) for candidate in full)
    except SCORER_ERRORS as error:
        return unverifiable("error", answer, type(error).__name__)
    return (correct if right else wrong)(answer, "reasoning_gym")


def is_one_answer(family: str, answer: str, gold: str) -> bool:
    """Whether an answer with the full score is nothing but that answer."""
    if (form := SEVERAL.get(family)) is not None:
        return form.fullmatch(answer.strip()) is not None
    value = number(answer)
    if value is not None and (wanted := number(gold)) is not None:
        # golds are written as floating point gave them: 947865419.1689999 for 947865419.169
        return value == wanted or abs(complex(value) - complex(wanted)) <= math.ulp(abs(complex(wanted)))
    return words(answer) == words(gold)


def number(text: str) -> Fraction | complex | None:
    """The value of a number, a fraction or a complex number; None for anything else, and nan is no number."""
    text = THOUSANDS.sub("", FRACTION.sub(r"\1/\2", text).strip().strip("$"))
    try:
        if REAL.fullmatch(text):
            return Fraction(text)
        value = complex(SIGN.sub(r"\1", text).casefold().replace("i", "j"))
    except (ValueError, ZeroDivisionError):
        return None
    return value if cmath.isfinite(value) else None


def plain_number(answer: str) -> str:
    """A number as scorers read it: an integer without commas and .0, a fraction with a slash."""
    text = THOUSANDS.sub("", FRACTION.sub(r"\1/\2", answer.replace("−", "-"))).strip()
    whole = WHOLE.fullmatch(text)
    return whole.group(1) if whole else text


def words(text: str) -> Counter[str | Fraction]:
    """The words, numbers and signs of an answer, in any order: their order is the scorer's to judge."""
    found = WORD.findall(FRACTION.sub(r"\1/\2", text).casefold())
    return Counter(Fraction(word) if NUMBER.fullmatch(word) else word for word in found)


def plain_text(answer: str) -> str:
    """The answer without \\text{...} and LaTeX escapes."""
    text = answer.strip().strip("$").strip()
    for command in ("\\text", "\\texttt", "\\mathrm", "\\textbf"):
        if text.startswith(command + "{") and text.endswith("}"):
            text = text[len(command) + 1 : -1]
    for character in "_%&#{}$":
        text = text.replace("\\" + character, character)
    return text
