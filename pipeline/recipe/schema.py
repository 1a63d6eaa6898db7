"""A recipe: one experiment, one YAML file, its sections the stages in order.

Strict: an unknown key, a wrong type or an impossible value is a RecipeError that names the file, the path
of the key, what was found and the nearest valid key. What changes the result is here; how it runs
(engine, URLs, devices, concurrency) is a flag and never here.
"""

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from pipeline.errors import RecipeError
from pipeline.recipe.names import MAX_NAME_LENGTH, SAFE_NAME, HubId, SafeName
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.rule_entry import RuleEntry, rule_name
from pipeline.recipe.strict_yaml import Strict, nearest, parse, read_mapping, validate

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def _one_or_several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Columns(Strict):
    """Which columns of a row hold the question and the gold answer; `metadata` columns go to the verifier.

    `options` of a choice question: one column with a list, or several columns that hold one option each.
    Of a program `tests` names what holds its tests, in place of `gold`, and `solution` a right one, if any.
    """

    question: str = "question"
    gold: str = "answer"
    metadata: list[str] = []
    options: list[str] = []
    tests: Annotated[list[str], BeforeValidator(_one_or_several)] = []
    solution: str | None = None


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
    answer: Literal["plain", "hashes", "boxed", "humaneval", "mbpp", "input_output", "livecodebench"] = (
        "plain"
    )
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
        if self.answer != "plain" and code is (self.answer in answers):
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
    majority: Majority | None = None
    limit: Count | None = None
    name: SafeName | None = None
    weight: float | None = Field(default=None, gt=0)


class FileSource(RowSource):
    """A local JSONL or Parquet file."""

    path: str


class HubSource(RowSource):
    """A data set on the hub. `revision` may be null: then it is resolved at the first run and recorded."""

    hub: HubId
    revision: str | None = None
    subset: str | None = None
    split: str = "train"


class ProceduralSource(Strict):
    """A family of reasoning-gym, by name and configuration; `size` questions that are not reserved."""

    reasoning_gym: str
    size: Count
    config: dict[str, Any] = {}
    name: SafeName | None = None
    weight: float | None = Field(default=None, gt=0)


class CardTask(Strict):
    """A task card of eval/tasks/ by name; `path` serves an offline copy, `size` takes a seeded part."""

    task: str
    path: str | None = None
    size: Count | None = None
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


_Procedural = Annotated[ProceduralSource, Tag("tag:ProceduralSource")]
_File = Annotated[FileSource, Tag("tag:FileSource")]
Source = Annotated[
    _Procedural | _File | Annotated[HubSource, Tag("tag:HubSource")],
    _told_by(reasoning_gym=ProceduralSource, path=FileSource, hub=HubSource),
]
Task = Annotated[
    _Procedural | Annotated[CardTask, Tag("tag:CardTask")] | _File,
    _told_by(reasoning_gym=ProceduralSource, task=CardTask, path=FileSource),
]


def source_name(source: ProceduralSource | FileSource | HubSource) -> str:
    """The name that a source's problems carry: the one that it was given, or what it was made from."""
    if isinstance(source, ProceduralSource):
        return source.name or source.reasoning_gym
    return source.name or (source.hub if isinstance(source, HubSource) else Path(source.path).stem)


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


class Samples(Strict):
    """Stop a problem at `keep` correct traces, give it up after `max`.

    `redistribute` gives what solved problems saved to the hardest unsolved ones, up to `cap` samples each.
    """

    keep: Count
    max: Count
    redistribute: bool = False
    cap: Count | None = None

    @model_validator(mode="after")
    def _keep_within_max(self) -> "Samples":
        if self.keep > self.max:
            raise ValueError(f"keep ({self.keep}) cannot be more than max ({self.max})")
        if self.redistribute and (self.cap is None or self.cap <= self.max):
            raise ValueError(f"redistribute needs a cap of more than max ({self.max}) samples a problem")
        if self.cap is not None and not self.redistribute:
            raise ValueError("cap has no meaning without redistribute: true")
        return self


class Sampling(Strict):
    """Names and meanings are vLLM's SamplingParams; `top_k` 0 means all tokens."""

    temperature: float = Field(ge=0, le=10)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: Share = 0.0
    max_tokens: Count


def _known_prompt(value: str) -> str:
    styles = [name for name in PROMPTS if name != "judge"]  # which asks nobody a question
    if value not in styles:
        raise ValueError(f"unknown prompt style; {nearest(value, styles)}")
    return value


