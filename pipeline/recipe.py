"""A recipe: one experiment, one YAML file, its sections the stages in order.

Strict: an unknown key, a wrong type or an impossible value is a RecipeError that names the file, the path
of the key, what was found and the nearest valid key. What changes the result is here; how it runs
(engine, URLs, devices, concurrency) is a flag and never here.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from pipeline.compared import Compared, ExtraModel
from pipeline.errors import RecipeError
from pipeline.names import MAX_NAME_LENGTH, SAFE_NAME, HubId, SafeName
from pipeline.render import PROMPTS
from pipeline.rule_parameters import parse_rule
from pipeline.strict_yaml import Strict, nearest, parse, read_mapping, validate

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Columns(Strict):
    """Which columns of a row hold the question and the gold answer; `metadata` columns go to the verifier.

    `options` of a choice question: one column with a list, or several columns that hold one option each.
    """

    question: str = "question"
    gold: str = "answer"
    metadata: list[str] = []
    options: list[str] = []


class ProceduralSource(Strict):
    """A family of reasoning-gym, by name and configuration; `size` questions that are not reserved."""

    reasoning_gym: str
    size: Count
    config: dict[str, Any] = {}
    name: SafeName | None = None
    weight: float | None = Field(default=None, gt=0)


class FileSource(Strict):
    """A local JSONL or Parquet file. `answer` says how the gold answer stands in its column."""

    path: str
    columns: Columns = Columns()
    answer: Literal["plain", "hashes", "boxed"] = "plain"
    verifier: str = "math"
    licence: str = "unknown"
    limit: Count | None = None
    name: SafeName | None = None
    weight: float | None = Field(default=None, gt=0)


class HubSource(Strict):
    """A data set on the hub. `revision` may be null: then it is resolved at the first run and recorded."""

    hub: HubId
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    columns: Columns = Columns()
    answer: Literal["plain", "hashes", "boxed"] = "plain"
    verifier: str = "math"
    licence: str = "unknown"
    limit: Count | None = None
    name: SafeName | None = None
    weight: float | None = Field(default=None, gt=0)


class CardTask(Strict):
    """A task card of eval/tasks/ by name; `path` serves an offline copy, `size` takes a seeded part."""

    task: str
    path: str | None = None
    size: Count | None = None
    name: SafeName | None = None


def _kind_of(keys: dict[str, str]) -> Any:
    def discriminate(value: Any) -> str | None:
        if isinstance(value, dict):
            return next((tag for key, tag in keys.items() if key in value), None)
        return f"tag:{type(value).__name__}"

    names = " or ".join(keys)
    return Discriminator(
        discriminate,
        custom_error_type="unknown_kind",
        custom_error_message=f"one entry is a mapping with the key {names}",
    )


Source = Annotated[
    Annotated[ProceduralSource, Tag("tag:ProceduralSource")]
    | Annotated[FileSource, Tag("tag:FileSource")]
    | Annotated[HubSource, Tag("tag:HubSource")],
    _kind_of({"reasoning_gym": "tag:ProceduralSource", "path": "tag:FileSource", "hub": "tag:HubSource"}),
]

Task = Annotated[
    Annotated[ProceduralSource, Tag("tag:ProceduralSource")]
    | Annotated[CardTask, Tag("tag:CardTask")]
    | Annotated[FileSource, Tag("tag:FileSource")],
    _kind_of({"reasoning_gym": "tag:ProceduralSource", "task": "tag:CardTask", "path": "tag:FileSource"}),
]


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
    if value not in PROMPTS:
        raise ValueError(f"unknown prompt style; {nearest(value, list(PROMPTS))}")
    return value


class Generate(Strict):
    teacher: str
    prompt: str = "boxed"
    samples: Samples
    sampling: Sampling
    max_failure_rate: Share = 0.02
    accept_licence: str | None = None

    _prompt = field_validator("prompt")(_known_prompt)


class Bucket(Strict):
    """A share of the examples, for those over `above` and at most `up_to`; null is no bound."""

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
    trained tokens: it is filled as far as whole examples can.
    """

    per_problem: Count = 1
    prefer: Literal["shortest", "first", "random"] = "shortest"
    difficulty: Buckets = []
    lengths: Buckets = []
    per_source: dict[str, Count] = {}
    max_tokens: Count | None = None


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


RuleEntry = str | dict[str, dict[str, Any]]


def _known_rule(entry: RuleEntry) -> RuleEntry:
    parse_rule(entry)
    return entry


class Filter(Strict):
    """`rules` are applied in order; a rule with parameters is written `{name: {parameter: value}}`."""

    rules: list[Annotated[RuleEntry, AfterValidator(_known_rule)]] = Field(min_length=1)
    select: Select = Select()
    mix: list[MixSource] = []

    @field_validator("rules")
    @classmethod
    def _each_rule_once(cls, rules: list[RuleEntry]) -> list[RuleEntry]:
        names = [parse_rule(entry)[0] for entry in rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the rule '{name}' stands here {names.count(name)} times")
        return rules

    @field_validator("mix")
    @classmethod
    def _each_name_once(cls, mix: list[MixSource]) -> list[MixSource]:
        names = [source.name for source in mix]
        if len(set(names)) < len(names):
            raise ValueError("two entries of the mix have the same name")
        return mix


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
    prompt: str | None = None
    sampling: Sampling | None = None

    @model_validator(mode="after")
    def _each_model_once(self) -> "Eval":
        names = [*self.compare, *[extra.name for extra in self.extra]]
        if len(set(names)) < len(names):
            raise ValueError(f"compare: {names}: a model stands here twice (extra is counted in)")
        if not self.compare and not self.extra:
            raise ValueError("compare: nothing would be measured; name base, student or teacher")
        return self

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, value: str | None) -> str | None:
        return value if value is None else _known_prompt(value)


class Report(Strict):
    """A price turns engine time into money in the report's ledger."""

    price_per_engine_hour: float | None = Field(default=None, ge=0)
    currency: str = "USD"


class Recipe(Strict):
    name: Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    problems: Problems
    generate: Generate
    filter: Filter
    train: Train
    eval: Eval
    report: Report = Report()

    @field_validator("name")
    @classmethod
    def _name_is_a_directory(cls, value: str) -> str:
        if not re.fullmatch(SAFE_NAME, value):
            raise ValueError("a name becomes a directory under runs/: letters, digits, '.', '_' and '-' only")
        return value

    @model_validator(mode="after")
    def _an_answer_can_follow_the_thinking(self) -> "Recipe":
        budgets, limit = self.eval.forced_budgets, (self.eval.sampling or self.generate.sampling).max_tokens
        if any(budget >= limit for budget in budgets):
            raise ValueError(
                f"eval.forced_budgets: {budgets}: each must be below max_tokens ({limit}), so that an answer "
                "can follow the thinking"
            )
        return self


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
