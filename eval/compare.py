"""Compare two finished runs on the questions that both were asked: paired, and only at equal budgets.

Reads the eval directories of both runs, and the manifests of their earlier stages. Prints Markdown on stdout.

    python -m pipeline compare demo demo-lora
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.results import Answers, read_answers, score_of
from eval.scores import holm, paired
from pipeline.errors import RecipeError, StageError
from pipeline.records import Problem, read_lines
from pipeline.report.against import Comparison
from pipeline.report.numbers import count, p_value, points, score
from pipeline.report.results import POOLED, RESULTS, PairedDifference, Results, read_results
from pipeline.report.table import Table, table_lines
from pipeline.run.contract import Manifest, check_outputs, difference, read_manifest
from pipeline.sampling import Store
from pipeline.verify.table import needed

# budgets within this factor of each other count as equal
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run whose eval stage is finished. `name` tells it from the run that it is set against."""

    path: Path
    name: str
    manifest: Manifest
    results: Results

    def problems(self, task: str) -> list[Problem]:
        return list(read_lines(Problem, self.path / "eval" / f"{task}.problems.jsonl"))

    def way_of(self, task: str) -> dict[str, Any]:
        """How one task was put: what two scores must share to be comparable at all."""
        entry = self.results.tasks[task]
        verifiers = {name for p in self.problems(task) for name in needed(p.verifier, p.metadata)}
        return {
            "prompt": self.manifest.config["prompts"][task],
            "samples": next(iter(entry.models.values())).k,
            "version": entry.task.version if entry.task else None,
            "verifiers": {name: self.results.verifier[name] for name in sorted(verifiers)},
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """A model's answers in the first run and in the second to what both asked; `only` counts the rest."""

    task: str
    answers: list[Answers]
    only: int
    result: PairedDifference


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
    tasks = [run.results.task_names for run in runs]
    shared = [task for task in tasks[0] if task in tasks[1]]
    if not shared:
        raise RecipeError(
            f"compare: {runs[0].name} and {runs[1].name} share no task "
            f"({', '.join(tasks[0])}; {', '.join(tasks[1])})"
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
    check_outputs(path / "eval")
    results = read_results(path / "eval" / RESULTS)
    if model not in results.models:
        raise RecipeError(
            f"compare: {path.name} did not measure '{model}'; it measured: {', '.join(results.models)}"
        )
    return FinishedRun(path, path.resolve().name, manifest, results)


def check_equal(first: FinishedRun, second: FinishedRun, shared: Sequence[str]) -> None:
    """RecipeError where prompt, sampling, verifiers or samples differ: such scores do not compare."""
    parts = [
        {"sampling": run.results.sampling.settings(), "tasks": {task: run.way_of(task) for task in shared}}
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
    # question, gold answer and verifier: with another gold answer it is not the same question
    lots = [{problem.lot for problem in held} for held in problems]
    common = [problem for problem in problems[0] if problem.lot in lots[1]]
    if not common:
        raise RecipeError(
            f"compare: {task} has no question that both {first.name} and {second.name} were asked"
        )
    answers = [
        read_answers(
            Store(run.path / "eval", f"{task}.{model}.samples"),
            common,
            run.results.tasks[task].models[model].k,
        )
        for run in (first, second)
    ]
    return difference_of(task, answers, len(lots[0] ^ lots[1]))


def difference_of(task: str, answers: list[Answers], only: int) -> Difference:
    first, second = (held["correct"].mean(axis=1) for held in answers)
    return Difference(task, answers, only, paired(second, first, answers[0].shape[1]))


def pooled(found: Sequence[Difference]) -> list[Difference]:
    """Every question of every task as one set; none where that is one task, or k differs between tasks."""
    if len(found) < 2 or len({held.answers[0].shape[1] for held in found}) > 1:
        return []
    answers = [np.concatenate(parts) for parts in zip(*(held.answers for held in found), strict=True)]
    return [difference_of(POOLED, answers, sum(held.only for held in found))]


def scores_table(first: FinishedRun, second: FinishedRun, found: Sequence[Difference]) -> Table:
    adjusted = holm({held.task: held.result.p for held in found})
    rows = []
    for held in [*pooled(found), *found]:
        result, (num_questions, k) = held.result, held.answers[0].shape
        scores = [score_of(answers, seed=0) for answers in held.answers]
        rows.append(
            [
                held.task + (f" ({held.only:,} questions not shared)" if held.only else ""),
                f"{num_questions:,} x {k}",
                *(score(one.value, one.ci95) for one in scores),
                points(result.delta, result.ci95),
                f"{p_value(result.p)} ({result.test})",
                p_value(adjusted[held.task]) if held.task in adjusted else "-",
                f"{100 * result.mde:.1f} points",
                ", ".join(f"{answers['tokens'].mean():,.0f}" for answers in held.answers),
            ]
        )
    names = [first.name, second.name]
    head = ["task", "n x k", *names, "difference", "p", "p (Holm)", "could detect", "mean tokens"]
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
    """Teacher tokens, examples, passes over them, and what polish took: from manifests of the stages that are
    there."""
    stages = ("generate", "filter", "train", "polish")
    generate, kept, train, polish = (read_manifest(run.path / stage) for stage in stages)
    budget: dict[str, float] = {}
    if generate is not None and generate.usage.output_tokens is not None:  # imported traces may have no count
        budget["teacher output tokens"] = generate.usage.output_tokens
    if kept is not None:
        budget["kept traces"] = kept.counts.kept
    if train is not None:
        epochs, tokens = train.config.get("train", {}).get("epochs"), train.usage.tokens_per_epoch
        if epochs is not None and tokens is not None:
            budget["tokens seen in training"] = epochs * tokens
    if polish is not None:
        for what, number in (("sampled", polish.usage.output_tokens), ("scored", polish.usage.scored_tokens)):
            if number is not None:
                budget[f"tokens {what} in polish"] = number
    return budget