PromptName = Annotated[str, AfterValidator(_known_prompt)]


class Generate(Strict):
    """`keep_tokens` stores every response's token ids, and the log-probabilities of its sampled tokens."""

    teacher: str
    prompt: PromptName = "boxed"
    samples: Samples
    sampling: Sampling
    max_failure_rate: Share = 0.02
    accept_licence: str | None = None
    keep_tokens: bool = False


class Bucket(Strict):
    """A share of the examples, for those over `above` and at most `up_to`; null means no bound."""

    above: float | None = None
    up_to: float | None = None
    share: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _not_empty(self) -> "Bucket":
        if self.above is not None and self.up_to is not None and self.above >= self.up_to:
            raise ValueError(f"above ({self.above}) must be less than up_to ({self.up_to})")
        return self


def _shares_add_up(buckets: list[Bucket]) -> list[Bucket]:
    total = sum(bucket.share for bucket in buckets)
    if buckets and abs(total - 1) > 1e-6:
        raise ValueError(f"the shares of all buckets must add up to 1, they add up to {total:g}")
    return buckets


Buckets = Annotated[list[Bucket], AfterValidator(_shares_add_up)]


class Select(Strict):
    """Which of the traces that pass the rules become examples, step by step in this order.

    `per_problem` in the order of `prefer`; `difficulty` (shares by the problem's pass rate) and `lengths`
    (shares by trained tokens); `per_source` (a cap for each source by name); `max_tokens`, the total of
    trained tokens: it is filled as far as whole examples can. `unsolved: keep_one` takes in the preferred
    wrong trace of each problem of which none is right, where every rule but `correct` lets it pass.
    """

    per_problem: Count = 1
    prefer: Literal["shortest", "first", "random"] = "shortest"
    difficulty: Buckets = []
    lengths: Buckets = []
    per_source: dict[str, Count] = {}
    max_tokens: Count | None = None
    unsolved: Literal["drop", "keep_one"] = "drop"


class MixSource(Strict):
    """Ready examples from elsewhere, `weight` of them for each selected trace. Either `path` or `hub`.

    `messages` names a column that holds a chat; without it `prompt` and `response` name two columns.
    """

    name: SafeName
    path: str | None = None
    hub: HubId | None = None
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    messages: str | None = "messages"
    prompt: str = "prompt"
    response: str = "response"
    weight: float = Field(gt=0)
    licence: str

    @model_validator(mode="after")
    def _one_place(self) -> "MixSource":
        if (self.path is None) == (self.hub is None):
            raise ValueError("a mix entry has either a `path` or a `hub`")
        return self


def _one_rule(entry: RuleEntry) -> RuleEntry:
    rule_name(entry)
    return entry


