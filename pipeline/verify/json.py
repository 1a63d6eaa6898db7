"""json: the answer is a JSON value equal to the gold, after a check against an optional schema.

Object keys are unordered, arrays ordered, 1 and 1.0 equal, true and 1 not; numbers compare exactly. Reads
metadata {"schema": ...} (`pipeline.verify.schema`). What is no JSON (curly quotes, trailing commas, a key
that stands twice) is not repaired: it is unverifiable.
"""

import json
import re
from collections import deque
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from pipeline.verify.cues import CUE, OR
from pipeline.verify.extract import answer_part, is_undone, statements
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong
from pipeline.verify.schema import fits, same_value

FENCE = re.compile(r"```(?:\w{1,12}\b)?\s{0,20}([^`]{0,100000})```")
OPENING = re.compile(r"[\[{]")
CLOSING = {"[": "]", "{": "}"}
# in front of a value: it is not the answer
GIVEN = re.compile(
    r"(?:\b(?:not|never|cannot|input|example|e\.g\.|given|schema|template|wrong|incorrect|instead\sof|rather\sthan)"
    r"|n['’]t)\W{0,6}(?:\w{1,12}\W{1,4}){0,3}$",
    re.IGNORECASE,
)
GIVEN_REACH = 60
MAX_TAIL = 200_000
MAX_TRIES = 50  # openings of JSON that may come to nothing


def verify_json(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    try:
        wanted = DECODER.decode(gold)
    except ValueError:
        return unverifiable("bad_gold")
    part = answer_part(response)[-MAX_TAIL:]
    if not part.strip():
        return wrong(None, "", "no_answer")
    if part.strip()[0] not in "[{" and is_undone(part):  # a value alone may hold any words
        return unverifiable("unparsable_answer")
    for text in candidates(part):
        try:
            value = DECODER.decode(text)
        except (ValueError, RecursionError):
            continue
        if not fits(value, metadata.get("schema", {})):
            return wrong(text, "schema")
        return (correct if same_value(wanted, value) else wrong)(text, "json")
    return unverifiable("unparsable_answer")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError where a key stands twice: which value counts, JSON does not say."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"the exponent of {text[:40]} is too large") from error


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=no_constant, parse_float=decimal)


def candidates(part: str) -> Iterator[str]:
    """What may be the value, the one that counts first. A fence that holds no JSON is not passed over in
    favour of an earlier one."""
    yield part.strip()
    tail = part
    if cue := next(iter(deque(CUE.finditer(part), maxlen=1)), None):
        tail = part[cue.end() :]
    for text in (tail, part):
        if fences := list(FENCE.finditer(text)):
            if not is_given(text, fences[-1].start()):
                yield fences[-1].group(1).strip()
            return
    for stated in statements(part):
        yield stated.text
        if stated.boxed:  # where LaTeX needs braces escaped
            yield re.sub(r"\\([{}_#%&$])", r"\1", stated.text)
            return
    yield from reversed(values_in(tail) or values_in(part))


def is_given(text: str, start: int) -> bool:
    """Whether the words in front say that what starts there is no answer."""
    return GIVEN.search(text, max(0, start - GIVEN_REACH), start) is not None


def values_in(text: str) -> list[str]:
    """The last object or array that stands in running text. Nothing inside of what is no JSON counts."""
    found: list[str] = []
    position = tries = 0
    while tries < MAX_TRIES and (opening := OPENING.search(text, position)):
        try:
            _, end = DECODER.raw_decode(text, opening.start())
            if found and OR.fullmatch(text, position, opening.start()):
                return []  # one value or another
            position = end
            if not is_given(text, opening.start()):
                found = [text[opening.start() : position]]
        except (ValueError, RecursionError):
            end = text.find(CLOSING[opening.group()], opening.end())
            if end < 0:
                return []
            position, tries, found = end + 1, tries + 1, []
    return found if tries < MAX_TRIES else []
