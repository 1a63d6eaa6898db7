"""Compare two finished runs on the questions that both were asked: paired, and only at equal budgets.

Reads the eval directories of both runs, and the manifests of their earlier stages. Prints Markdown on stdout.

    python -m pipeline compare demo demo-lora
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.samples import Answers, joined, read_answers
from eval.scores import Paired, holm, paired, pass_at_1
from eval.scoring import POOLED, RESULTS
from pipeline.errors import RecipeError, StageError
from pipeline.records import Problem, from_json
from pipeline.report.against import Comparison
from pipeline.report.numbers import count, p_value, points, score
from pipeline.report.table import Table, table_lines
from pipeline.sampling import Store
from pipeline.stage import check_outputs, difference, read_manifest

# what two scores must share to be comparable at all
EQUAL = ("sampling", "prompt", "verifiers")
# budgets within this factor of each other count as equal
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run whose eval stage is finished. `name` tells it from the run that it is set against."""

    path: Path
    name: str
    manifest: dict[str, Any]
    results: dict[str, Any]

    def problems(self, task: str) -> list[Problem]:
        with (self.path / "eval" / f"{task}.problems.jsonl").open(encoding="utf-8") as file:
            return [from_json(Problem, line) for line in file]

    def tasks(self) -> list[str]:
        return [task for task in self.results["tasks"] if task != POOLED]

    def way_of(self, task: str) -> dict[str, Any]:
        """How one task was put, where a task card decides it: it may say otherwise in another run."""
        first = next(iter(self.results["models"]))
        entry = self.results["tasks"][task]
        return {
            "prompt": self.results["prompt"][task],
            "samples": entry[first]["k"],
            "version": entry["task"]["version"],
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """Both models on the questions that both runs hold; `only` counts questions that one of them lacks."""

    task: str
    questions: int
    only: int
    first: Answers
    second: Answers
    result: Paired


def compare(first: Path, second: Path, model: str = "student") -> str:
    """The comparison as Markdown. RecipeError where the runs cannot be compared, saying why."""
    held = compared(first, second, model)
    lines = [
        f"# {held.second} against {held.first}: {model}",
        "",
        held.note,
        "",
        *table_lines(held.scores),
        "",
    ]
    return "\n".join([*lines, "## Budgets", "", *table_lines(held.budgets), "", held.verdict])


def compared(first: Path, second: Path, model: str = "student") -> Comparison:
    """`second` against `first`. RecipeError where the runs cannot be compared, saying why."""
    runs = finished_run(first, model), finished_run(second, model)
    if runs[0].name == runs[1].name and first.resolve() != second.resolve():
        runs = replace(runs[0], name=str(first)), replace(runs[1], name=str(second))
    shared = [task for task in runs[0].tasks() if task in runs[1].tasks()]
    if not shared:
        raise RecipeError(
            f"compare: {runs[0].name} and {runs[1].name} share no task "
            f"({', '.join(runs[0].tasks())}; {', '.join(runs[1].tasks())})"
        )
    check_equal(*runs, shared)
    found = [compare_task(*runs, task, model) for task in shared]
    names = runs[0].name, runs[1].name
    note = f"Differences are {names[1]} - {names[0]} on the same questions, with 95% intervals."
    return Comparison(*names, note, scores_table(*runs, found), *budgets(*runs))


def finished_run(path: Path, model: str) -> FinishedRun:
    """StageError where eval is not finished there, or where what it wrote was changed since."""
    manifest = read_manifest(path / "eval")
    if manifest is None:
        raise StageError(
            f"compare needs {path / 'eval/manifest.json'}, which does not exist: run eval there first"
        )
    if model not in manifest["config"]["models"]:
        held = ", ".join(manifest["config"]["models"])
        raise RecipeError(f"compare: {path.name} did not measure '{model}'; it measured: {held}")
    check_outputs(path / "eval")
    results = json.loads((path / "eval" / RESULTS).read_text(encoding="utf-8"))
    return FinishedRun(path, path.resolve().name, manifest, results)


def check_equal(first: FinishedRun, second: FinishedRun, shared: Sequence[str]) -> None:
    """RecipeError where prompt, sampling, verifiers or samples differ: such scores do not compare."""
    parts = [
        {key: run.manifest["config"][key] for key in EQUAL} | {"tasks": {t: run.way_of(t) for t in shared}}
        for run in (first, second)
    ]
    differences = difference(parts[0], parts[1])
    if differences:
        lines = "\n  ".join(differences)
        raise RecipeError(
            f"compare: {first.name} and {second.name} were not measured alike, so a difference would say "
            f"nothing about the models:\n  {lines}\nGive both recipes the same eval section, run eval again"
        )


def compare_task(first: FinishedRun, second: FinishedRun, task: str, model: str) -> Difference:
    """One task, question by question. RecipeError where the two runs asked no question in common."""
    problems = first.problems(task), second.problems(task)
    ids = [{problem.id for problem in held} for held in problems]
    common = [problem for problem in problems[0] if problem.id in ids[1]]
    if not common:
        raise RecipeError(
            f"compare: {task} has no question that both {first.name} and {second.name} were asked"
        )
    answers = [answers_of(run, task, model, common) for run in (first, second)]
    return difference_of(task, answers[0], answers[1], len(ids[0] ^ ids[1]))


def answers_of(run: FinishedRun, task: str, model: str, problems: Sequence[Problem]) -> Answers:
    with Store(run.path / "eval", f"{task}.{model}.samples") as store:
        return read_answers(store, problems, run.results["tasks"][task][model]["k"])


def difference_of(task: str, first: Answers, second: Answers, only: int) -> Difference:
    result = paired(second.correct.mean(axis=1), first.correct.mean(axis=1), first.k)
    return Difference(task, len(first.problem_ids), only, first, second, result)


def pooled(found: Sequence[Difference]) -> list[Difference]:
    """Every question of every task as one set; none where that is one task, or k differs between tasks."""
    if len(found) < 2 or len({held.first.k for held in found}) > 1:
        return []
    first, second = (joined([getattr(held, side) for held in found]) for side in ("first", "second"))
    return [difference_of(POOLED, first, second, sum(held.only for held in found))]


def scores_table(first: FinishedRun, second: FinishedRun, found: Sequence[Difference]) -> Table:
    adjusted = holm({held.task: held.result.p for held in found})
    rows = []
    for held in [*pooled(found), *found]:
        single = [pass_at_1(a.correct.sum(axis=1), a.k) for a in (held.first, held.second)]
        cells = [score(one.value, [one.low, one.high]) for one in single]
        delta = held.result.delta
        rows.append(
            [
                held.task + (f" ({held.only:,} questions not shared)" if held.only else ""),
                f"{held.questions:,} x {held.first.k}",
                *cells,
                points(delta.value, [delta.low, delta.high]),
                f"{p_value(held.result.p)} ({held.result.test})",
                p_value(adjusted[held.task]) if held.task in adjusted else "-",
                f"{100 * held.result.mde:.1f} points",
                f"{held.first.tokens.mean():,.0f}, {held.second.tokens.mean():,.0f}",
            ]
        )
    head = [
        "task",
        "n x k",
        first.name,
        second.name,
        "difference",
        "p",
        "p (Holm)",
        "could detect",
        "mean tokens",
    ]
    return Table(head, rows)


def budgets(first: FinishedRun, second: FinishedRun) -> tuple[Table, str]:
    """What each run paid, and whether that is equal: an ablation at unequal budgets proves little."""
    parts = [budget_of(run) for run in (first, second)]
    rows, unequal = [], []
    for name in dict.fromkeys([*parts[0], *parts[1]]):
        values = [part.get(name) for part in parts]
        equal = None not in values and np.isclose(values[0], values[1], rtol=TOLERANCE)  # type: ignore[arg-type]
        rows.append([name, *[count(v) if v is not None else "-" for v in values], "yes" if equal else "no"])
        unequal += [] if equal else [name]
    verdict = "The budgets are equal within 5%."
    if unequal:
        verdict = f"NOT at equal budgets: {', '.join(unequal)}. That alone may make the difference."
    if not rows:
        verdict = "Neither run holds a stage that has a budget: nothing is known of what they were given."
    return Table(["budget", first.name, second.name, "equal"], rows), verdict


def budget_of(run: FinishedRun) -> dict[str, float]:
    """Teacher tokens, examples, passes over them, and steps: from manifests of the stages that are there."""
    generate, sift, train = (read_manifest(run.path / stage) for stage in ("generate", "filter", "train"))
    budget: dict[str, float] = {}
    if generate is not None and "output_tokens" in generate["usage"]:  # imported traces may have no count
        budget["teacher output tokens"] = generate["usage"]["output_tokens"]
    if sift is not None:
        budget["kept traces"] = sift["counts"]["kept"]
    if train is not None:
        epochs = (train["config"].get("train") or {}).get("epochs")
        tokens = train["usage"].get("tokens_per_epoch")
        if epochs is not None and tokens is not None:
            budget["tokens seen in training"] = epochs * tokens
    return budget
