"""math: is the answer of a response the same mathematical object as the gold answer?

Layers in order of cost: equal strings; a special notation (options, times of day); values, exactly or within
the precision that a decimal states ("numeric"), at random points where there are variables ("probing");
math-verify for what those cannot read or decide. A layer that can tell ends it; an answer that no layer can
read is unverifiable, not wrong.
"""

import re
from typing import Any

from pipeline.verify.extract import answers, is_prose, last_boxes
from pipeline.verify.math.compare import same
from pipeline.verify.math.evaluate import TooBig
from pipeline.verify.math.grammar import read_answer
from pipeline.verify.math.notation import clean, plain, strip_marks
from pipeline.verify.math.scalars import any_of
from pipeline.verify.math.symbolic import Unparsable, same_symbolic
from pipeline.verify.math.tree import Node, Text, unlabelled, variables_of
from pipeline.verify.math.words import meaning
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong

LAYERS = frozenset({"string", "values", "math_verify"})
SPELLED = re.compile(r"[^\W\d_]{2}")
# blanks that separate nothing: "1 1/2" is not "11/2"
SQUEEZE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
ROUNDED = re.compile(
    r"\\approx|\\sim|≈|\bapprox|\brounded\b|\babout\b|\bdecimal places?\b|\bnearest\b", re.IGNORECASE
)
NOTE = re.compile(
    r"(?<=[^\s,(])(?:\s|,\s?)\(?(?:rounded|correct|to (?:the nearest|\w+ (?:decimal|significant))"
    r"|approximately|approx\.?)\b[^()]{0,60}\)?$",
    re.IGNORECASE,
)
LETTER = re.compile(r"^(?:(?i:option|choice|answer choice|answer))?\s?\(?([A-J])\)?[.:]?$")
LETTERED = re.compile(
    r"^(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s)?(?:\(([A-J])\)|([A-J])\s?[.):]|(?:[Oo]ption|[Cc]hoice)\s([A-J])[,:]?)\s?(.{1,300})$"
)
TIME = re.compile(
    r"^(\d{1,2})(?:[:.](\d\d))?\s?(?:([ap])\.?\s?m\.?|o'?clock)?(?:\s?in the (morning|afternoon|evening))?$",
    re.I,
)


def verify_math(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    """`metadata` may hold {"layers": [names]} to ask only some layers: what an audit does."""
    if not gold.strip():
        return unverifiable("bad_gold")
    layers = frozenset(metadata.get("layers", LAYERS))
    if boxes := last_boxes(response):
        return compare_boxes(gold, boxes, layers)
    return compare_candidates(gold, response, layers) or wrong(None, "", "no_answer")


def compare_candidates(gold: str, text: str, layers: frozenset[str]) -> Outcome | None:
    """The verdict on the first reading of a text without boxes that can be compared; None without one."""
    first: Outcome | None = None
    for candidate in answers(text):
        own = layers & {"string"} if is_prose(candidate) else layers
        outcome = compare_answers(gold, candidate, own)
        if outcome.status != "unverifiable":
            return outcome
        first = first or outcome
    return first


def compare_boxes(gold: str, boxes: list[str], layers: frozenset[str]) -> Outcome:
    """The last box counts; with boxes right before it, it may be the last value of several."""
    outcome = compare_answers(gold, boxes[-1], layers)
    if outcome.status != "correct" and is_prose(boxes[-1]):  # a sentence in the box
        outcome = compare_candidates(gold, boxes[-1], layers) or outcome
    if outcome.status == "correct" or len(boxes) == 1:
        return outcome
    joined = compare_answers(gold, ", ".join(boxes), layers)
    return joined if joined.status == "correct" else outcome


def compare_answers(gold: str, answer: str, layers: frozenset[str] = LAYERS) -> Outcome:
    """The verdict on an answer that has been extracted."""
    if "string" in layers and (outcome := compare_strings(gold, answer)) is not None:
        return outcome
    if "values" in layers and (outcome := compare_values(gold, answer)) is not None:
        return outcome
    if "math_verify" not in layers:
        return unverifiable("unparsable_answer", answer)
    try:
        verdict = same_symbolic(gold, answer)
    except Unparsable as error:
        return unverifiable(str(error), answer, "math_verify")
    return (correct if verdict else wrong)(answer, "math_verify")


def compare_strings(gold: str, answer: str) -> Outcome | None:
    left, right = strip_marks(clean(gold)), strip_marks(clean(answer))
    if SQUEEZE.sub("", left) == SQUEEZE.sub("", right):
        return correct(answer, "string")
    if SPELLED.search(right) and meaning(plain(left)) == meaning(plain(right)):
        return correct(answer, "string")
    return None


def compare_values(gold: str, answer: str) -> Outcome | None:
    """None where the two cannot be read or compared here."""
    left, right = strip_marks(clean(gold)), strip_marks(clean(answer))
    special = same_special(plain(left), plain(right))
    if special is not None:
        return (correct if special else wrong)(answer, "special")
    note = NOTE.search(right) is not None
    golds = read_answer(gold)
    found = read_answer(NOTE.sub("", right) if note else answer)
    rounded = note or ROUNDED.search(answer) is not None
    try:
        verdict, layer = same_readings(golds, found, rounded)
    except (TooBig, RecursionError):
        return unverifiable("too_big", answer, "numeric")
    if verdict is not None:
        return (correct if verdict else wrong)(answer, layer)
    # plain words where the gold is mathematics: math-verify would multiply the letters
    if golds and found and all(map(is_text, found)) and not any(map(is_text, golds)):
        return unverifiable("unparsable_answer", answer, "numeric")
    return None


def is_text(node: Node) -> bool:
    return isinstance(node, Text)


def same_readings(golds: tuple[Node, ...], found: tuple[Node, ...], rounded: bool) -> tuple[bool | None, str]:
    """True where any reading of the one equals any of the other; False where all pairs differ."""
    if not golds or not found:
        return None, ""
    verdict = any_of(same(left, right, rounded) for left in golds for right in found)
    return verdict, layer_of(golds[0], found[0])


def layer_of(gold: Node, answer: Node) -> str:
    """Whether values depend on variables: "x = 5" is only named."""
    return "probing" if variables_of(unlabelled(gold), unlabelled(answer)) else "numeric"


def same_special(gold: str, answer: str) -> bool | None:
    """On plain text; None where neither is such a notation."""
    options = same_option(gold, answer)
    return same_time(gold, answer) if options is None else options


def same_option(gold: str, answer: str) -> bool | None:
    """(B) against B, B. 12, (B) 12, and 12 where the gold repeats it."""
    gold_letter, gold_text = read_option(gold)
    answer_letter, answer_text = read_option(answer)
    if gold_letter is None:
        named = answer_letter is not None and answer_text and read_answer(gold)
        return True if named and same_text(gold, answer_text) else None
    if answer_letter is None:
        if gold_text:
            return True if same_text(gold_text, answer) else None
        # a gold (B) is an option; a bare B may be a variable, which other layers compare
        return False if gold.startswith("(") else None
    if gold_letter != answer_letter:
        return False
    return not gold_text or not answer_text or same_text(gold_text, answer_text)


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
    return any(same(a, b) for a in read_answer(left) for b in read_answer(right))


def same_time(gold: str, answer: str) -> bool | None:
    left, right = read_time(gold), read_time(answer)
    if left is None or right is None or not (left[1] or right[1]):
        return None
    return left[0] == right[0] if left[1] and right[1] else left[0] % 720 == right[0] % 720


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
