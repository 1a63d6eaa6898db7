"""reasoning_gym: the library's own scorer for an allow-listed family. Only a score of exactly 1.0 is correct.

Partial credit exists in the library ("it is 3" scores 0.14 where 3 is right), so anything less is wrong.
Reads metadata {"family": name, "entry": the entry with question, answer and metadata}.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from reasoning_gym import get_score_answer_fn

from pipeline.verify.extract import find_answer
from pipeline.verify.families import ALLOWED
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong

# what a scorer may raise on an answer of the wrong shape, or on an entry that lacks what it reads
SCORER_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


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
    candidates = dict.fromkeys([answer, plain_text(answer)])
    try:
        scores = [scorer_of(family)(candidate, entry) for candidate in candidates]
    except SCORER_ERRORS as error:
        return unverifiable("error", answer, type(error).__name__)
    if any(score == 1.0 for score in scores):
        return correct(answer, "reasoning_gym")
    return wrong(answer, "reasoning_gym")


def plain_text(answer: str) -> str:
    """The answer without \\text{...} and LaTeX escapes."""
    text = answer.strip().strip("$").strip()
    for command in ("\\text", "\\texttt", "\\mathrm", "\\textbf"):
        if text.startswith(command + "{") and text.endswith("}"):
            text = text[len(command) + 1 : -1]
    for character in "_%&#{}$":
        text = text.replace("\\" + character, character)
    return text
