"""What a column entry of a recipe means in a row: a column, a path into a nested one, or a template.

    question                        the column of that name, whatever signs are in it
    messages[0].content             a path: keys, and places of lists from 0, or from -1 at the end
    "{context}\n\n{question}"       a template: what is in braces is a column or a path

Text that holds JSON, as nested cells of CSV do, is read where a path goes on into it. jmespath, which has
such paths and more, gives null for a mistyped key; here that is an error with the key that was meant.
"""

import json
import re
from typing import Any

from pipeline.errors import RecipeError
from pipeline.recipe.strict_yaml import nearest

STEP = re.compile(r"\.?([^.\[\]{}]+)|\[(-?\d+)\]")
FIELD = re.compile(r"\{([^{}]+)\}")


def cell_of(where: str, values: dict[str, Any], column: str) -> Any:
    """The value that `column` stands for. RecipeError, with where and what there is, where there is none."""
    if column in values:
        return values[column]
    if FIELD.search(column):
        return _filled(where, values, column)
    steps = _steps(column)
    if len(steps) < 2 or steps[0] not in values:
        raise RecipeError(f"{where}: there is no column '{column}'; {nearest(column, list(values))}")
    value, seen = values[steps[0]], str(steps[0])
    for step in steps[1:]:
        value = _inside(where, value, step, seen)
        seen += f"[{step}]" if isinstance(step, int) else f".{step}"
    return value


def _steps(column: str) -> list[str | int]:
    """Keys and places of a path; one step where the text is none."""
    found = list(STEP.finditer(column))
    if "".join(match[0] for match in found) != column:
        return [column]
    return [match[1] if match[2] is None else int(match[2]) for match in found]


def _inside(where: str, value: Any, step: str | int, seen: str) -> Any:
    """Null stays null: a row may lack what the others have."""
    value = unpacked(value)
    if value is None:
        return None
    if isinstance(step, int):
        if not isinstance(value, list):
            raise RecipeError(
                f"{where}: '{seen}' holds {type(value).__name__}, not a list; leave out [{step}]"
            )
        return value[step] if -len(value) <= step < len(value) else None
    if not isinstance(value, dict):
        advice = (
            f"name a place of it, as {seen}[0].{step}" if isinstance(value, list) else f"leave out .{step}"
        )
        raise RecipeError(f"{where}: '{seen}' holds {type(value).__name__}, not an object; {advice}")
    if step not in value:
        raise RecipeError(f"{where}: '{seen}' has no '{step}'; {nearest(step, list(value))}")
    return value[step]


def _filled(where: str, values: dict[str, Any], template: str) -> str | None:
    """The template with the cells as text; null where one of them is."""
    held = {name: cell_of(where, values, name) for name in FIELD.findall(template)}
    if any(value is None for value in held.values()):
        return None
    return FIELD.sub(lambda match: str(held[match[1]]), template)


def unpacked(value: Any) -> Any:
    """The list or object that a text of JSON holds; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
