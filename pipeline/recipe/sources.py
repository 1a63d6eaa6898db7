"""Where rows come from, and how they become problems: the sources, tasks and mixes that a recipe may name."""

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    Tag,
    WithJsonSchema,
    WrapSerializer,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from pipeline.recipe.names import HubId, LocalPath, SafeName
from pipeline.recipe.prompts import PromptName
from pipeline.recipe.strict_yaml import Strict, nearest, read_mapping, validate

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def _one_or_several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_given(values: list[str], info: SerializerFunctionWrapHandler) -> Any:
    """One path is recorded as the text that it was, so that runs of earlier versions stay what they are."""
    held = info(values)
    return held[0] if len(held) == 1 else held


TEXT_OR_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Texts = Annotated[list[str], BeforeValidator(_one_or_several), WithJsonSchema(TEXT_OR_TEXTS)]
# a file, a glob, a directory of files or of save_to_disk; or a list of these
Paths = Annotated[
    list[LocalPath],
    BeforeValidator(_one_or_several),
    WrapSerializer(_as_given),
    Field(min_length=1),
    WithJsonSchema(TEXT_OR_TEXTS),
]


class Columns(Strict):
    """Which columns of a row hold the question and the gold answer; `metadata` columns go to the verifier.

    Each is a column, a path into one (`messages[0].content`), or a template of several
    (`"{context}\\n\\n{question}"`). A question that is a list of chat messages is its first user turn, a gold
    its last assistant turn. `gold: null`: no row has one, which `majority` or `verifier: none` is for.
    `options` of a choice question: one column with a list, an object or a text of them, or several columns
    that hold one option each. Of a program `tests` names what holds its tests, in place of `gold`, and
    `solution` a right one, if any.
    """

    question: str = "question"
    gold: str | None = "answer"
    metadata: list[str] = []
    options: Texts = []
    tests: Texts = []
    solution: str | None = None


class Extract(Strict):
    """Where in its text the gold answer stands: on the line behind the last `after`, or what the last match
    of the regular expression `regex` has in its first group (the whole match where it has none)."""

    after: Annotated[str, Field(min_length=1)] | None = None
    regex: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.after is None) == (self.regex is None):
            raise ValueError("answer: give either `after` or `regex`")
        try:
            re.compile(self.regex or "")
        except re.error as error:
            raise ValueError(f"answer.regex: {self.regex!r} is no regular expression ({error})") from None
        return self

    def of(self, text: str) -> str | None:
        if self.after is not None:
            _, found, tail = text.rpartition(self.after)
            return tail.strip().split("\n")[0].strip() or None if found else None
        *_, last = [None, *re.finditer(self.regex or "", text)]
        return None if last is None else (last[min(last.re.groups, 1)] or "").strip() or None


Form = Literal["plain", "hashes", "boxed", "humaneval", "mbpp", "input_output", "livecodebench"]
Answer = Annotated[
    Annotated[Form, Tag("tag:form")] | Annotated[Extract, Tag("tag:Extract")],
    Discriminator(lambda value: "tag:Extract" if isinstance(value, dict | Extract) else "tag:form"),
]


def _is_day(value: str) -> str:
    date.fromisoformat(value)  # ValueError: 2024-13-01 fits the pattern
    return value


Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_is_day)]
MILLISECONDS = 1e11  # an epoch from here on counts them: as seconds it would be after the year 5000


class Window(Strict):
    """Only rows whose `column` holds a date from `since` on and before `before`; one may be left out. A date
    is one of ISO 8601, with or without a time, or seconds or milliseconds since 1970 (UTC)."""

    column: str
    since: Day | None = None
    before: Day | None = None

    @model_validator(mode="after")
    def _some_days(self) -> Self:
        if self.since is None and self.before is None:
            raise ValueError("a window needs `since`, `before` or both: without them it holds every row")
        if self.since and self.before and self.since >= self.before:
            raise ValueError(f"no day is from {self.since} on and before {self.before}: exchange them")
        return self

    def holds(self, cell: Any) -> bool:
        """ValueError, with what was found, where the cell is no date."""
        day = _day_of(cell).isoformat()
        return (self.since or day) <= day and (self.before is None or day < self.before)


def _day_of(cell: Any) -> date:
    try:
        if isinstance(cell, int | float) and not isinstance(cell, bool):
            seconds = cell / 1000 if abs(cell) >= MILLISECONDS else cell
            return datetime.fromtimestamp(seconds, UTC).date()
        if isinstance(cell, date):
            return cell.date() if isinstance(cell, datetime) else cell
        if isinstance(cell, str) and "-" in cell:  # 20240102 may be a number as well
            return datetime.fromisoformat(cell.strip()).date()
    except (ValueError, OverflowError, OSError):
        pass
    raise ValueError(
        f"{str(cell)[:40]!r} is no date: give 2024-01-31, 2024-01-31T09:30:00, or seconds or milliseconds "
        "since 1970"
    )


