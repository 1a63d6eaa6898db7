"""The part of JSON Schema that a json problem may state: type, properties, required, items, enum.

Light: `pipeline.verify.table` checks a problem's schema with it on the host. The library jsonschema was
rejected: it follows references, and its patterns take unbounded time on an answer.
"""

from decimal import Decimal
from typing import Any

from pipeline.errors import VerifyError

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float, Decimal),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def check_schema(metadata: dict[str, Any]) -> None:
    """Raise VerifyError unless the schema of a json problem, if there is one, can be read."""
    if "schema" in metadata:
        check_level(metadata["schema"], "schema")


def check_level(schema: object, where: str) -> None:
    if not isinstance(schema, dict):
        raise VerifyError(f"verifier 'json': {where} must be an object, found {schema!r:.40}")
    kinds = kinds_of(schema)
    if not all(isinstance(kind, str) and kind in TYPES for kind in kinds):
        raise VerifyError(
            f"verifier 'json': {where}.type must be one or more of {', '.join(TYPES)}, "
            f"found {schema['type']!r:.40}"
        )
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise VerifyError(f"verifier 'json': {where}.required must list keys, found {required!r:.40}")
    if not isinstance(schema.get("enum", []), list):
        raise VerifyError(f"verifier 'json': {where}.enum must be a list, found {schema['enum']!r:.40}")
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise VerifyError(f"verifier 'json': {where}.properties must be an object, found {properties!r:.40}")
    for key, inner in properties.items():
        check_level(inner, f"{where}.properties.{key}")
    if "items" in schema:
        check_level(schema["items"], f"{where}.items")


def kinds_of(schema: dict[str, Any]) -> list[Any]:
    kind = schema.get("type", list(TYPES))
    return kind if isinstance(kind, list) else [kind]


def fits(value: object, schema: dict[str, Any]) -> bool:
    """Whether the value meets a schema that `check_schema` has passed."""
    if "enum" in schema and not any(same_value(option, value) for option in schema["enum"]):
        return False
    if not any(is_type(value, kind) for kind in kinds_of(schema)):
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
    """Whether two JSON values are equal: 1 and 1.0 are, true and 1 are not."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_value(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_value, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return exact(left) == exact(right)


def exact(value: object) -> object:
    """A float of a schema as the decimal that was written there."""
    return Decimal(repr(value)) if isinstance(value, float) else value
