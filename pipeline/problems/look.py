"""What a file holds, and the entry of `problems.sources` that would read it; without a file, the presets.

The entry is a guess by the names of columns and by the first rows. It is tried on them before it is printed:
the last line says how many become problems, and why the others do not.

    python -m pipeline look data/train.csv
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipeline.errors import RecipeError
from pipeline.problems.options import options_of
from pipeline.problems.sources import row_problems
from pipeline.recipe.sources import FileSource, preset_names, read_preset, source_name
from pipeline.recipe.strict_yaml import dump, validate
from pipeline.records import Problem
from pipeline.rows import Line, read_rows
from pipeline.rows.chats import THINKING, chat_in, first_of

ROWS_READ, ROWS_SHOWN, SHOWN = 200, 3, 60
QUESTIONS = (
    "question", "problem", "prompt", "instruction", "query", "input", "text", "messages", "conversations",
)  # fmt: skip
GOLDS = (
    "answer", "final_answer", "expected_answer", "gold", "ground_truth", "gold_answer", "target", "label",
    "reference_answer", "correct_answer", "answerKey", "answer_key", "solution", "output", "response",
)  # fmt: skip
OPTIONS = ("options", "choices", "endings", "candidates")
TESTS = {"input_output": "input_output", "test_list": "mbpp"}
TRACES = ("generations", "response", "trace", "completion", "generated_solution", "r1_solution")
NUMBER = re.compile(r"-?[\d,]+(\.\d+)?%?|.*\\[a-z]+.*|[-+*/^()=\d\sa-z]{1,12}")


@dataclass(frozen=True, slots=True)
class Guess:
    """The keys of a source beside `path`, and what to say of them."""

    keys: dict[str, Any]
    remarks: list[str]


def look(path: str | None) -> str:
    """What `python -m pipeline look` prints."""
    return looked_at(path) if path else "\n".join(presets())


def presets() -> Iterator[str]:
    yield "Presets: `- {preset: NAME}` in problems.sources, with `path:` for a local copy."
    for name in preset_names():
        held = read_preset(name)
        columns = held.columns.model_dump(exclude_defaults=True)
        yield f"  {name:20} {source_name(held)}, verifier {held.verifier}, {held.licence}, {columns or ''}"


def looked_at(path: str) -> str:
    lines = list(islice(read_rows([path]), ROWS_READ))
    if not lines:
        raise RecipeError(f"{path}: holds no row")
    values = [line.values or {} for line in lines]
    guess = guessed(lines[0], values)
    entry = {"path": path, **guess.keys}
    shown = [
        f"{path}: the first {len(lines)} rows have the columns",
        *(f"  {name:24} {kind}" for name, kind in kinds(values).items()),
        "",
        *(f"row {line.number}: {short(line.values, 3 * SHOWN)}" for line in lines[:ROWS_SHOWN]),
        "",
        "as one of problems.sources:",
        *("  " + text for text in dump([entry]).splitlines()),
        *guess.remarks,
        *tried(entry, path, lines),
    ]
    return "\n".join(shown)


def kinds(values: list[dict[str, Any]]) -> dict[str, str]:
    """Column -> what it holds: types with their numbers, and the first value."""
    names = {name: None for row in values for name in row}
    found = {}
    for name in names:
        cells = [row[name] for row in values if name in row]
        types = Counter("null" if cell is None else type(cell).__name__ for cell in cells)
        types["missing"] = len(values) - len(cells)
        stated = ", ".join(kind if len(+types) == 1 else f"{kind} {n}" for kind, n in (+types).items())
        found[name] = f"{stated}: {short(next((cell for cell in cells if cell is not None), None), SHOWN)}"
    return found


def short(value: Any, most: int) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def paths_of(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a row, and those inside of its objects as paths."""
    objects = [(name, held) for name, held in row.items() if isinstance(held, dict)]
    return row | {f"{name}.{key}": cell for name, held in objects for key, cell in held.items()}