class Filter(Strict):
    """`rules` are applied in order; a rule with parameters is written `{name: {parameter: value}}`."""

    rules: list[Annotated[RuleEntry, AfterValidator(_one_rule)]] = Field(min_length=1)
    select: Select = Select()
    mix: list[MixSource] = []

    @field_validator("rules")
    @classmethod
    def _each_rule_once(cls, rules: list[RuleEntry]) -> list[RuleEntry]:
        names = [rule_name(entry) for entry in rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the rule '{name}' stands here {names.count(name)} times")
        return rules

    @model_validator(mode="after")
    def _wrong_traces_are_told_apart(self) -> Self:
        if self.select.unsolved != "drop" and "correct" not in map(rule_name, self.rules):
            raise ValueError(
                "select.unsolved: keep_one is an exception from the rule correct, which is not among the "
                "rules: without it wrong traces are kept like right ones"
            )
        return self

    @field_validator("mix")
    @classmethod
    def _each_name_once(cls, mix: list[MixSource]) -> list[MixSource]:
        names = [source.name for source in mix]
        if len(set(names)) < len(names):
            raise ValueError("two entries of the mix have the same name")
        return mix


class Judge(Strict):
    """A model that verifies, for problems whose verifier is `judge` and, where `second_opinion` names their
    verifier, for what that found unverifiable. It is asked once, greedily, behind generate and in eval.

    `model` is a teacher's card. `canaries` is the share of its work whose verdict is known; a judge that
    accepts more than `max_false_accept` of those it must refuse, or refuses more than `max_false_reject` of
    the golds themselves, is refused. vLLM in this process holds its reply to JSON from the first token, so a
    judge that is to think first is served, with its reasoning parser.
    """

    model: str
    prompt: Literal["judge"] = "judge"  # the one that asks for the reply that is read
    max_tokens: Count = 2048
    second_opinion: list[Literal["any"] | Comparing] = []
    canaries: float = Field(default=0.02, ge=0.02, le=0.5)
    max_false_accept: Share = 0.02
    max_false_reject: Share = 0.1


class Lora(Strict):
    rank: Count = 16
    alpha: float = Field(default=32.0, gt=0)
    dropout: Share = 0.0
    variant: Literal["plain", "rslora", "dora"] = "plain"


class Train(Strict):
    """`batch_size` is the global batch in examples; the per-device batch is derived, never stated here.

    `held_out_share` of the problems is not trained on; its loss is taken `evaluations` times a run, and with
    `early_stopping` the run ends after so many evaluations without a better one, and the best one is kept.
    """

    student: str
    method: Literal["full", "lora", "qlora"]
    epochs: float = Field(gt=0)
    learning_rate: float = Field(gt=0)
    batch_size: Count = 32
    max_length: Count
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    min_learning_rate_ratio: Share = 0.0
    warmup_ratio: Share = 0.03
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    lora: Lora = Lora()
    max_dropped_share: Share = 0.1
    held_out_share: float = Field(default=0.0, ge=0, lt=1)
    evaluations: Count = 10
    early_stopping: Count | None = None

    @model_validator(mode="after")
    def _early_stopping_needs_a_held_out_slice(self) -> "Train":
        if self.early_stopping is not None and not self.held_out_share:
            raise ValueError("early_stopping needs held_out_share, for example 0.02")
        return self


Compared = Literal["base", "student", "teacher"]
# keys of a task's entry in results.json that an extra model cannot be called
RESERVED_NAMES = {"judge", "paired", "gap_recovered", "budget", "forced_budget", "contamination", "task"}


class ExtraModel(Strict):
    """A model that is only compared: `student` or `teacher` names the card that says how it is asked, and a
    student's card may be given another `checkpoint`. A served one is a flag: --url <name>=http://..."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]  # it names files
    student: str | None = None
    teacher: str | None = None
    checkpoint: str | None = None

    @model_validator(mode="after")
    def _one_card(self) -> "ExtraModel":
        if (self.student is None) == (self.teacher is None):
            raise ValueError("name one card, either student or teacher")
        if self.checkpoint is not None and self.student is None:
            raise ValueError("a checkpoint is read with a student's card; name it")
        if self.name in RESERVED_NAMES.union(get_args(Compared)):
            raise ValueError(f"the name '{self.name}' is taken; choose another")
        return self


class Eval(Strict):
    """`prompt` and `sampling` are those of generate unless given; the same for every model compared.

    `samples` of each question and model; null takes the task card's usual number (1 where there is no card).
    `forced_budgets`: numbers of thinking tokens to close after, with the answer sampled anew.
    """

    tasks: list[Task] = Field(min_length=1)
    samples: Count | None = None
    compare: list[Compared] = ["base", "student", "teacher"]
    extra: list[ExtraModel] = []
    forced_budgets: list[Count] = []
    prompt: PromptName | None = None
    sampling: Sampling | None = None

    @property
    def models(self) -> list[str]:
        """The names of all models that are compared."""
        return [*self.compare, *[extra.name for extra in self.extra]]

    @model_validator(mode="after")
    def _each_model_once(self) -> "Eval":
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"compare: {self.models}: a model stands here twice (extra is counted in)")
        if not self.models:
            raise ValueError("compare: nothing would be measured; name base, student or teacher")
        return self

    @field_validator("tasks")
    @classmethod
    def _names_of_tasks(cls, tasks: list[Task]) -> list[Task]:
        for task in tasks:
            if isinstance(task, FileSource) and task.majority is not None:
                raise ValueError("majority is for training problems: a task is scored against gold answers")
        names = [task_name(task) for task in tasks]
        for name in names:
            if not re.fullmatch(SAFE_NAME, name) or len(name) > MAX_NAME_LENGTH:
                raise ValueError(
                    f"a task is called {name!r}, and its name becomes that of files: letters, digits, '.', "
                    f"'_' and '-' only, {MAX_NAME_LENGTH} at most; give it a `name:`"
                )
            if name == "all":
                raise ValueError("a task cannot be called 'all', which is the pool of all tasks")
            if names.count(name) > 1:
                raise ValueError(f"two tasks are called '{name}'; give one of them a `name:`")
        return tasks


class Report(Strict):
    """A price turns engine time into money in the report's ledger."""

    price_per_engine_hour: float | None = Field(default=None, ge=0)
    currency: str = "USD"


class Recipe(Strict):
    name: Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    problems: Problems
    generate: Generate
    judge: Judge | None = None
    filter: Filter
    train: Train
    eval: Eval
    report: Report = Report()

    @model_validator(mode="before")
    @classmethod
    def _verifier_is_no_section(cls, values: Any) -> Any:
        if isinstance(values, dict) and "verifier" in values:
            raise ValueError(f"verifier: {SECOND_OPINION}")
        return values

    @field_validator("name")
    @classmethod
    def _name_is_a_directory(cls, value: str) -> str:
        if not re.fullmatch(SAFE_NAME, value):
            raise ValueError("a name becomes a directory under runs/: letters, digits, '.', '_' and '-' only")
        return value

    @model_validator(mode="after")
    def _names_of_sources(self) -> "Recipe":
        known = source_names(self.problems.sources)
        for name in self.filter.select.per_source:  # a cap on another would cap nothing
            if name not in known:
                raise ValueError(f"filter.select.per_source.{name}: unknown source; {nearest(name, known)}")
        for position, entry in enumerate(self.filter.mix):
            if entry.name in known:
                raise ValueError(
                    f"filter.mix[{position}].name: '{entry.name}' is a source of problems already, and "
                    "counts are by name; give the mix another"
                )
        return self

    @model_validator(mode="after")
    def _a_judge_where_one_is_needed(self) -> "Recipe":
        rows = [*self.problems.sources, *self.eval.tasks]
        verifiers = {row.verifier for row in rows if isinstance(row, Rows)}
        if self.judge is None and "judge" in verifiers:
            raise ValueError("verifier: judge needs a section judge: that names the `model` that verifies")
        by_card = any(isinstance(row, CardTask) for row in rows)  # the card names its verifier
        if self.judge and not by_card and verifiers.isdisjoint({"judge", *self.judge.second_opinion}):
            raise ValueError(
                "judge: nothing reaches it. Give a source or a task `verifier: judge`, name a verifier in "
                f"judge.second_opinion (in use: {', '.join(sorted(verifiers)) or 'none that can be'}), or "
                "leave the section out"
            )
        return self

    @model_validator(mode="after")
    def _a_majority_is_of_answers_that_compare(self) -> "Recipe":
        known = get_args(Comparing)
        for source in self.problems.sources:
            if isinstance(source, RowSource) and source.majority and source.verifier not in known:
                raise ValueError(
                    f"source {source_name(source)}: a majority is of answers that verifier "
                    f"{' or '.join(known)} compares, found {source.verifier!r}"
                )
        return self

    @model_validator(mode="after")
    def _an_answer_can_follow_the_thinking(self) -> "Recipe":
        budgets, limit = self.eval.forced_budgets, self.eval_sampling.max_tokens
        if any(budget >= limit for budget in budgets):
            raise ValueError(
                f"eval.forced_budgets: {budgets}: each must be below max_tokens ({limit}), so that an answer "
                "can follow the thinking"
            )
        return self

    @property
    def eval_sampling(self) -> Sampling:
        """The sampling of every model compared: eval's own, else the one of the traces."""
        return self.eval.sampling or self.generate.sampling


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read, override and validate a recipe. `overrides` are `section.key=value` strings (`--set`)."""
    values = read_mapping(path, "recipe")
    where = str(path)
    for override in overrides or []:
        _override(values, override)
        where = f"{path} with --set {override}" if len(overrides or []) == 1 else f"{path} with --set"
    return validate(Recipe, values, where)


def _override(values: dict[str, Any], override: str) -> None:
    """Set one value in place. The last key may be new: the schema decides whether it is valid."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override}: expected section.key=value, for example --set train.epochs=1")
    *sections, key = path.strip().split(".")
    target = values
    for section in sections:
        inner = target.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(
                f"--set {override}: '{section}' holds {type(inner).__name__}, not a section with keys"
            )
        target = inner
    target[key] = parse(text, f"--set {override}")
