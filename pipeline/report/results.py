"""results.json as records: every score with its interval, every comparison paired; the layout stands here.

eval writes it, report and compare read it. eval/results.md says what each key means; in the file the models
of a task stand beside `paired`, `budget` and the like, in the record they are `TaskResult.models`.
"""

import json
from pathlib import Path
from typing import Any, Self

import msgspec

from pipeline.errors import StageError, in_one_line
from pipeline.recipe.schema import Sampling

RESULTS = "results.json"
POOLED = "all"  # every question of every task as one set
NAMES = {"pass_at_1": "pass@1", "pass_at_k": "pass@k", "cons_at_k": "cons@k"}

Interval = tuple[float, float]


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, rename=NAMES):
    """What every record here is: fields in the file's order; one that has its default is left out."""


class Estimate(Entry, frozen=True):
    """A value with its 95% interval; a score is never passed on without one."""

    value: float
    ci95: Interval


class Gap(Entry, frozen=True):
    """The share of teacher - base that the student recovered.

    None, with a `reason`, where teacher - base is not above zero beyond doubt and the ratio means nothing.
    """

    value: float | None
    ci95: Interval | None
    reason: str | None


class Consensus(Entry, frozen=True):
    """The score of the most frequent answer; None, with a `reason`, where answers cannot be counted."""

    value: float | None
    ci95: Interval | None
    reason: str | None = None


class ScoreIntervals(Entry, frozen=True):
    """`mean_tokens` has none at one question, and where a server has not counted them."""

    mean_tokens: Interval | None
    truncated: Interval
    no_answer: Interval


class Score(Entry, frozen=True):
    """All scores of one model on one task; shares from 0 to 1. `pass_at_k` is by the number of samples."""

    n: int
    k: int
    pass_at_1: float
    ci95: Interval
    pass_at_k: dict[int, Estimate]
    cons_at_k: Consensus
    mean_tokens: float | None
    truncated: float
    no_answer: float
    unverifiable: float
    failed: int
    intervals: ScoreIntervals


class PairedDifference(Entry, frozen=True):
    """A difference of pass@1 on the same questions; `p_holm` is absent in the pool of all tasks.

    `mde`: the smallest true difference that this n finds in 80% of cases; `test` names where `p` comes from.
    """

    delta: float
    ci95: Interval
    p: float
    test: str
    mde: float
    p_holm: float | None = None


class BudgetPoint(Entry, frozen=True):
    """The score that the same samples have under a smaller token limit."""

    max_tokens: int
    pass_at_1: float
    ci95: Interval


class ForcedPoint(Entry, frozen=True):
    """The score where the thinking was closed by force after so many tokens."""

    thinking_tokens: int
    pass_at_1: float
    ci95: Interval
    mean_tokens: float


class PartScore(Entry, frozen=True):
    """A score on some of the questions."""

    n: int
    pass_at_1: float
    ci95: Interval


class Contamination(Entry, frozen=True):
    """How many questions training has seen, by rule; `without_flagged` is by model, None where none is."""

    questions: int
    flagged: int
    rules: dict[str, int]
    without_flagged: dict[str, PartScore] | None


class JudgeRate(Entry, frozen=True):
    """How often the judge was mistaken on canaries."""

    mistaken: int
    total: int
    rate: float
    ci95: Interval


class JudgeFacts(Entry, frozen=True):
    """Who told what verifiers could not: `samples` by the status that the judge gave them, `cases` the
    different ones among them."""

    model: dict[str, Any]
    prompt: str
    cases: int
    samples: dict[str, int]
    canaries: int
    false_accept: JudgeRate
    false_reject: JudgeRate


class TaskFacts(Entry, frozen=True):
    """`version` is the task card's; None without one."""

    version: int | None
    licence: str


class TaskResult(Entry, frozen=True, kw_only=True):
    """One task, or the pool of all. Scores, curves and forced points are by model, `paired` by first-second.

    `task` is None of the pool, `contamination` where no student was compared, `gap_recovered` where one of
    base, student and teacher was not.
    """

    models: dict[str, Score]
    paired: dict[str, PairedDifference]
    gap_recovered: Gap | None = None
    budget: dict[str, list[BudgetPoint]]
    forced_budget: dict[str, list[ForcedPoint]] = {}
    task: TaskFacts | None = None
    contamination: Contamination | None = None


class Results(Entry, frozen=True):
    """`models` is the identity of each model, `prompt` the style by task, `verifier` the version by name;
    `judge` is None where none was needed."""

    tasks: dict[str, TaskResult]
    models: dict[str, dict[str, Any]]
    sampling: Sampling
    prompt: dict[str, str]
    verifier: dict[str, str]
    versions: dict[str, str]
    judge: JudgeFacts | None = None

    @property
    def task_names(self) -> list[str]:
        """The tasks of the recipe, without the pool of all."""
        return [name for name in self.tasks if name != POOLED]

    @property
    def headline(self) -> tuple[str, TaskResult]:
        """The pool of all tasks; the first task where it is the only one, or tasks have different k."""
        names = self.task_names
        name = POOLED if POOLED in self.tasks and len(names) > 1 else names[0]
        return name, self.tasks[name]

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = msgspec.to_builtins(self, str_keys=True, enc_hook=Sampling.settings)
        values["tasks"] = {name: entry.pop("models") | entry for name, entry in values["tasks"].items()}
        return values

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """ValueError on what is not a results.json of this version."""
        try:
            tasks = {name: _apart(entry) for name, entry in values["tasks"].items()}
            return msgspec.convert({**values, "tasks": tasks}, cls, str_keys=True, dec_hook=_sampling_of)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None


def _apart(entry: dict[str, Any]) -> dict[str, Any]:
    """A task's entry with its models under a key of their own."""
    own = {name: value for name, value in entry.items() if name in TaskResult.__struct_fields__}
    return {**own, "models": {name: score for name, score in entry.items() if name not in own}}


def _sampling_of(kind: type, value: Any) -> Any:
    """The one field that msgspec cannot read by itself."""
    return Sampling.model_validate(value)


def write_results(path: Path, results: Results) -> None:
    text = json.dumps(results.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_results(path: Path) -> Results:
    """The results of a finished eval. StageError where they cannot be read."""
    try:
        return Results.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise StageError(f"{path}: cannot be read ({error.strerror}). Run: make eval") from None
    except ValueError as error:
        raise StageError(
            f"{path}: does not hold the results of this version ({in_one_line(error, 300)}). Run "
            "eval again with FORCE=1 (the directory is moved, not deleted, and its samples are adopted)"
        ) from None
