"""What the report says, as plain values: the funnel, the scores, the cost, the provenance.

Reads the manifests of the finished stages of a run and eval's results.json; writes nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.recipe import Recipe
from pipeline.stage import MANIFEST, read_manifest

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
class Findings:
    """All that the three files of the report are written from."""

    recipe: Recipe
    manifests: dict[str, dict[str, Any]]
    results: dict[str, Any]
    funnel: list[Step]
    costs: list[Cost]

    @property
    def models(self) -> list[str]:
        return list(self.results["models"])

    @property
    def headline(self) -> tuple[str, dict[str, Any]]:
        """The pool of all tasks, or where tasks have different k the first task."""
        tasks = self.results["tasks"]
        name = "all" if "all" in tasks else next(iter(tasks))
        return name, tasks[name]


def gather(recipe: Recipe, run: Path) -> Findings:
    """Read what is there of a run. StageError where results.json cannot be read."""
    found = {stage: read_manifest(run / stage) for stage in STAGES}
    manifests = {stage: manifest for stage, manifest in found.items() if manifest is not None}
    path = run / "eval" / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{path}: cannot be read ({error}). Run eval again with FORCE=1") from None
    return Findings(
        recipe, manifests, results, funnel_of(manifests), [cost_of(m) for m in manifests.values()]
    )


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


def manifest_files(run: Path) -> list[Path]:
    return [run / stage / MANIFEST for stage in STAGES if (run / stage / MANIFEST).is_file()]
