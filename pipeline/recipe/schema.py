"""A recipe: one experiment, one YAML file, its sections the stages in order.

Strict: an unknown key, a wrong type or an impossible value is a RecipeError that names the file, the path
of the key, what was found and the nearest valid key. What changes the result is here; how it runs
(engine, URLs, devices, concurrency) is a flag and never here.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.errors import RecipeError
from pipeline.recipe.names import MAX_NAME_LENGTH, SAFE_NAME, LocalPath, Located, as_written, beside, is_yaml
from pipeline.recipe.prompts import PromptName
from pipeline.recipe.rule_entry import RuleEntry, rule_name
from pipeline.recipe.sources import (
    SECOND_OPINION,
    CardTask,
    Comparing,
    Count,
    FileSource,
    MixSource,
    Problems,
    Rows,
    RowSource,
    Share,
    Task,
    source_name,
    source_names,
    task_name,
)
from pipeline.recipe.strict_yaml import Strict, nearest, parse, read_mapping, validate

Seed = Annotated[int, Field(ge=0, lt=2**31)]
MAX_TOP_LOGPROBS = 20  # what vLLM and the servers give unasked


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
    """Names and meanings are vLLM's SamplingParams; `top_k` 0 means all tokens.

    A response ends before the first text of `stop`. `seed: off` sends no seed with a sample, for a server
    that refuses one or an engine that is slow with it: a second run says other things, a resume buys nothing
    twice as before.
    """

    temperature: float = Field(ge=0, le=10)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: Share = 0.0
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    stop: list[Annotated[str, Field(min_length=1)]] = []
    seed: Literal["per_sample", "off"] = "per_sample"
    max_tokens: Count

    def settings(self) -> dict[str, Any]:
        """What results state: all that is common, and of the rest what differs from the default."""
        rare = {"repetition_penalty", "presence_penalty", "stop", "seed"}
        return self.model_dump(exclude=rare) | self.model_dump(include=rare, exclude_defaults=True)


def _names_a_model(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("model"), str)):
        return value
    raise ValueError(
        "a model is the name of a card, the path of a card's .yaml file, or {model: <hub id or directory>} "
        "with a card's keys beside it"
    )


def _located(value: Any, info: ValidationInfo) -> Any:
    folder = (info.context or {}).get("folder")
    if isinstance(value, str):
        return Located.of(value, folder) if is_yaml(value) else value
    paths = [key for key in ("model", "template") if isinstance(value.get(key), str)]
    return value | {key: beside(value[key], folder) for key in paths}


# how a recipe names a model: a card of ours, the path of the user's card, or the keys of one
Entry = Annotated[
    str | dict[str, Any],
    BeforeValidator(_names_a_model),
    AfterValidator(_located),
    PlainSerializer(as_written),
]


class Generate(Strict):
    """`keep_tokens` stores every response's token ids, and the log-probabilities of its sampled tokens;
    `top_logprobs` those of so many of the most likely tokens at each place beside.

    `seed` samples other traces of the same problems; null takes the recipe's. The teacher is asked about
    `share` of the problems alone, drawn by the recipe's seed: polish asks the student about all of them.
    """

    teacher: Entry
    prompt: PromptName = "boxed"
    samples: Samples
    sampling: Sampling
    max_failure_rate: Share = 0.02
    accept_licence: str | None = None
    keep_tokens: bool = False
    seed: Seed | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0

    @model_validator(mode="after")
    def _tokens_are_kept(self) -> Self:
        if self.top_logprobs and not self.keep_tokens:
            raise ValueError("top_logprobs stand beside the sampled tokens: set keep_tokens: true")
        return self


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

    `prefer: likely` are the traces whose tokens the base finds the most probable on average; `surprising`
    those that the teacher finds more probable than the base by the most (DASD, arXiv 2601.09088).
    """

    per_problem: Count = 1
    prefer: Literal["shortest", "first", "random", "likely", "surprising"] = "shortest"
    difficulty: Buckets = []
    lengths: Buckets = []
    per_source: dict[str, Count] = {}
    max_tokens: Count | None = None
    unsolved: Literal["drop", "keep_one"] = "drop"


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

    `model` is a teacher. `canaries` is the share of its work whose verdict is known; a judge that
    accepts more than `max_false_accept` of those it must refuse, or refuses more than `max_false_reject` of
    the golds themselves, is refused. vLLM in this process holds its reply to JSON from the first token, so a
    judge that is to think first is served, with its reasoning parser.
    """

    model: Entry
    prompt: Literal["judge"] = "judge"  # the one that asks for the reply that is read
    max_tokens: Count = 2048
    second_opinion: list[Literal["any"] | Comparing] = []
    canaries: float = Field(default=0.02, ge=0.02, le=0.5)
    max_false_accept: Share = 0.02
    max_false_reject: Share = 0.1


class Lora(Strict):
    """`tokens` are trained too, each its rows of the embeddings: those that the base never learned."""

    rank: Count = 16
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of all inputs nothing would be learned
    variant: Literal["plain", "rslora", "dora"] = "plain"
    tokens: list[str] = []


Order = Literal["random", "short_first", "bucketed"]


class TopkLoss(Strict):
    """Learn the teacher's distribution and not its sampled token alone: the forward divergence over its
    `topk_kl` most likely tokens and all others as one, from the log-probabilities that generate stored."""

    topk_kl: Annotated[int, Field(ge=1, le=MAX_TOP_LOGPROBS)]


class Train(Strict):
    """`batch_size` is the global batch in examples; the per-device batch is derived, never stated here.

    `order`: random; each epoch from short to long; or in stages of growing length, each with all its epochs.
    `held_out_share` of the problems is not trained on; its loss is taken `evaluations` times a run, and with
    `early_stopping` the run ends after so many evaluations without a better one, and the best one is kept.
    Better is `stop_on`: over many epochs of few examples the loss rises while answers still get better, and
    pass_rate has held-out problems answered.
    `seed` orders the same examples otherwise, and starts another adapter; null takes the recipe's.
    """

    student: Entry
    method: Literal["full", "lora", "qlora"]
    epochs: float = Field(gt=0)
    learning_rate: float = Field(gt=0)
    batch_size: Count = 32
    order: Order = "random"
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
    stop_on: Literal["loss", "token_accuracy", "pass_rate"] = "loss"
    seed: Seed | None = None
    loss: Literal["nll"] | TopkLoss = "nll"

    @model_validator(mode="after")
    def _early_stopping_needs_a_held_out_slice(self) -> "Train":
        if self.early_stopping is not None and not self.held_out_share:
            raise ValueError("early_stopping needs held_out_share, for example 0.02")
        if self.early_stopping is None and self.stop_on != "loss":
            raise ValueError("stop_on says what early_stopping looks at; set that too, for example to 2")
        return self

    @model_validator(mode="after")
    def _stored_distributions_count_no_right_tokens(self) -> Self:
        if isinstance(self.loss, TopkLoss) and self.stop_on == "token_accuracy":
            raise ValueError(
                "stop_on: token_accuracy is not measured where the loss is topk_kl; set stop_on: loss"
            )
        return self


class Polish(Strict):
    """On-policy distillation: the student samples, the teacher says what it would have written instead.

    A round samples `samples` responses of at most `max_tokens` tokens to each of `problems_per_round` of the
    training problems at temperature 1, and learns from them in updates of `batch_size` responses.
    `divergence`: reverse_kl, forward_kl or jsd over the whole vocabulary, which need the teacher's weights
    here; sampled needs but the probabilities that the teacher gives to the sampled tokens, and takes those
    from servers too. Every `evaluate_every` rounds the problems that train.held_out_share keeps from all
    training are answered, at most `held_out` of them; three times without a better pass rate end it, and the
    best weights are kept.
    """

    rounds: Count
    problems_per_round: Count = 128
    samples: Count = 1
    max_tokens: Count
    divergence: Literal["reverse_kl", "jsd", "forward_kl", "sampled"] = "reverse_kl"
    learning_rate: float = Field(gt=0)
    method: Literal["full", "lora"] = "full"
    lora: Lora = Lora()
    batch_size: Count = 32
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "linear"
    min_learning_rate_ratio: Share = 0.1
    warmup_ratio: Share = 0.03
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    held_out: Annotated[int, Field(ge=0)] = 128
    evaluate_every: Count = 10

    @model_validator(mode="after")
    def _whole_updates(self) -> "Polish":
        responses = self.problems_per_round * self.samples
        if responses % self.batch_size:
            raise ValueError(
                f"a round has problems_per_round x samples = {responses} responses, which updates of "
                f"batch_size {self.batch_size} do not divide; change one of them"
            )
        return self

    @model_validator(mode="after")
    def _adapters_alone(self) -> Self:
        if self.lora.tokens:
            raise ValueError(
                "lora.tokens are trained by train.lora alone, and polish starts from what that taught; "
                "leave them out here"
            )
        return self


# `unpolished` is the student before polish
Compared = Literal["base", "unpolished", "student", "teacher"]
# keys of a task's entry in results.json that an extra model cannot be called
RESERVED_NAMES = {"judge", "paired", "gap_recovered", "budget", "forced_budget", "contamination", "task"}


class ExtraModel(Strict):
    """A model that is only compared: `student` or `teacher` names the card that says how it is asked, and a
    student's card may be given another `checkpoint`. A served one is a flag: --url <name>=http://..."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]  # it names files
    student: Entry | None = None
    teacher: Entry | None = None
    checkpoint: LocalPath | None = None

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
    `forced_budgets`: numbers of thinking tokens to close after, with the answer sampled anew. `thinking:
    false` asks every model in the mode that its card calls `without_thinking`, true in the other; null asks
    the student and its base in the mode that the student's examples were in.
    """

    tasks: list[Task] = Field(min_length=1)
    samples: Count | None = None
    compare: list[Compared] = ["base", "student", "teacher"]  # with polish, unpolished too
    extra: list[ExtraModel] = []
    forced_budgets: list[Count] = []
    thinking: bool | None = None
    prompt: PromptName | None = None
    sampling: Sampling | None = None

    @property
    def models(self) -> list[str]:
        """The names of all models that are compared."""
        return [*self.compare, *[extra.name for extra in self.extra]]

    @model_validator(mode="after")
    def _thinking_is_forced_where_there_is_some(self) -> "Eval":
        if self.forced_budgets and self.thinking is False:
            raise ValueError("forced_budgets close the thinking, and thinking: false asks for none")
        return self

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
            if isinstance(task, FileSource) and task.verifier == "none":
                raise ValueError("verifier: none is for training problems: a task is scored by a verifier")
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


class TokenPrice(Strict):
    """What a vendor takes for a million tokens that the teacher reads (`input`) and writes (`output`)."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    currency: str = "USD"

    def of(self, prompt_tokens: float, output_tokens: float) -> float:
        return (prompt_tokens * self.input + output_tokens * self.output) / 1e6

    def __str__(self) -> str:
        return f"{self.input:g} and {self.output:g} {self.currency} a million"


