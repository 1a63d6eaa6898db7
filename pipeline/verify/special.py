"""Whole answers with a notation of their own: options that are named by letter, and times of day."""

import re

from pipeline.verify.grammar import read_answer
from pipeline.verify.words import meaning

LETTER = re.compile(r"^(?:(?i:option|choice|answer choice|answer))?\s?\(?([A-J])\)?[.:]?$")
LETTERED = re.compile(
    r"^(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s)?(?:\(([A-J])\)|([A-J])\s?[.):]|(?:[Oo]ption|[Cc]hoice)\s([A-J])[,:]?)\s?(.{1,300})$"
)
TIME = re.compile(
    r"^(\d{1,2})(?:[:.](\d\d))?\s?(?:([ap])\.?\s?m\.?|o'?clock)?(?:\s?in the (morning|afternoon|evening))?$",
    re.I,
)


def same_special(gold: str, answer: str) -> bool | None:
    """On plain text; None where neither is such a notation."""
    options = same_option(gold, answer)
    return same_time(gold, answer) if options is None else options


def same_option(gold: str, answer: str) -> bool | None:
    """(B) against B, B. 12, (B) 12, and 12 where the gold repeats it."""
    gold_letter, gold_text = read_option(gold)
    answer_letter, answer_text = read_option(answer)
    if gold_letter is None:
        if answer_letter is None or not answer_text or not is_value(gold):
            return None
        return True if same_text(gold, answer_text) else None
    if answer_letter is None:
        return (
            True
            if gold_text and same_text(gold_text, answer)
            else (None if gold_text else single_letter(gold, answer))
        )
    if gold_letter != answer_letter:
        return False
    return not gold_text or not answer_text or same_text(gold_text, answer_text)


def single_letter(gold: str, answer: str) -> bool | None:
    """A gold (B) is an option; a bare B may be a variable, which other layers compare."""
    return False if gold.startswith("(") else None


def is_value(gold: str) -> bool:
    return bool(read_answer(gold))


def read_option(text: str) -> tuple[str | None, str]:
    """The letter and what is written behind it."""
    text = text.strip()
    if match := LETTER.match(text):
        return match.group(1), ""
    if match := LETTERED.match(text):
        letter = match.group(1) or match.group(2) or match.group(3)
        return letter, match.group(4).strip(" ~:")
    return None, ""


def same_text(left: str, right: str) -> bool:
    if meaning(left) == meaning(right):
        return True
    from pipeline.verify.compare import same

    return any(same(a, b) for a in read_answer(left) for b in read_answer(right))


def same_time(gold: str, answer: str) -> bool | None:
    left, right = read_time(gold), read_time(answer)
    if left is None or right is None:
        return None
    if left[1] and right[1]:
        return left[0] == right[0]
    if not left[1] and not right[1]:
        return None
    return left[0] % 720 == right[0] % 720 or (left[0] == right[0])


def read_time(text: str) -> tuple[int, bool] | None:
    """Minutes since midnight, and whether the half of the day is stated."""
    match = TIME.match(text.strip())
    if match is None or (match.group(2) is None and match.group(3) is None):
        return None
    hour, minute = int(match.group(1)), int(match.group(2) or 0)
    half = (match.group(3) or "").lower()
    if match.group(4):
        half = "a" if match.group(4).lower() == "morning" else "p"
    if hour > 24 or minute > 59:
        return None
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    return hour * 60 + minute, bool(half) or hour > 12
