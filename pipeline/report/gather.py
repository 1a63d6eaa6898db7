"""What the report says, as plain values: the manifests, the scores, the funnel, the models, the sources.

Reads the manifests of the finished stages of a run and the files that the table of stages says are shown;
writes nothing.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.context import CHECKPOINT, Context
from pipeline.recipe.cards import Tags, TeacherCard, card_names
from pipeline.recipe.schema import Recipe
from pipeline.records import Problem, read_lines
from pipeline.report.against import Against
from pipeline.report.numbers import short
from pipeline.report.results import RESULTS, Results, TaskResult, read_results
from pipeline.rows import json_lines
from pipeline.run.contract import Manifest
from pipeline.run.stages import BY_NAME, STAGES


@dataclass(frozen=True, slots=True)
class Step:
    """One bar of the funnel: what is left after a stage, and what it dropped or failed by reason."""

    stage: str
    label: str
    count: int
    lost: dict[str, int]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What stands behind a name: its hub id or directory, its card, what identifies its weights, what its
    licence says, and how its responses are split."""

    name: str
    model: str
    card: str
    weights: str
    licence: str
    outputs: str
    tags: Tags


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the three files of the report are written from.

    `metrics` are the rows of metrics.jsonl of each stage that leaves a checkpoint, `sources` counts problems
    by source and licence.
    """

    context: Context
    manifests: dict[str, Manifest]
    results: Results
    metrics: dict[str, list[dict[str, Any]]]
    models: dict[str, ModelFacts]
    sources: Counter[tuple[str, str]]
    against: Against | None

    @property
    def recipe(self) -> Recipe:
        return self.context.recipe

    def pool_first(self) -> list[tuple[str, TaskResult]]:
        """The tasks with their results, the headline one first."""
        head, entry = self.headline
        names = [name for name in self.results.task_names if name != head]
        return [(head, entry), *[(name, self.results.tasks[name]) for name in names]]

    @property
    def headline(self) -> tuple[str, TaskResult]:
        return self.results.headline


def gather(context: Context, manifests: dict[str, Manifest], against: Against | None = None) -> Findings:
    """Read what is there of a run, the results of eval at least."""
    results = read_results(context.directory("eval") / RESULTS)
    path = context.directory("problems") / "problems.jsonl"
    problems = read_lines(Problem, path) if path.is_file() else ()
    return Findings(
        context=context,
        manifests=manifests,
        results=results,
        metrics={
            name: [line.values or {} for line in json_lines(context.directory(name) / "metrics.jsonl")]
            for name in manifests
            if BY_NAME[name].checkpoint
        },
        models={name: model_facts(name, context, found) for name, found in results.models.items()},
        sources=Counter((problem.source, problem.licence) for problem in problems),
        against=against,
    )


def model_facts(name: str, context: Context, identity: dict[str, Any]) -> ModelFacts:
    """From the model's card and the identity that eval recorded."""
    weights = short(identity.get("content") or identity.get("revision") or "unknown")
    card_name, card = context.card(name)
    if isinstance(card, TeacherCard):
        path, outputs = card_place("teacher", card_name), card.training_on_outputs
        return ModelFacts(name, card.model, path, weights, card.licence, outputs, card.thinking)
    extra = context.extra.get(name)
    stage = context.student_stages.get(name)
    trained = f"{stage}/{CHECKPOINT}" if stage else None
    checkpoint = extra.checkpoint if extra else trained
    licence = f"as its base: {card.licence}" if checkpoint else card.licence
    path = card_place("student", card_name)
    return ModelFacts(name, checkpoint or card.model, path, weights, licence, "-", card.thinking)


def card_place(kind: Literal["teacher", "student"], name: str) -> str:
    """Our card's file; for a card of the user's what the recipe calls it, and the recipe says the rest."""
    return f"{kind}s/cards/{name}.yaml" if name in card_names(kind) else f"{name}, stated in the recipe"


def funnel_of(manifests: dict[str, Manifest]) -> list[Step]:
    """From rows read to examples trained on; every loss by its reason."""
    steps: list[Step] = []
    for name, manifest in manifests.items():
        stage, counts = BY_NAME[name], manifest.counts
        if not stage.unit:
            continue
        if stage is STAGES[0]:
            steps.append(Step(name, "rows read", counts.num_in, {}))
        lost = {**counts.dropped, **{f"failed: {kind}": number for kind, number in counts.failed.items()}}
        steps.append(Step(name, stage.unit, counts.kept, dict(Counter(lost).most_common())))
    return steps