class Report(Strict):
    """Prices turn engine time, or the teacher's tokens where a vendor is paid by them, into money: in the
    report's ledger and, for tokens, on the bill of `plan`."""

    price_per_engine_hour: float | None = Field(default=None, ge=0)
    currency: str = "USD"
    price: TokenPrice | None = None


class Recipe(Strict):
    name: Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
    seed: Seed = 0
    problems: Problems
    generate: Generate
    judge: Judge | None = None
    filter: Filter
    train: Train
    polish: Polish | None = None
    eval: Eval
    report: Report = Report()

    @model_validator(mode="before")
    @classmethod
    def _verifier_is_no_section(cls, values: Any) -> Any:
        if isinstance(values, dict) and "verifier" in values:
            raise ValueError(f"verifier: {SECOND_OPINION}")
        return values

    @model_validator(mode="before")
    @classmethod
    def _polished_is_compared_with_unpolished(cls, values: Any) -> Any:
        """Where the recipe has polish and does not say what eval compares, both students are measured."""
        if isinstance(values, dict) and values.get("polish") is not None:
            section = values.get("eval")
            if isinstance(section, dict) and "compare" not in section:
                return {**values, "eval": {**section, "compare": list(get_args(Compared))}}
        return values

    @model_validator(mode="after")
    def _polish_is_measured_on_what_train_held_out(self) -> "Recipe":
        if self.polish is not None and self.polish.held_out and not self.train.held_out_share:
            raise ValueError(
                f"polish.held_out: {self.polish.held_out} problems are to be answered on which nothing was "
                "trained, and train.held_out_share holds none out. Set train.held_out_share, for example "
                "0.05, or polish.held_out: 0 (then the last round's weights are the student)"
            )
        return self

    @model_validator(mode="after")
    def _what_is_learnt_from_is_stored(self) -> "Recipe":
        generate, loss = self.generate, self.train.loss
        if isinstance(loss, TopkLoss) and generate.top_logprobs < loss.topk_kl:
            raise ValueError(
                f"train.loss: topk_kl {loss.topk_kl} learns from that many stored log-probabilities of each "
                f"token, and generate stores {generate.top_logprobs}. Set generate.keep_tokens: true and "
                f"generate.top_logprobs: {loss.topk_kl}"
            )
        if self.filter.select.prefer == "surprising" and not generate.keep_tokens:
            raise ValueError(
                "filter.select.prefer: surprising compares with the log-probabilities that the teacher gave "
                "to its tokens; set generate.keep_tokens: true"
            )
        return self

    @model_validator(mode="after")
    def _unpolished_is_of_a_recipe_with_polish(self) -> "Recipe":
        if self.polish is None and "unpolished" in self.eval.compare:
            raise ValueError(
                "eval.compare: unpolished is the student before polish, and this recipe has no section polish"
            )
        return self

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
    def _nothing_is_correct_where_nobody_verifies(self) -> "Recipe":
        for source in self.problems.sources:
            unverified = isinstance(source, RowSource) and source.verifier == "none"
            if unverified and "correct" in map(rule_name, self.filter.rules):
                raise ValueError(
                    f"source {source_name(source)}: verifier: none calls no trace correct, and the rule "
                    "correct would drop all of its traces: leave it out of filter.rules, or give the source "
                    "`majority` or `verifier: judge`"
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

    def prompts_named(self) -> list[tuple[str, str]]:
        """Each key that names a prompt, and what it names."""
        keys = {"generate.prompt": self.generate.prompt, "eval.prompt": self.eval.prompt}
        for key, entries in (("problems.sources", self.problems.sources), ("eval.tasks", self.eval.tasks)):
            keys |= {f"{key}[{position}].prompt": entry.prompt for position, entry in enumerate(entries)}
        return [(key, name) for key, name in keys.items() if name is not None]

    @property
    def generate_seed(self) -> int:
        """The seed of the teacher's samples: generate's own, else the recipe's."""
        return self.seed if self.generate.seed is None else self.generate.seed

    @property
    def train_seed(self) -> int:
        """The seed of the order of training: train's own, else the recipe's."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def eval_sampling(self) -> Sampling:
        """The sampling of every model compared: eval's own, else the one of the traces."""
        return self.eval.sampling or self.generate.sampling


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read, override and validate a recipe. `overrides` are `section.key=value` strings (`--set`)."""
    values = read_mapping(path, "recipe")
    where = str(path)
    for each in overrides or []:
        set_value(values, each)
        where = f"{path} with --set {each}" if len(overrides or []) == 1 else f"{path} with --set"
    return validate(Recipe, values, where, path.parent)


def set_value(values: dict[str, Any], override: str) -> None:
    """Set one value in place; a number leads into a list: problems.sources.0.limit=24. The last key of a
    section may be new: the schema decides whether it is valid."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override}: expected section.key=value, for example --set train.epochs=1")
    *sections, last = path.strip().split(".")
    target: Any = values
    for section in sections:
        key = _key_in(target, section, override)
        target = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
        if not isinstance(target, dict | list):
            raise RecipeError(
                f"--set {override}: '{section}' holds {type(target).__name__}, not a section with keys"
            )
    target[_key_in(target, last, override)] = parse(text, f"--set {override}")


def _key_in(target: dict[str, Any] | list[Any], word: str, override: str) -> Any:
    """The key that a part of a path is: the word itself, or of a list a position that it has."""
    if isinstance(target, dict):
        return word
    if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) < len(target)):
        raise RecipeError(
            f"--set {override}: '{word}' is no entry of a list of {len(target)}; the entries are 0 to "
            f"{len(target) - 1}, as in problems.sources.0.limit=24"
        )
    return int(word)
