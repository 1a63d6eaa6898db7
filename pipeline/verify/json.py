"""json: the answer is a JSON value equal to the gold, after a check against an optional schema.

Object keys are unordered, arrays ordered, 1 and 1.0 equal, true and 1 not. Reads metadata {"schema": ...}
(JSON Schema: type, properties, required, items, enum).
"""

import json
import re
from typing import Any

from pipeline.verify.extract import find_answer
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong

FENCE = re.compile(r"```(?:json)?\s{0,20}\n(.{0,100000}?)```", re.DOTALL)
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def verify_json(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    try:
        wanted = json.loads(gold)
    except ValueError:
        return unverifiable("bad_gold")
    if not response.strip():
        return wrong(None, "", "no_answer")
    text = find_json(response)
    if text is None:
        return unverifiable("unparsable_answer")
    value = json.loads(text)
    if not fits(value, metadata.get("schema", {})):
        return wrong(text, "schema")
    return (correct if same_value(wanted, value) else wrong)(text, "json")


def find_json(response: str) -> str | None:
    """The last fenced block, boxed or stated answer, or whole response that parses as JSON."""
    candidates = [*reversed(FENCE.findall(response[-200_000:])), find_answer(response), response]
    for candidate in candidates:
        try:
            json.loads(candidate or "")
        except (ValueError, RecursionError):
            continue
        return str(candidate)
    return None


def fits(value: object, schema: dict[str, Any]) -> bool:
    """Whether the value meets the parts of JSON Schema that this module reads."""
    if "enum" in schema and not any(same_value(option, value) for option in schema["enum"]):
        return False
    kind = schema.get("type")
    if kind is not None and not is_type(value, kind):
        return False
    if isinstance(value, dict):
        if any(key not in value for key in schema.get("required", [])):
            return False
        properties = schema.get("properties", {})
        return all(fits(value[key], inner) for key, inner in properties.items() if key in value)
    if isinstance(value, list) and "items" in schema:
        return all(fits(item, schema["items"]) for item in value)
    return True


def is_type(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, TYPES[kind])


def same_value(left: object, right: object) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_value(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_value, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return left == right
