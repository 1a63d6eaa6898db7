"""Is an answer that has been extracted the same mathematical object as the gold answer?

Layers in order of cost: equal strings; values, exactly or within the precision that a
decimal states ("numeric"), at random points where there are variables ("probing"); math-verify for what those
cannot read or decide, which may accept but not refuse. Two answers are different only where both were read
whole and their values differ; all else that is not equal is unverifiable.
"""

import re
from functools import lru_cache

from pipeline.verify.math.compare import same
from pipeline.verify.math.evaluate import TooBig
from pipeline.verify.math.grammar import read_answer
from pipeline.verify.math.notation import plain, spelled
from pipeline.verify.math.scalars import any_of
from pipeline.verify.math.symbolic import Unparsable, same_symbolic
from pipeline.verify.math.tree import Text, Time, unlabelled, variables_of
from pipeline.verify.math.words import is_wording, meaning
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong

LAYERS = frozenset({"string", "values", "math_verify"})
# blanks that separate nothing: "1 1/2" is not "11/2"
SQUEEZE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
SCRIPT = re.compile(r"(?<=[_^])\{(\w)\}(?!\w)")  # x^{2} is x^2
ROUNDED = re.compile(
    r"\\approx|\\sim|≈|\bapprox|\brounded\b|\babout\b|\bdecimal places?\b|\bnearest\b", re.IGNORECASE
)
SEPARATED = re.compile(r"^[^A-Za-z]*(?:\d,\d|\.\d{3}(?!\d))[^A-Za-z]*$")
LETTER = re.compile(r"^\(?([A-J])\)?$")
OPTION = re.compile(  # (B), B. 12, Option B
    r"^(?:[Oo]ption |[Cc]hoice |[Aa]nswer )?"
    r"(?:\(([A-J])\)(?=\s+(?!(?:or|and)\b)[^\s+*/^=<>-]|$)|([A-J])(?=[).:]\s|\W?$))"
)


def compare_answers(gold: str, answer: str, layers: frozenset[str] = LAYERS) -> Outcome:
    """The verdict on an answer that has been extracted."""
    if "string" in layers and same_strings(gold, answer):
        return correct(answer, "string")
    own = compare_values(gold, answer) if "values" in layers else None
    if own is not None and own.reason not in ("bad_gold", "unparsable_answer"):
        return own
    if "math_verify" not in layers:
        return own or unverifiable("unparsable_answer", answer)
    try:
        verdict = same_symbolic(gold, answer)
    except Unparsable as error:
        return own or unverifiable(str(error), answer, "math_verify")
    if verdict:
        return correct(answer, "math_verify")
    return own or wrong(answer, "math_verify")  # alone it is asked for its opinion


@lru_cache(maxsize=1024)
def same_strings(gold: str, answer: str) -> bool:
    """Up to white space and typesetting; up to case, articles and end marks only where both are words."""
    left, right = spelled(gold), spelled(answer)
    if SQUEEZE.sub("", SCRIPT.sub(r"\1", left)) == SQUEEZE.sub("", SCRIPT.sub(r"\1", right)):
        return True
    left, right = plain(left), plain(right)
    if (letter := LETTER.match(left)) is not None:
        option = OPTION.match(right)
        return option is not None and letter[1] in option.groups()
    return is_wording(left) and is_wording(right) and meaning(left) == meaning(right)


def compare_values(gold: str, answer: str) -> Outcome:
    left, right = spelled(gold), spelled(answer)
    try:
        golds, found = read_answer(gold), read_answer(answer)
        if not golds or not found:
            return unverifiable("unparsable_answer" if golds else "bad_gold", answer, "numeric")
        if isinstance(golds[0], Time) and isinstance(found[0], Time):
            golds, found = golds[:1], found[:1]  # whose other readings are ratios
        rounded = ROUNDED.search(answer) is not None
        verdict = any_of(same(golds[0], other, rounded) for other in found)
        if verdict is False and any(same(one, other, rounded) for one in golds[1:] for other in found):
            verdict = None  # 1,234 may be a list
        if verdict is False and SEPARATED.search(left + " " + right) and digits_of(left) == digits_of(right):
            verdict = None  # 1.234 may be 1,234, and 2,5 may be 2.5
    except (TooBig, RecursionError):
        return unverifiable("too_big", answer, "numeric")
    layer = "probing" if variables_of(unlabelled(golds[0]), unlabelled(found[0])) else "numeric"
    if verdict is not None:
        return (correct if verdict else wrong)(answer, layer)
    if all(isinstance(node, Text) for node in found):
        return unverifiable("unparsable_answer", answer, layer)
    return unverifiable("undecided", answer, layer)


def digits_of(text: str) -> str:
    return re.sub(r"\D", "", text).strip("0")
