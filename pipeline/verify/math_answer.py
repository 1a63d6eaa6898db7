"""math: is the answer of a response the same mathematical object as the gold answer?

Layers in order of cost: string equality, exact numbers, math-verify.
"""

from fractions import Fraction
from typing import Any

from pipeline.verify.extract import find_answer, last_number
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong
from pipeline.verify.symbolic import Unparsable, same_symbolic


def exact(text: str) -> Fraction | None:
    try:
        return Fraction(text.replace(",", "").replace("$", "").replace("\\", "").replace("!", "").strip())
    except (ValueError, ZeroDivisionError):
        return None


def verify_math(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    answer = find_answer(response) or last_number(response)
    if answer is None:
        return wrong(None, "", "no_answer")
    if answer.strip() == gold.strip():
        return correct(answer, "string")
    left, right = exact(gold), exact(answer)
    if left is not None and right is not None:
        return correct(answer, "numeric") if left == right else wrong(answer, "numeric")
    try:
        same = same_symbolic(gold, answer)
    except Unparsable as error:
        return unverifiable(str(error), answer, "math_verify")
    return correct(answer, "math_verify") if same else wrong(answer, "math_verify")