def guessed(first: Line, values: list[dict[str, Any]]) -> Guess:
    known = paths_of(values[0])
    question = named(QUESTIONS, known)
    tests = named(tuple(TESTS), known)
    options = named(OPTIONS, known)
    taken = tuple(f"{name}." for name in (question, options) if name)
    rest = {
        name: cell
        for name, cell in known.items()
        if name not in (question, options) and not name.startswith(taken or ("\0",))
    }
    gold = named(GOLDS, rest)
    keys: dict[str, Any] = {"columns": {}}
    remarks = [] if question else ["no column looks like a question: name it as columns.question"]
    if question and question != "question":
        keys["columns"]["question"] = question
    if tests:
        keys["columns"]["tests"] = tests
        keys |= {"answer": TESTS[tests], "verifier": "code"}
    elif gold is None:
        keys["columns"]["gold"] = None
        keys["majority"] = {"min_share": 0.5, "of": 8}
        remarks.append("no column looks like an answer: `majority` makes one, `verifier: none` does without")
    else:
        keys["columns"] |= {"gold": gold} if gold != "answer" else {}
        keys |= verified(first, [paths_of(row).get(gold) for row in values], options)
        if "verifier" in keys and options and keys["verifier"] == "choice":
            keys["columns"]["options"] = options
    keys = {key: value for key, value in keys.items() if value}
    return Guess(keys, remarks + list(traces_in(known)))


def named(names: tuple[str, ...], known: dict[str, Any]) -> str | None:
    """The first of the names that is a column, or the end of a path."""
    for name in names:
        for path in known:
            if path.lower() == name.lower() or path.lower().endswith(f".{name.lower()}"):
                return path
    return None


def verified(first: Line, golds: list[Any], options: str | None) -> dict[str, Any]:
    """How the golds stand in their column, and the verifier that they look like."""
    held = [gold for gold in golds if gold is not None]
    if held and isinstance(held[0], list) and chat_in(held[0]) is None:
        return {"verifier": "any"}
    texts = [str(gold).strip() for gold in held]
    if options:
        try:
            options_of(first, {options: (first.values or {}).get(options)}, "", texts[0] if texts else "")
        except RecipeError:
            return {}
        return {"verifier": "choice"}
    if texts and all("####" in text for text in texts):
        return {"answer": "hashes"}
    if texts and sum("\\boxed" in text for text in texts) > len(texts) / 2:
        return {"answer": "boxed"}
    if texts and sum(bool(NUMBER.fullmatch(text)) for text in texts) > len(texts) / 2:
        return {}
    words = sorted(len(text.split()) for text in texts)
    return {"verifier": "text" if words and words[len(words) // 2] <= 3 else "judge"}


def traces_in(known: dict[str, Any]) -> Iterator[str]:
    """A line where the rows hold responses of a model, for import-traces."""
    for name, cell in known.items():
        turns = safe_chat(cell)
        if turns and first_of(turns, "assistant"):
            layout = "sharegpt" if name in ("messages", "conversations") else "columns"
            columns = "" if layout == "sharegpt" else f" --columns {name},{name}"
            yield f"the chats of '{name}' are traces too: import-traces --layout {layout}{columns}"
            return
    marks = ("_reasoning", "trajectory")
    thinking = next((name for name in known if name in THINKING or name.endswith(marks)), None)
    response = named(TRACES, known)
    if thinking or response:
        names = f"question=..,thinking={thinking or '..'},response={response or '..'}"
        yield f"the rows hold traces too: import-traces --columns {names}"


def safe_chat(cell: Any) -> Any:
    try:
        return chat_in(cell) if isinstance(cell, list) else None
    except ValueError:
        return None


def tried(entry: dict[str, Any], path: str, lines: list[Line]) -> Iterator[str]:
    """What the entry makes of the first rows."""
    source = validate(FileSource, entry, "look")
    counts: Counter[str] = Counter()
    try:
        for item in islice(row_problems(source, source_name(source)), len(lines)):
            counts["problems" if isinstance(item, Problem) else item.reason] += 1
    except RecipeError as error:
        yield f"this reads {counts['problems']} rows, then: {error}"
        return
    others = ", ".join(f"{reason} {n}" for reason, n in counts.items() if reason != "problems")
    yield f"of the first {len(lines)} rows {counts['problems']} become problems{others and f' ({others})'}"