SECOND_OPINION = (
    "a verifier is one name, at a source or a task. A judge as the second opinion on what math found "
    "unverifiable is judge.second_opinion: [math]"
)


class Rows(Strict):
    """How the rows of a table become problems. `answer` says how the gold answer stands in its column: for
    the verifier code the tests, by the name of a data set's form (pipeline.problems.programs)."""

    columns: Columns = Columns()
    answer: Answer = "plain"
    verifier: str = "math"
    licence: str = "unknown"
    window: Window | None = None

    @field_validator("verifier", mode="before")
    @classmethod
    def _verifier_is_a_name(cls, value: Any) -> Any:
        if isinstance(value, dict):
            raise ValueError(SECOND_OPINION)
        return value

    @model_validator(mode="after")
    def _programs_have_tests(self) -> Self:
        code, answers = self.verifier == "code", ("hashes", "boxed")
        of_text = self.answer in answers or isinstance(self.answer, Extract)
        if self.answer != "plain" and code is of_text:
            raise ValueError(
                f"answer: {self.answer} is not how the gold of verifier {self.verifier} stands in its "
                "column; humaneval, mbpp, input_output and livecodebench are of verifier code, hashes and "
                "boxed are not"
            )
        if not code and (self.columns.tests or self.columns.solution):
            raise ValueError(
                f"columns.tests and columns.solution are of verifier code, not of {self.verifier}"
            )
        if self.columns.tests and "gold" in self.columns.model_fields_set:
            raise ValueError("columns: name either `gold` or `tests`: both are what a program is held to")
        if len(self.columns.tests) > 1 and self.answer != "livecodebench":
            raise ValueError("columns.tests: only answer: livecodebench reads several columns")
        return self


# the verifiers whose gold is an answer that can stand for another (pipeline.verify.table.VOTED)
Comparing = Literal["choice", "json", "math", "text"]


class Majority(Strict):
    """For rows without a gold answer: `of` samples are taken, and the answer that at least `min_share` of all
    of them give is the gold. A row that has one keeps it."""

    min_share: float = Field(default=0.5, gt=0, le=1)
    of: Annotated[int, Field(ge=2)] = 8


class RowSource(Rows):
    prompt: PromptName | None = None
    majority: Majority | None = None
    limit: Count | None = None
    name: SafeName | None = None
    weight: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _without_gold(self) -> Self:
        if self.verifier == "none" and self.majority:
            raise ValueError(
                "majority needs a verifier that compares answers; verifier: none compares nothing"
            )
        if self.columns.gold is None and self.verifier != "none" and self.majority is None:
            raise ValueError(
                "columns.gold: null: without gold answers give the source `majority: {min_share: 0.5, "
                "of: 8}`, or `verifier: none`, which calls every trace unverifiable"
            )
        return self


class FileSource(RowSource):
    """Local files: JSON (lines or an array), CSV, TSV, Parquet or Arrow, also as .gz or .zst. `path` is a
    file, a list of them, a glob, a directory of files, or what `datasets` saved to disk."""

    path: Paths


class HubSource(RowSource):
    """A data set on the hub; `preset: NAME` in place of `hub` takes its keys from one of the presets
    (`python -m pipeline look` lists them). `revision` may be null: then it is resolved at the first run and
    recorded."""

    hub: HubId
    revision: str | None = None
    subset: str | None = None
    split: str = "train"


class ProceduralSource(Strict):
    """A family of reasoning-gym, by name and configuration; `size` questions that are not reserved."""

    reasoning_gym: str
    size: Count
    config: dict[str, Any] = {}
    prompt: PromptName | None = None
    name: SafeName | None = None
    weight: float | None = Field(default=None, gt=0)


class CardTask(Strict):
    """A task card of eval/tasks/ by name; `path` serves an offline copy, `size` takes a seeded part."""

    task: str
    path: Paths | None = None
    size: Count | None = None
    prompt: PromptName | None = None
    name: SafeName | None = None


def _told_by(**kinds: type[Strict]) -> Any:
    """Tells which kind of a union an entry is: that of the first of these keys that it has."""

    def tag_of(value: Any) -> str | None:
        if isinstance(value, dict):
            return next((f"tag:{kind.__name__}" for key, kind in kinds.items() if key in value), None)
        return f"tag:{type(value).__name__}"

    return Discriminator(
        tag_of,
        custom_error_type="unknown_kind",
        custom_error_message=f"one entry is a mapping with the key {' or '.join(kinds)}",
    )


