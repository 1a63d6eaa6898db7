"""What a run will cost, before anything is bought: per stage, with each assumption beside its figure.

Reads the recipe, its cards, the number of rows of its local files and, where they are finished, problems'
manifest and a pilot's forecast. Writes nothing, except with --pilot: that samples N problems for real and
keeps their traces.

    python -m pipeline plan --recipe recipes/demo.yaml --pilot 50
"""

import sys
from pathlib import Path
from typing import Any

from pipeline.cards import StudentCard, TeacherCard, student_card, task_card, teacher_card
from pipeline.errors import RecipeError
from pipeline.recipe import CardTask, HubSource, ProceduralSource, Recipe
from pipeline.rows import count_rows
from pipeline.rule_parameters import parse_rule
from pipeline.sources import source_name
from pipeline.stage import Context, read_manifest
from pipeline.tasks import Task, task_name
from teachers.assumed import Assumed
from teachers.bill import (
    Asking,
    Line,
    Outlook,
    Part,
    eval_part,
    generate_part,
    pace_of,
    teacher_part,
    total_part,
    train_part,
)
from teachers.estimate import expected_tries, kept_per_problem, size_of, solved_share
from teachers.forecast import read_forecast
from teachers.generate import GenerateFlags


def run(context: Context, assumed: Assumed, pilot: int | None, flags: GenerateFlags) -> None:
    """Print the plan on stdout; with `pilot` after sampling that many problems."""
    if pilot is not None:
        from teachers.pilot import run_pilot

        run_pilot(context, pilot, flags)
    for part in plan_parts(context, assumed):
        print(part.title)
        for line in part.lines:
            print(f"  {line.name:<22} {line.value:>26}   {line.source}")
    sys.stdout.flush()


def plan_parts(context: Context, assumed: Assumed) -> list[Part]:
    """A part for each stage that costs something, and their total."""
    recipe = context.recipe
    num_problems, source = count_problems(context, assumed.problems)
    outlook = outlook_of(recipe, num_problems, assumed, read_forecast(context.directory("generate")))
    sampling = recipe.eval.sampling or recipe.generate.sampling
    askings, uncounted = askings_of(recipe)
    teacher, where = size_of(teacher_card(recipe.generate.teacher))
    tokens = min(outlook.tokens_per_trace, sampling.max_tokens)
    parts = [
        Part("problems", [Line("problems", f"{num_problems:,.0f}", source)]),
        generate_part(recipe, outlook, assumed),
        teacher_part(teacher, where, outlook, assumed),
        train_part(recipe, outlook, *size_of(student_card(recipe.train.student)), assumed),
        eval_part(
            askings, uncounted_in(recipe, uncounted), tokens, pace_of(teacher, outlook, assumed), assumed
        ),
    ]
    return [*parts, total_part(parts, assumed)]


def count_problems(context: Context, stated: int) -> tuple[float, str]:
    """How many problems there are, or will be at most. RecipeError where a source of the hub does not say."""
    if stated:
        return stated, "stated (--assume problems)"
    manifest = read_manifest(context.directory("problems"))
    if manifest is not None:
        return manifest["outputs"]["problems.jsonl"]["rows"], "the finished problems stage"
    total, unknown = 0, []
    for source in context.recipe.problems.sources:
        if isinstance(source, ProceduralSource):
            total += source.size
        elif isinstance(source, HubSource):
            total += source.limit or 0
            unknown += [source_name(source)] if source.limit is None else []
        else:
            rows = count_rows(Path(source.path))
            total += min(rows, source.limit or rows)
    if unknown:
        raise RecipeError(
            f"problems.sources: {', '.join(unknown)}: a source of the hub without a `limit:` does not say "
            f"how many problems it holds. Run: make problems RECIPE={context.start.recipe} (it needs no "
            "device), or state how many there are in all with --assume problems=N"
        )
    return total, "sizes in the recipe and rows of its files, before any is dropped"


def outlook_of(recipe: Recipe, num_problems: float, assumed: Assumed, measured: dict[str, Any]) -> Outlook:
    """The pilot's figures where there was one, else what the assumptions give."""
    samples = recipe.generate.samples
    rate = measured.get("pass_rate", assumed.pass_rate)
    tries = measured.get("tries_per_problem", expected_tries(rate, samples))
    tokens = measured.get("tokens_per_trace", assumed.tokens_share * recipe.generate.sampling.max_tokens)
    solved = measured.get("solved_share", solved_share(rate, samples))
    per_problem = recipe.filter.select.per_problem
    if "correct" not in [parse_rule(entry)[0] for entry in recipe.filter.rules]:
        examples = min(tries, per_problem)
    elif measured:
        examples = min(rate * tries, per_problem)
    else:
        examples = kept_per_problem(rate, samples, per_problem)
    more = min(samples.max - tries, (1 - solved) * ((samples.cap or samples.max) - samples.max))
    return Outlook(
        num_problems=num_problems,
        pass_rate=rate,
        tries=tries,
        tokens_per_trace=tokens,
        solved=num_problems * solved,
        examples=num_problems * examples,
        output_tokens=num_problems * measured["output_tokens"] / measured["problems"]
        if measured
        else num_problems * tries * tokens,
        redistributed=num_problems * more,
        measured=measured,
    )


def uncounted_in(recipe: Recipe, tasks: list[str]) -> list[Line]:
    """What eval will sample beside what is counted."""
    note = "of unstated size, not counted; give their cards a `size:`"
    lines = [Line("other tasks", ", ".join(tasks), note)] if tasks else []
    budgets = recipe.eval.forced_budgets
    note = "answers that are sampled anew after so many tokens of thinking, not counted"
    return lines + ([Line("forced budgets", ", ".join(map(str, budgets)), note)] if budgets else [])


def askings_of(recipe: Recipe) -> tuple[list[Asking], list[str]]:
    """What eval asks of each model that it compares, and the tasks whose size nobody states."""
    samples, uncounted = 0, []
    for task in recipe.eval.tasks:
        card = task_card(task.task) if isinstance(task, CardTask) else None
        questions = count_questions(task)
        uncounted += [task_name(task)] if questions is None else []
        samples += (questions or 0) * (recipe.eval.samples or (card.k if card else 1))
    teacher, student = teacher_card(recipe.generate.teacher), student_card(recipe.train.student)
    cards: dict[str, TeacherCard | StudentCard] = {}
    cards |= {name: teacher if name == "teacher" else student for name in recipe.eval.compare}
    for extra in recipe.eval.extra:
        cards[extra.name] = (
            teacher_card(extra.teacher) if extra.teacher else student_card(extra.student or "")
        )
    return [Asking(name, samples, *size_of(card)) for name, card in cards.items()], uncounted


def count_questions(task: Task) -> int | None:
    """Questions of an eval task: what the recipe says, else the rows of its file, else its card's size."""
    if isinstance(task, ProceduralSource):
        return task.size
    size = task.size if isinstance(task, CardTask) else task.limit
    if size is not None:
        return size
    if task.path is not None:
        return count_rows(Path(task.path))
    return task_card(task.task).size if isinstance(task, CardTask) else None
