"""The questions of the recipe's eval tasks: task cards, local files, and procedural families.

A procedural task takes reserved questions only, so no training source can hold one of them.
"""

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RecipeError, VerifyError
from pipeline.problems.sources import OUTSIDE_WINDOW, procedural_problems, row_problems
from pipeline.recipe.cards import TaskCard
from pipeline.recipe.sources import CardTask, FileSource, HubSource, ProceduralSource, Task, task_name
from pipeline.records import Problem
from pipeline.verify.table import check_verifier

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskProblems:
    """`card` is None for procedural tasks and bare files; no two problems have the same id."""

    name: str
    problems: list[Problem]
    card: TaskCard | None
    procedural: bool


def task_problems(task: Task, card: TaskCard | None, seed: int, revision: str | None = None) -> TaskProblems:
    """The questions of one eval task. RecipeError where it holds none.

    `card` is Context.task_card's; `revision` is taken where the card leaves its own null.
    """
    name = task_name(task)
    if isinstance(task, ProceduralSource):
        return TaskProblems(name, list(procedural_problems(task, seed, reserved=True)), None, True)
    source = _task_source(task, card, revision)
    first: dict[str, Problem] = {}
    differing = 0
    for item in row_problems(source, name):
        if not isinstance(item, Problem):
            if item.reason == OUTSIDE_WINDOW:
                continue
            raise RecipeError(
                f"eval task {name}: {item.where}: {item.reason.replace('_', ' ')} in its column (answer: "
                f"{source.answer}){item.detail and f': {item.detail}'}. Every row of a task is scored: "
                "correct the row, or the task's columns"
            )
        if item.verifier == "code":
            try:
                check_verifier("code", item.metadata, item.gold)
            except VerifyError as error:
                raise RecipeError(f"eval task {name}: question {item.question[:60]!r}: {error}") from None
        differing += first.setdefault(item.id, item).gold != item.gold
    if differing:
        log.warning(
            "eval task %s: %d rows repeat an earlier question with another answer; the first row counts",
            name,
            differing,
        )
    problems = list(first.values())
    size = task.size if isinstance(task, CardTask) else task.limit
    if not problems:
        raise RecipeError(
            f"eval task {name}: has no question with an answer; look at its file and its columns"
        )
    if size is not None and size > len(problems):
        raise RecipeError(f"eval task {name}: has {len(problems):,} questions, size asks for {size:,}")
    return TaskProblems(name, seeded_part(problems, size, seed), card, False)


def seeded_part(problems: list[Problem], size: int | None, seed: int) -> list[Problem]:
    """`size` of the problems, in their own order; a problem's place in the draw is a hash of seed and lot."""
    if size is None or size >= len(problems):
        return problems
    chosen = {p.id for p in sorted(problems, key=lambda p: draw_key(seed, p.lot))[:size]}
    return [problem for problem in problems if problem.id in chosen]


def draw_key(seed: int, *parts: Any) -> bytes:
    """Eight bytes that put things into an order which depends on seed and content, never on position."""
    text = "\0".join([str(seed), *map(str, parts)])
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _task_source(
    task: CardTask | FileSource, card: TaskCard | None, revision: str | None
) -> FileSource | HubSource:
    """Where the rows of a task are: its own file, its card's data set, or a local copy of that."""
    if isinstance(task, FileSource):
        return task
    assert card is not None, "the context holds the card of every task that names one"
    shared: dict[str, Any] = {
        "columns": card.columns,
        "answer": card.answer,
        "verifier": card.verifier,
        "window": card.window,
        "licence": card.licence,
        "name": task_name(task),
    }
    if task.path is not None:
        return FileSource(path=task.path, **shared)
    if card.hub is None:
        raise RecipeError(
            f"eval/tasks/{task.task}.yaml: names no hub data set; give the task a `path:` to a local copy"
        )
    revision = card.revision or revision
    return HubSource(hub=card.hub, revision=revision, subset=card.subset, split=card.split, **shared)
