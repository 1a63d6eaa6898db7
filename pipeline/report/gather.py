"""What the report says, as plain values: the funnel, the scores, the cost, the provenance.

Reads the manifests of the finished stages of a run and eval's results.json; writes nothing.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cards import student_card, teacher_card
from pipeline.recipe import Recipe
from pipeline.report.against import Against
from pipeline.report.numbers import short
from pipeline.rows import Line, json_lines
from pipeline.stage import read_manifest

STAGES = ["problems", "generate", "filter", "train", "eval"]


@dataclass(frozen=True, slots=True)
class Step:
    """One bar of the funnel: what is left after a stage, and what it dropped or failed by reason."""

    stage: str
    label: str
    count: int
    lost: dict[str, int]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one stage took. Zero where it has no engine."""

    stage: str
    seconds: float
    engine_seconds: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What stands behind a name: its hub id or directory, its card, what identifies its weights, and what
    its licence says."""

    name: str
    model: str
    card: str
    weights: str
    licence: str
    outputs: str


@dataclass(frozen=True, slots=True)
class SourceFacts:
    name: str
    kept: int
    licence: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the three files of the report are written from."""

    recipe: Recipe
    manifests: dict[str, dict[str, Any]]
    results: dict[str, Any]
    funnel: list[Step]
    costs: list[Cost]
    metrics: list[dict[str, Any]]
    forecast: dict[str, Any]
    model_facts: list[ModelFacts]
    sources: list[SourceFacts]
    against: Against | None

    @property
    def models(self) -> list[str]:
        return list(self.results["models"])

    def pool_first(self) -> list[tuple[str, dict[str, Any]]]:
        """The tasks with their entries, the headline one first."""
        head, entry = self.headline
        return [(head, entry), *[(t, self.results["tasks"][t]) for t in self.tasks if t != head]]

    @property
    def tasks(self) -> list[str]:
        return [task for task in self.results["tasks"] if task != "all"]

    @property
    def headline(self) -> tuple[str, dict[str, Any]]:
        """The pool of all tasks; the first task where it is the only one, or tasks have different k."""
        held = self.results["tasks"]
        name = "all" if "all" in held and len(self.tasks) > 1 else self.tasks[0]
        return name, held[name]


def gather(recipe: Recipe, run: Path, against: Against | None = None) -> Findings:
    """Read what is there of a run, the results of eval at least."""
    found = {stage: read_manifest(run / stage) for stage in STAGES}
    manifests = {stage: manifest for stage, manifest in found.items() if manifest is not None}
    results = json.loads((run / "eval/results.json").read_text(encoding="utf-8"))
    return Findings(
        recipe=recipe,
        manifests=manifests,
        results=results,
        funnel=funnel_of(manifests),
        costs=[cost_of(manifest) for manifest in manifests.values()],
        metrics=[line.values for line in rows_of(run / "train/metrics.jsonl") if line.values is not None],
        forecast=read_forecast(run / "generate/forecast.json"),
        model_facts=[model_facts(name, recipe, identity) for name, identity in results["models"].items()],
        sources=sources_of(run / "problems/problems.jsonl"),
        against=against,
    )


def read_forecast(path: Path) -> dict[str, Any]:
    """What a pilot foretold, with its intervals; empty where there was none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def rows_of(path: Path) -> Iterator[Line]:
    return json_lines(path) if path.is_file() else iter(())


def model_facts(name: str, recipe: Recipe, identity: dict[str, Any]) -> ModelFacts:
    """From the model's card and the identity that eval recorded."""
    weights = short(identity.get("content") or identity.get("revision") or "unknown")
    extra = next((extra for extra in recipe.eval.extra if extra.name == name), None)
    teacher = extra.teacher if extra else recipe.generate.teacher if name == "teacher" else None
    if teacher is not None:
        card = teacher_card(teacher)
        path = f"teachers/cards/{teacher}.yaml"
        return ModelFacts(name, card.model, path, weights, card.licence, card.training_on_outputs)
    student = str(extra.student) if extra else recipe.train.student
    model, licence = student_card(student).model, student_card(student).licence
    if name == "student" or (extra and extra.checkpoint):
        model = str(extra.checkpoint) if extra else "train/checkpoint"
        licence = f"as its base: {licence}"
    return ModelFacts(name, model, f"students/cards/{student}.yaml", weights, licence, "-")


def sources_of(path: Path) -> list[SourceFacts]:
    """How many problems of each source and licence training could use."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in rows_of(path):
        if line.values is not None:
            counts[line.values["source"], line.values["licence"]] += 1
    return [SourceFacts(name, kept, licence) for (name, licence), kept in counts.most_common()]


def funnel_of(manifests: dict[str, dict[str, Any]]) -> list[Step]:
    """From rows read to examples trained on; every loss by its reason."""
    steps: list[Step] = []
    labels = {
        "problems": "problems",
        "generate": "traces sampled",
        "filter": "traces kept",
        "train": "examples",
    }
    for stage, label in labels.items():
        if stage not in manifests:
            continue
        counts = manifests[stage]["counts"]
        if stage == "problems":
            steps.append(Step(stage, "rows read", counts["in"], {}))
        lost = {**counts["dropped"], **{f"failed: {kind}": n for kind, n in counts["failed"].items()}}
        ordered = dict(sorted(lost.items(), key=lambda item: -item[1]))
        steps.append(Step(stage, label, counts["kept"], ordered))
    return steps


def cost_of(manifest: dict[str, Any]) -> Cost:
    usage = manifest.get("usage") or {}
    return Cost(
        manifest["stage"],
        float(manifest["seconds"]),
        float(usage.get("engine_seconds", 0.0)),
        int(usage.get("prompt_tokens", 0)),
        int(usage.get("output_tokens", 0)),
    )
