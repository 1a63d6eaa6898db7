"""Where problems come from: procedural families of reasoning-gym, local files, hub data sets.

Held-out by construction: a question whose normalised text hashes to 0 modulo 10 is reserved for
evaluation. Training sources skip such questions, procedural eval tasks take nothing else, and the
embedded models never saw one.
"""

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import RecipeError, VerifyError, in_one_line, inside
from pipeline.problems.options import options_of
from pipeline.problems.programs import FORMS, Cell, NoTests
from pipeline.recipe.cards import TaskCard
from pipeline.recipe.sources import (
    Extract,
    FileSource,
    HubSource,
    Problems,
    ProceduralSource,
    Rows,
    Source,
    Task,
    Window,
    source_name,
)
from pipeline.recipe.strict_yaml import nearest
from pipeline.records import Problem, problem_id
from pipeline.rows import Line, read_rows
from pipeline.rows.cells import cell_of
from pipeline.rows.chats import Turn, chat_in, first_of, last_of
from pipeline.verify.extract import last_boxed
from pipeline.verify.table import VERSIONS, check_verifier, comparing, versions_of

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

RESERVED_MODULUS = 10
PROCEDURAL_LICENCE = "Apache-2.0 (reasoning-gym)"
# a family that gave no new question for this many draws has no more to give
MAX_BARREN_DRAWS = 5_000
# what reasoning-gym raises where it cannot make an item of a config
FAMILY_FAULTS = (AssertionError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
VERIFIERS_OF_LISTS = ("any", "json")
OUTSIDE_WINDOW = "outside_window"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row of a source that is no problem, and why; `where` is its file and line."""

    reason: str
    where: str
    row: dict[str, Any] = field(default_factory=dict)
    detail: str = ""


def normalise_question(text: str) -> str:
    """NFKC, case folded, white space collapsed: two questions that read the same are the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _text_key(question: str) -> int:
    digest = hashlib.blake2b(normalise_question(question).encode("utf-8", "surrogatepass"), digest_size=16)
    return int.from_bytes(digest.digest(), "big")


def is_reserved(question: str) -> bool:
    """True for the tenth of all questions that only evaluation may use."""
    digest = hashlib.sha256(normalise_question(question).encode()).digest()
    return int.from_bytes(digest, "big") % RESERVED_MODULUS == 0


def verifiers_in_use(problems: Problems) -> dict[str, str]:
    """Name -> version of the verifiers that the recipe's problems use, for the plans of stages."""
    return versions_of(name for source in problems.sources for name in verifiers_of(source))


def verifiers_of(source: Source | Task | TaskCard) -> set[str]:
    """The verifiers that the problems of a source or of an eval task may use.

    An `any` compares with the verifier that its rows name in a column of metadata, which may be each of them;
    without such a column it is the usual one. An unknown one is refused by who loads the rows.
    """
    if not isinstance(source, Rows):
        return {"reasoning_gym"}
    if getattr(source, "majority", None) is not None:
        return {source.verifier, "majority"} & VERSIONS.keys()
    if source.verifier == "any":
        return set(VERSIONS) if "verifier" in source.columns.metadata else {"any", comparing("any", {})}
    return {source.verifier} & VERSIONS.keys()


def read_source(source: Source, seed: int) -> Iterator[Problem | Rejected]:
    """Every row of a training source, as a problem, or with the reason why it is not one."""
    if isinstance(source, ProceduralSource):
        yield from procedural_problems(source, seed, reserved=False)
        return
    for item in row_problems(source, source_name(source)):
        if isinstance(item, Problem) and is_reserved(item.question):
            yield Rejected("reserved", "", {"question": item.question, "source": item.source})
        else:
            yield item


def procedural_problems(source: ProceduralSource, seed: int, *, reserved: bool) -> Iterator[Problem]:
    """`size` distinct questions of a family, all reserved or none. RecipeError where it cannot give them.

    Item i of a family comes from Random(seed + i), so the draws of two seeds overlap almost wholly: only the
    reservation keeps training and evaluation apart.
    """
    family, name = source.reasoning_gym, source_name(source)
    try:
        check_verifier("reasoning_gym", {"family": family})
    except VerifyError as error:
        raise RecipeError(f"reasoning_gym: {family}: {error}") from None
    dataset = _dataset(source, seed)
    seen: set[int] = set()  # of the texts digests, which are a quarter of them
    index = barren = 0
    while len(seen) < source.size:
        if barren == MAX_BARREN_DRAWS:
            kind = "reserved for evaluation" if reserved else "free for training"
            raise RecipeError(
                f"reasoning_gym: {family} with config {json.dumps(source.config)} has only {len(seen):,} "
                f"distinct questions {kind} in {index:,} draws, size asks for {source.size:,}. Lower size, "
                "or widen the config"
            )
        entry = _draw(dataset, source, index)
        index += 1
        text = _text_key(entry["question"])
        if text in seen or is_reserved(entry["question"]) is not reserved:
            barren += 1
            continue
        barren = 0
        seen.add(text)
        yield _procedural_problem(family, name, entry)


def _dataset(source: ProceduralSource, seed: int) -> "ProceduralDataset":
    from reasoning_gym import create_dataset
    from reasoning_gym.factory import DATASETS

    where = f"reasoning_gym: {source.reasoning_gym}: config"
    known = sorted(set(DATASETS[source.reasoning_gym][1].__dataclass_fields__) - {"seed", "size"})
    for key in source.config:
        if key in ("seed", "size"):
            raise RecipeError(f"{where}.{key}: is decided by the recipe's own seed and size; remove it here")
        if key not in known:
            raise RecipeError(f"{where}.{key}: unknown key; {nearest(key, known)}")
    try:
        return create_dataset(source.reasoning_gym, seed=seed, size=source.size, **source.config)
    except FAMILY_FAULTS as error:
        said = in_one_line(error) or type(error).__name__
        raise RecipeError(
            f"{where}: reasoning-gym refuses it: {said}; found {json.dumps(source.config)} "
            f"(keys: {', '.join(known)})"
        ) from None


def _draw(dataset: "ProceduralDataset", source: ProceduralSource, index: int) -> dict[str, Any]:
    try:
        return dataset[index]
    except FAMILY_FAULTS as error:
        raise RecipeError(
            f"reasoning_gym: {source.reasoning_gym} with config {json.dumps(source.config)} fails at item "
            f"{index:,}: {type(error).__name__}: {error}. Lower size, or change the config"
        ) from error


def _procedural_problem(family: str, name: str, entry: dict[str, Any]) -> Problem:
    try:
        entry = json.loads(json.dumps(entry, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"reasoning_gym: {family}: its items hold what JSON cannot ({error}); choose another family"
        ) from None
    question, gold = entry["question"], str(entry["answer"])
    metadata = {"family": family, "entry": entry}
    return Problem(problem_id(question), question, gold, "reasoning_gym", name, PROCEDURAL_LICENCE, metadata)


def row_problems(source: FileSource | HubSource, name: str) -> Iterator[Problem | Rejected]:
    """The rows of a file or a hub data set as problems; nothing is skipped for reservation here."""
    try:
        check_verifier(source.verifier, {"family": "chain_sum"})
        if source.majority is not None:
            check_verifier("majority", {"verifier": source.verifier})
    except VerifyError as error:
        raise RecipeError(f"source {name}: verifier: {error}") from None
    for line in read_rows(source.path) if isinstance(source, FileSource) else hub_rows(source):
        if source.window is not None and not _in_window(source.window, line):
            yield Rejected(OUTSIDE_WINDOW, line.where, line.values or {})
            continue
        yield (_program_problem if source.verifier == "code" else _row_problem)(source, name, line)


def _in_window(window: Window, line: Line) -> bool:
    try:
        return window.holds(cell_of(line.where, line.values or {}, window.column))
    except ValueError as error:
        raise RecipeError(f"{line.where}: the window's column '{window.column}': {error}") from None


def _row_problem(source: FileSource | HubSource, name: str, line: Line) -> Problem | Rejected:
    columns, values = source.columns, line.values or {}
    held = _cells(line, [columns.question, *columns.metadata, *columns.options], columns.metadata)
    metadata = {column: held[column] for column in columns.metadata}
    question = _question(line, columns.question, held[columns.question])
    gold, detail = _gold_of(source, line)
    if question is None:
        return Rejected("no_question", line.where, values)
    verifier = source.verifier
    if gold is None and source.majority is not None:
        metadata |= {"verifier": verifier, "of": source.majority.of}
        gold, verifier = "", "majority"
    if gold is None and verifier != "none":
        return Rejected("no_answer", line.where, values, detail)
    if columns.options:
        options, gold = options_of(line, {name: held[name] for name in columns.options}, question, gold or "")
        metadata["options"] = options
        question = question.rstrip() + "\n\n" + "\n".join(f"{k}. {v}" for k, v in options.items())
    return Problem(problem_id(question), question, gold or "", verifier, name, source.licence, metadata)


def _question(line: Line, column: str, value: Any) -> str | None:
    """The text of a question; of a chat the first turn of the user. None where there is none."""
    if (chat := _chat(line, column, value)) is not None:
        turn = first_of(chat, "user")
        value = turn and turn.text
    return value if isinstance(value, str) and value.strip() else None


def _chat(line: Line, column: str, value: Any) -> list[Turn] | None:
    try:
        return chat_in(value)
    except ValueError as error:
        raise RecipeError(f"{line.where}: the column '{column}': {error}") from None


def _gold_of(source: FileSource | HubSource, line: Line) -> tuple[str | None, str]:
    """The gold answer of a row, or None and, where it can be told, why there is none."""
    column = source.columns.gold
    without = source.majority is not None or source.verifier == "none"
    if column is None or (without and column not in (line.values or {})):
        return None, ""
    value = _cells(line, [column], [])[column]
    if (chat := _chat(line, column, value)) is not None:
        turn = last_of(chat, "assistant")
        value = turn and turn.text
    if isinstance(value, list) and source.verifier not in VERIFIERS_OF_LISTS:
        lists = " (one of several is right) and ".join(VERIFIERS_OF_LISTS)
        raise RecipeError(
            f"{line.where}: the column '{column}' holds a list, which verifier {source.verifier} would "
            f"take for text; of lists there are {lists}, and one element is `gold: {column}[0]`"
        )
    if isinstance(value, dict):
        if source.verifier == "json":
            return json.dumps(value, ensure_ascii=False, default=str), ""
        return (
            None,
            f"it holds an object; name one of its keys, as `gold: {column}.{next(iter(value), 'key')}`",
        )
    return _gold(value, source.answer), ""


def _program_problem(source: FileSource | HubSource, name: str, line: Line) -> Problem | Rejected:
    """A program is asked for: the gold is its tests, and a right program is kept for whoever checks them."""
    values, columns, form = line.values or {}, source.columns, FORMS[str(source.answer)]
    tests = columns.tests or [columns.gold or ""]
    solution = [columns.solution] if columns.solution else []
    wanted = [columns.question, *tests, *solution, *columns.metadata, *form.columns]
    held = _cells(line, wanted, columns.metadata)
    question = _question(line, columns.question, held[columns.question])
    if question is None:
        return Rejected("no_question", line.where, values)
    right = held[columns.solution] if columns.solution else None
    cell = Cell(question, [held[column] for column in tests], right, values)
    try:
        with inside(line.where):
            asked = form.read(cell)
    except NoTests as error:
        return Rejected("no_tests", line.where, values, str(error))
    metadata = {column: held[column] for column in columns.metadata}
    more = {"prompt": asked.prompt, "solution": asked.solution}
    metadata |= {key: value for key, value in more.items() if value}
    gold = json.dumps(asked.gold, ensure_ascii=False)
    return Problem(problem_id(asked.question), asked.question, gold, "code", name, source.licence, metadata)


def _cells(line: Line, columns: list[str], metadata: list[str]) -> dict[str, Any]:
    """The cells of columns. RecipeError where one is missing, or holds half a surrogate pair, which JSON can
    escape but no file or tokenizer can hold, or is metadata that JSON has no form for (Parquet holds dates
    and bytes): no verifier could be sent them."""
    held = {column: cell_of(line.where, line.values or {}, column) for column in columns}
    for column, value in held.items():
        strict = column in metadata
        try:
            text = json.dumps(
                value, ensure_ascii=False, allow_nan=not strict, default=None if strict else repr
            )
            text.encode()
        except UnicodeEncodeError:
            raise RecipeError(
                f"{line.where}: the column '{column}' holds half a surrogate pair (\\ud800 to \\udfff), "
                "which is not a character. Correct or remove that line, then run again"
            ) from None
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"{line.where}: the column '{column}' holds what JSON cannot ({error}). Leave it out of "
                "columns.metadata, or make text of it"
            ) from None
    return held


def _gold(value: Any, kind: str | Extract) -> str | None:
    """The gold answer that stands in a column: as it is, on the line of GSM8K's `####`, or in the last
    \\boxed. None where the column holds no answer."""
    if isinstance(value, list):
        held = [one for one in value if one is not None]
        return json.dumps(held, ensure_ascii=False, default=str) if held else None
    # NaN is how tables write what they do not have
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing or isinstance(value, dict | bytes):
        return None
    text = str(value)
    if kind == "hashes":
        kind = Extract(after="####")
    if isinstance(kind, Extract):
        return kind.of(text)
    if kind == "boxed":
        return last_boxed(text)
    return text.strip() or None


def hub_rows(source: HubSource) -> Iterator[Line]:
    """The rows of a data set on the hub. RecipeError where it cannot be loaded."""
    import datasets

    where = f"hub: {source.hub}"
    try:
        rows = datasets.load_dataset(source.hub, source.subset, split=source.split, revision=source.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        said = in_one_line(error, 300)
        raise RecipeError(
            f"{where}: the data set cannot be loaded: {said}. Without a network, give a local copy as a "
            "source with `path:`"
        ) from None
    for number, values in enumerate(rows, 1):
        yield Line(where, number, values)
