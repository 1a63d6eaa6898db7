"""The questions of the recipe's eval tasks: task cards, local files, and procedural families.

A procedural task takes reserved questions only, so no training source can hold one of them.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from pipeline.cards import TaskCard, task_card
from pipeline.errors import RecipeError
from pipeline.names import MAX_NAME_LENGTH, SAFE_NAME
from pipeline.recipe import CardTask, FileSource, HubSource, ProceduralSource
from pipeline.records import Problem
from pipeline.sources import procedural_problems, row_problems, source_name

Task = ProceduralSource | CardTask | FileSource


@dataclass(frozen=True, slots=True)
class TaskProblems:
    """`card` is None for procedural tasks and bare files; no two problems have the same id."""

    name: str
    problems: list[Problem]
    card: TaskCard | None
    procedural: bool


def task_name(task: Task) -> str:
    """What results and files call a task: its card, its family, or the stem of its file."""
    return (task.name or task.task) if isinstance(task, CardTask) else source_name(task)


def task_names(tasks: list[Task]) -> list[str]:
    """The names of all tasks. RecipeError where one cannot name files, or two are the same."""
    names = [task_name(task) for task in tasks]
    for name in names:
        if not re.fullmatch(SAFE_NAME, name) or len(name) > MAX_NAME_LENGTH:
            raise RecipeError(
                f"eval.tasks: a task is called {name!r}, and its name becomes that of files: letters, "
                f"digits, '.', '_' and '-' only, {MAX_NAME_LENGTH} at most; give it a `name:`"
            )
        if name == "all":
            raise RecipeError("eval.tasks: a task cannot be called 'all', which is the pool of all tasks")
        if names.count(name) > 1:
            raise RecipeError(f"eval.tasks: two tasks are called '{name}'; give one of them a `name:`")
    return names


def task_problems(task: Task, seed: int, revision: str | None = None) -> TaskProblems:
    """The questions of one eval task. RecipeError where the task cannot be had or holds no question."""
    name = task_name(task)
    if isinstance(task, ProceduralSource):
        return TaskProblems(name, list(procedural_problems(task, seed, reserved=True)), None, True)
    card = task_card(task.task) if isinstance(task, CardTask) else None
    source = task if isinstance(task, FileSource) else _card_source(task, card or task_card(task.task))
    problems = list({problem.id: problem for problem in _all_rows(source, name, revision)}.values())
    size = task.size if isinstance(task, CardTask) else task.limit
    if not problems:
        raise RecipeError(
            f"eval task {name}: has no question with an answer; look at its file and its columns"
        )
    if size is not None and size > len(problems):
        raise RecipeError(f"eval task {name}: has {len(problems):,} questions, size asks for {size:,}")
    return TaskProblems(name, seeded_part(problems, size, seed), card, False)


def _all_rows(source: FileSource | HubSource, name: str, revision: str | None) -> list[Problem]:
    """Every row as a problem; RecipeError for one without a question or a gold answer: it would be lost."""
    problems = []
    for item in row_problems(source, name, revision):
        if not isinstance(item, Problem):
            raise RecipeError(
                f"eval task {name}: {item.where}: {item.reason.replace('_', ' ')} in its column (answer: "
                f"{source.answer}). Every row of a task is scored: mend the row, or the task's columns"
            )
        problems.append(item)
    return problems


def seeded_part(problems: list[Problem], size: int | None, seed: int) -> list[Problem]:
    """`size` of the problems, in their own order; a problem's place in the draw is a hash of seed and id."""
    if size is None or size >= len(problems):
        return problems
    chosen = {p.id for p in sorted(problems, key=lambda p: draw_key(seed, p.id))[:size]}
    return [problem for problem in problems if problem.id in chosen]


def draw_key(seed: int, *parts: Any) -> bytes:
    """Eight bytes that put things into an order which depends on seed and content, never on position."""
    text = "\0".join([str(seed), *map(str, parts)])
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _card_source(task: CardTask, card: TaskCard) -> FileSource | HubSource:
    shared: dict[str, Any] = {
        "columns": card.columns,
        "answer": card.answer,
        "verifier": card.verifier,
        "licence": card.licence,
        "name": task_name(task),
    }
    if task.path is not None:
        return FileSource(path=task.path, **shared)
    if card.hub is None:
        raise RecipeError(
            f"eval/tasks/{task.task}.yaml: names no hub data set; give the task a `path:` to a local copy"
        )
    return HubSource(hub=card.hub, revision=card.revision, subset=card.subset, split=card.split, **shared)