PRESET_MEANING = "A public data set whose keys are known: python -m pipeline look lists them."
PRESETS = Path(__file__).resolve().parents[1] / "problems/presets"


class Preset(HubSource):
    """A public data set by name: what a source of it says. `facts` maps each field to where it was read."""

    facts: dict[str, str] = {}


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(name: Any) -> Preset:
    """The preset of that name; ValueError names the nearest where there is none."""
    if not isinstance(name, str):
        raise ValueError(f"preset is a name (known: {', '.join(preset_names())}), found {name!r:.40}")
    if name not in preset_names():
        raise ValueError(f"there is no preset '{name}'; {nearest(name, preset_names())}")
    path = PRESETS / f"{name}.yaml"
    return validate(Preset, read_mapping(path, "preset"), str(path))


def _with_preset(value: Any) -> Any:
    """A source that names a preset has all its keys, and those beside it in their place; with `path` it is
    read from there."""
    if not isinstance(value, dict) or "preset" not in value:
        return value
    held = read_preset(value["preset"]).model_dump(exclude={"facts"}, exclude_defaults=True)
    local = ("hub", "revision", "subset", "split") if "path" in value else ()
    named = {key: entry for key, entry in held.items() if key not in local}
    return named | {key: entry for key, entry in value.items() if key != "preset"}


class _Presets:
    """Tells a JSON Schema of `preset`, which is gone before a source is validated."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        held: dict[str, Any] = {"preset": {"enum": preset_names(), "description": PRESET_MEANING}}
        for kind in map(handler.resolve_ref_schema, schema["oneOf"]):
            if "reasoning_gym" not in kind["properties"]:
                held |= kind["properties"]
        entry = {"type": "object", "properties": held, "required": ["preset"], "additionalProperties": False}
        return {**schema, "oneOf": [*schema["oneOf"], entry]}


_Procedural = Annotated[ProceduralSource, Tag("tag:ProceduralSource")]
_File = Annotated[FileSource, Tag("tag:FileSource")]
Source = Annotated[
    _Procedural | _File | Annotated[HubSource, Tag("tag:HubSource")],
    _told_by(reasoning_gym=ProceduralSource, path=FileSource, hub=HubSource),
    BeforeValidator(_with_preset),
    _Presets(),
]
Task = Annotated[
    _Procedural | Annotated[CardTask, Tag("tag:CardTask")] | _File,
    _told_by(reasoning_gym=ProceduralSource, task=CardTask, path=FileSource),
]


def source_name(source: ProceduralSource | FileSource | HubSource) -> str:
    """The name that a source's problems carry: the one that it was given, or what it was made from."""
    if isinstance(source, ProceduralSource):
        return source.name or source.reasoning_gym
    return source.name or (source.hub if isinstance(source, HubSource) else _stem(source.path[0]))


def _stem(path: str) -> str:
    """Of a glob what stands before its signs, or its directory."""
    plain = path.removesuffix(".gz").removesuffix(".zst")
    literal = re.split(r"[*?]", plain, maxsplit=1)[0]
    if literal == plain:
        return Path(plain).stem
    return Path(literal).name.rstrip("-_.") * (not literal.endswith("/")) or Path(literal).name or "rows"


def source_names(sources: list[Source]) -> list[str]:
    """A name for each source, in order; a name that is taken gets a number: chain_sum, chain_sum-2."""
    names: list[str] = []
    for source in sources:
        name, number = source_name(source), 1
        while name in names:
            number += 1
            name = f"{source_name(source)}-{number}"
        names.append(name)
    return names


def task_name(task: Task) -> str:
    """What results and files call a task: its card, its family, or the stem of its file."""
    return (task.name or task.task) if isinstance(task, CardTask) else source_name(task)


class Problems(Strict):
    sources: list[Source] = Field(min_length=1)
    decontaminate: bool = True


class MixSource(Strict):
    """Ready examples from elsewhere, `weight` of them for each selected trace. Either `path` or `hub`.

    `messages` names a column that holds a chat; without it `prompt` and `response` name two columns, and
    `thinking` a third one. A chat's own thinking is that of its messages.
    """

    name: SafeName
    path: Paths | None = None
    hub: HubId | None = None
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    messages: str | None = "messages"
    prompt: str = "prompt"
    response: str = "response"
    thinking: str | None = None
    weight: float = Field(gt=0)
    licence: str

    @model_validator(mode="after")
    def _one_place(self) -> "MixSource":
        if (self.path is None) == (self.hub is None):
            raise ValueError("a mix entry has either a `path` or a `hub`")
        return self
