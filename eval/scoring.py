"""From stored samples to results.json: read, count, score, compare, and measure contamination.

Reads the samples and verdicts of an eval directory, problems.jsonl and filter's kept.jsonl. The layout of
results.json is documented in eval/results.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.asking import Asked, Asking
from eval.contamination import Overlap, flagged_questions, overlap_of
from eval.forced import forced_name
from eval.results import adjust, contamination_entry, forced_entry, score_task
from eval.samples import Answers, joined, read_answers
from pipeline.errors import StageError
from pipeline.provenance import library_versions
from pipeline.stage import Counts, Plan
from pipeline.verify.table import VERSIONS

POOLED = "all"
RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """Answers by task and model, those with forced closing by budget too, and the rows of the files."""

    answers: dict[str, dict[str, Answers]]
    forced: dict[str, dict[str, dict[int, Answers]]]
    outputs: dict[str, int | None]


def read_all(asking: Asking, models: Sequence[str], tasks: Sequence[Asked]) -> Measured:
    """Everything that was sampled. StageError where a store is empty or a sample is not verified."""
    found = Measured({}, {}, {})
    for task in tasks:
        found.outputs[f"{task.name}.problems.jsonl"] = len(task.problems)
        found.answers[task.name] = {model: read_one(asking, task, model, found) for model in models}
        found.forced[task.name] = {
            model: {n: read_one(asking, task, forced_name(model, n), found) for n in asking.forced}
            for model in models
            if asking.forced
        }
    return found


def read_one(asking: Asking, task: Asked, name: str, found: Measured) -> Answers:
    with asking.store(task.name, name) as store:
        found.outputs.update(store.outputs())
        return read_answers(store, task.problems, task.k)


def counts_of(measured: Measured, max_failure_rate: float, directory: Path) -> Counts:
    """Samples wanted, taken, and failed for good; StageError where too many failed."""
    held = [answers for task in measured.answers.values() for answers in task.values()]
    held += [answers for task in measured.forced.values() for by in task.values() for answers in by.values()]
    wanted = sum(answers.finish.size for answers in held)
    failed = sum(int((answers.finish == "failed").sum()) for answers in held)
    if failed > max_failure_rate * wanted:
        raise StageError(
            f"{directory}: {failed:,} of {wanted:,} samples failed, more than generate.max_failure_rate "
            f"({max_failure_rate:.1%}); *.failures.jsonl there say why. Run eval again: it takes just those"
        )
    return Counts(wanted, wanted - failed, failed={"request": failed} if failed else {})


def overlaps(tasks: Sequence[Asked], run: Path) -> dict[str, Overlap]:
    """What of each task stands in the run's training problems and kept traces."""
    questions = {task.name: task.problems for task in tasks}
    flags = flagged_questions(questions, run / "problems/problems.jsonl", run / "filter/kept.jsonl")
    return {task.name: overlap_of(flags[task.name], task.problems) for task in tasks}


def results_of(
    plan: Plan, measured: Measured, tasks: Sequence[Asked], seen: dict[str, Overlap] | None
) -> dict[str, Any]:
    """results.json as a value; `seen` is None where nothing was trained, so nothing can be contaminated."""
    limit = plan.config["sampling"]["max_tokens"]
    entries = {task: score_task(models, limit, plan.seed) for task, models in measured.answers.items()}
    adjust(entries)
    for name, forced in measured.forced.items():
        if forced:
            entries[name]["forced_budget"] = forced_entry(forced, plan.seed)
    names = list(plan.config["models"])
    answers = dict(measured.answers)
    if len({task.k for task in tasks}) == 1:
        answers[POOLED] = {
            name: joined([measured.answers[task.name][name] for task in tasks]) for name in names
        }
        entries[POOLED] = score_task(answers[POOLED], limit, plan.seed)
    for task in tasks:
        card = plan.config["task_cards"].get(task.name) or {}
        entries[task.name]["task"] = {"version": card.get("version"), "licence": task.problems[0].licence}
    if seen is not None:
        seen = {**seen, POOLED: pooled([seen[task.name] for task in tasks])}
        for name, entry in entries.items():
            entry["contamination"] = contamination_entry(answers[name], seen[name], plan.seed)
    verifiers = {problem.verifier for task in tasks for problem in task.problems}
    return {
        "tasks": entries,
        "models": plan.config["models"],
        "sampling": plan.config["sampling"],
        "prompt": {task.name: task.prompt for task in tasks},
        "verifier": {name: VERSIONS[name] for name in sorted(verifiers)},
        "versions": library_versions(),
    }


def pooled(parts: Sequence[Overlap]) -> Overlap:
    """The overlap of all tasks, question below question as in `joined`."""
    rules: dict[int, str] = {}
    total = 0
    for part in parts:
        rules |= {total + row: rule for row, rule in part.rules.items()}
        total += part.questions
    return Overlap(rules, total)
