"""The options of a choice question, in the shapes that data sets give them, lettered; and the right letter.

["red", "blue"]                                 a list; the gold is a letter, a place from 0, or a text
{"A": "red", "B": "blue"}                       an object; the gold is a key or a text
{"text": ["red", "blue"], "label": ["A", "B"]}  texts with their labels (ARC, CommonsenseQA)
"A) red  B) blue", "A. red\\nB. blue"           a text with letters in it; or any of the above as JSON
four columns                                    one option each; the gold is among them
"""

import ast
import re
from random import Random
from typing import Any

from pipeline.errors import RecipeError
from pipeline.rows.cells import unpacked
from pipeline.rows.lines import Line

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PLACES = [str(place) for place in range(len(LETTERS))]
LETTERED = re.compile(r"(?:^|(?<=\s))\(?([A-Z])[).:]\s*")


def options_of(line: Line, held: dict[str, Any], question: str, gold: str) -> tuple[dict[str, str], str]:
    """Letter -> option, and the right letter. One column holds all of them; of several the gold's is one
    among them, and they are put into an order that the question decides. RecipeError where there are none."""
    if len(held) > 1:
        texts = [str(text).strip() for text in held.values() if text is not None]
        _check_number(line, texts)
        Random(question).shuffle(texts)
        letters = dict(zip(LETTERS, texts, strict=False))
        return letters, next((letter for letter, text in letters.items() if text == gold), gold)
    [(column, cell)] = held.items()
    labels, found = _labelled(cell)
    if found is None:
        raise RecipeError(
            f"{line.where}: columns.options: the column '{column}' holds {type(cell).__name__}, not a list; "
            "name one column with a list, an object or a text of lettered options, or one column an option"
        )
    _check_number(line, found)
    texts, letters = found, dict(zip(LETTERS, found, strict=False))
    if gold in labels and gold not in texts:
        place = labels.index(gold)
        return letters, LETTERS[place] if place < len(letters) else gold
    whole = gold.removesuffix(".0")  # a table with a hole in it has places as floats
    if whole in PLACES[: len(letters)] and gold not in texts:
        return letters, LETTERS[int(whole)]
    return letters, gold


def _check_number(line: Line, texts: list[str]) -> None:
    if len(texts) > len(LETTERS):
        raise RecipeError(
            f"{line.where}: columns.options: {len(texts)} options are more than there are letters "
            f"({len(LETTERS)}); leave that row out"
        )


def _literal(text: str) -> Any:
    """The list that a text is in Python's own notation, as pandas writes one into CSV; else the text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _labelled(cell: Any) -> tuple[list[str], list[str] | None]:
    """Labels of the options (none where they are letters already), and the options."""
    cell = unpacked(cell)
    if isinstance(cell, str):
        cell = _literal(cell)
    if isinstance(cell, str):
        parts = LETTERED.split(cell.strip())
        labels = parts[1::2]
        if len(labels) < 2 or labels != list(LETTERS[: len(labels)]) or parts[0].strip():
            return [], None
        return [], [text.strip().rstrip(",;") for text in parts[2::2]]
    if isinstance(cell, dict):
        text, label = cell.get("text"), cell.get("label")
        if isinstance(text, list) and isinstance(label, list) and len(text) == len(label):
            return [str(one) for one in label], [str(one) for one in text]
        held = {str(key): str(value) for key, value in cell.items() if value is not None}
        return list(held), list(held.values()) or None
    if not isinstance(cell, list):
        return [], None
    if all(isinstance(one, dict) for one in cell) and cell:
        keys = [next((one[k] for k in ("label", "key", "id") if k in one), "") for one in cell]
        texts = [next((one[k] for k in ("text", "value", "content") if k in one), None) for one in cell]
        return [str(key) for key in keys], None if None in texts else [str(text) for text in texts]
    return [], [str(text) for text in cell]
