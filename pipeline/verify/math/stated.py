"""verify_math: which of the readings of a response is its answer, and the verdict on that one."""

import re
from typing import Any

from pipeline.verify.cues import alternatives, has_words, is_several, settle
from pipeline.verify.extract import Stated, answer_part, is_cut_off, is_undone, last_boxes, statements
from pipeline.verify.math.layers import LAYERS, compare_answers, same_strings
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong
from pipeline.verify.sentences import WRONG, is_prose, readings, sentence_of
from pipeline.verify.spelling import MONEY, is_bare, is_eastern, respell, system_as_list

WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")
NAMED = re.compile(
    r"^(?:the )?(?:interval|point|(?:ordered )?pair|set|number|ratio|value) (?=[\d(\[{$\\-])"
    r"|^the (?=empty|null)",
    re.IGNORECASE,
)
CHANGED = re.compile(r"(?<=[\d$)}])\s?(?:factorial|choose|modulo|mod)\b")  # behind a number: another number
SENTENCE = 3  # words
SIGN = re.compile(r"[%$°€£¥₹]")


def verify_math(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    """`metadata` may hold {"layers": [names]} to ask only some layers: what an audit does."""
    if not gold.strip():
        return unverifiable("bad_gold")
    layers = frozenset(metadata.get("layers", LAYERS))
    part = answer_part(response)
    if is_undone(part):
        return unverifiable("unparsable_answer")
    found = statements(part)
    first: Outcome | None = None
    for stated in found:
        outcome = compare_stated(system_as_list(gold), stated, layers)
        if outcome.status != "unverifiable":
            return outcome
        first = first or outcome
    last = found[-1].text if found else ""
    if found and (found[-1].cued or len(WORD.findall(last)) < SENTENCE or WRONG.search(last)):
        return first or unverifiable("unparsable_answer")
    if is_cut_off(last_boxes(part)):
        return unverifiable("unparsable_answer")
    return wrong(None, "", "no_answer")  # a sentence that only stands last, and that nothing can be read from


def compare_stated(gold: str, stated: Stated, layers: frozenset[str]) -> Outcome:
    """The verdict on a statement. One that takes back or leaves open is no answer."""
    if not has_words(stated.text) and not stated.last_box:
        return compare_sentence(gold, stated.text, layers)
    as_it_stands = compare_answers(gold, stated.text, layers & {"string"})
    if as_it_stands.status == "correct":
        return as_it_stands
    settled = settle(sentence_of(stated))
    if settled is None:
        return wrong(None, "", "no_answer")
    options = [settled] if is_several(gold) else alternatives(settled)
    outcomes = [compare_sentence(gold, option, layers) for option in options]
    if len(options) > 1 and any(outcome.status != "correct" for outcome in outcomes):
        return wrong(settled, "", "no_answer")
    if outcomes[-1].status != "correct" and stated.last_box and " or " not in stated.text:
        alone = compare_sentence(gold, stated.last_box, layers)
        return alone if alone.status == "correct" else outcomes[-1]
    return outcomes[-1]


def compare_sentence(gold: str, sentence: str, layers: frozenset[str]) -> Outcome:
    """The verdict on the first reading that can be compared."""
    if "string" in layers and same_strings(gold, sentence):
        return correct(sentence, "string")
    first: Outcome | None = None
    for reading in readings(respell(sentence, gold)):
        signed = SIGN.search(gold) and not (SIGN.search(reading.text) or MONEY.search(sentence))
        if reading.partial and (signed or not is_bare(gold)):
            continue  # the words left out may be a unit: 20 apples are not 20%
        text = NAMED.sub("", respell(reading.text, gold))
        own = layers
        unread = any(pattern.search(text) for pattern in (WRONG, CHANGED))
        if unread or is_prose(text) or (is_eastern(text) and not is_eastern(gold)):
            own = layers & {"string"}
        elif len(WORD.findall(text)) >= SENTENCE:
            own = layers - {"math_verify"}  # it would multiply the letters
        outcome = compare_answers(gold, text, own)
        if outcome.status == "correct" or (outcome.status == "wrong" and reading.decides):
            return outcome
        first = first or (outcome if outcome.status == "unverifiable" else None)
    return first or unverifiable("unparsable_answer", sentence)
