"""math: is the answer of a response the same mathematical object as the gold answer?

Layers in order of cost: equal strings; a special notation (choices, times of day); values, exactly or within
the precision that a decimal states ("numeric"), at random points where there are variables ("probing");
math-verify for what those cannot read or decide. A layer that can tell ends it; an answer that no layer can
read is unverifiable, not wrong.
"""

import re
from typing import Any

from pipeline.verify.compare import same
from pipeline.verify.evaluate import TooBig
from pipeline.verify.extract import answers, is_prose, last_boxes
from pipeline.verify.grammar import read_answer
from pipeline.verify.labels import assignment
from pipeline.verify.notation import clean, plain
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong
from pipeline.verify.phrases import strip_marks
from pipeline.verify.residues import variables_of_all
from pipeline.verify.special import same_special
from pipeline.verify.symbolic import Unparsable, same_symbolic
from pipeline.verify.tree import Node, Relation, Text
from pipeline.verify.words import meaning

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


def verify_math(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    """`metadata` may hold {"layers": [names]} to ask only some layers: what an audit does."""
    if not gold.strip():
        return unverifiable("bad_gold")
    layers = frozenset(metadata.get("layers", LAYERS))
    if boxes := last_boxes(response):
        return compare_boxes(gold, boxes, layers)
    first: Outcome | None = None
    for candidate in answers(response):
        own = layers & {"string"} if is_prose(candidate) else layers
        outcome = compare_answers(gold, candidate, own)
        if outcome.status != "unverifiable":
            return outcome
        first = first or outcome
    return first or wrong(None, "", "no_answer")


def compare_boxes(gold: str, boxes: list[str], layers: frozenset[str]) -> Outcome:
    """The last box counts; with boxes right before it, it may be the last value of several."""
    outcome = compare_answers(gold, boxes[-1], layers)
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
    if words_against_mathematics(golds, found):
        return unverifiable("unparsable_answer", answer, "numeric")
    return None


def same_readings(golds: tuple[Node, ...], found: tuple[Node, ...], rounded: bool) -> tuple[bool | None, str]:
    """True where any reading of the one equals any of the other; False where all pairs differ."""
    verdicts: list[bool | None] = []
    for left in golds:
        for right in found:
            verdict = same(left, right, rounded)
            if verdict:
                return True, layer_of(left, right)
            verdicts.append(verdict)
    if not verdicts or None in verdicts:
        return None, ""
    return False, layer_of(golds[0], found[0])


def layer_of(gold: Node, answer: Node) -> str:
    return "probing" if free_variables(gold) or free_variables(answer) else "numeric"


def free_variables(node: Node) -> bool:
    """Whether values depend on variables: "x = 5" is only named."""
    named = assignment(node) if isinstance(node, Relation) else None
    return bool(variables_of_all(node if named is None else named.value))


def words_against_mathematics(golds: tuple[Node, ...], found: tuple[Node, ...]) -> bool:
    """The answer is plain words and the gold is not: math-verify would multiply the letters."""
    if not golds or not found:
        return False
    return all(isinstance(node, Text) for node in found) and not any(isinstance(node, Text) for node in golds)
