"""choice: one of the options A to J, by letter (with or without parentheses) or by the text of the option.

Reads metadata {"options": [text, ...]} or {"options": {letter: text}} where options may be named by text.
"""

import re
from typing import Any

from pipeline.verify.extract import find_answer
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong
from pipeline.verify.text import normalise_text

LETTERS = "ABCDEFGHIJ"
LEADING = re.compile(
    r"^(?:option|choice|answer)?\s{0,5}[(\[]?\s{0,5}([a-j])\s{0,5}(?:[)\]]|[.:](?=\s|$)|$)\s{0,5}(.{0,500})$",
    re.DOTALL,
)
LAST_LETTER = re.compile(r"(?:^|[\s(\[*])\(?([A-J])\)?(?=[\s.,;:)\]*]|$)")


def verify_choice(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    options = read_options(metadata.get("options"))
    wanted = letter_of(gold, options)
    if wanted is None:
        return unverifiable("bad_gold")
    answer = find_answer(response)
    letter = None if answer is None else letter_of(answer, options)
    if letter is None and (found := LAST_LETTER.findall(response[-200:])):
        answer = letter = found[-1]
    if answer is None:
        return wrong(None, "", "no_answer")
    if letter is None:
        return unverifiable("unparsable_answer", answer)
    return (correct if letter == wanted else wrong)(answer, "string")


def read_options(options: object) -> dict[str, str]:
    """Letter -> normalised text."""
    if isinstance(options, list):
        options = dict(zip(LETTERS, options, strict=False))
    if not isinstance(options, dict):
        return {}
    return {str(letter).upper(): normalise_text(str(text)) for letter, text in options.items()}


def letter_of(answer: str, options: dict[str, str]) -> str | None:
    """None where the text names no option, or a letter and the text of another option."""
    text = normalise_text(answer)
    by_text = [letter for letter, option in options.items() if option == text]
    if len(by_text) == 1:
        return by_text[0]
    match = LEADING.match(text)
    if match is None:
        return None
    letter, rest = match.group(1).upper(), normalise_text(match.group(2))
    others = [other for other, option in options.items() if option == rest and other != letter]
    if (options and letter not in options) or (others and options.get(letter) != rest):
        return None
    return letter
