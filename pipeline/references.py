"""What a recipe names outside its own schema: cards, sources, tasks. Checked before any stage starts.

A fault here would otherwise be met by the stage that first needs the name, hours after the first one ran.
"""

from pipeline.cards import student_card, task_card, teacher_card
from pipeline.errors import RecipeError, inside
from pipeline.recipe import CardTask, Recipe
from pipeline.sources import source_names
from pipeline.strict_yaml import nearest
from pipeline.tasks import task_names


def check_references(recipe: Recipe, where: str) -> Recipe:
    """The recipe itself; RecipeError, with `where` and the key, for a name that stands for nothing."""
    with inside(where):
        check_cards(recipe)
        task_names(recipe.eval.tasks)
        check_per_source(recipe)
        check_mix_names(recipe)
    return recipe


def check_cards(recipe: Recipe) -> None:
    """Load every card that the recipe names."""
    with inside("generate.teacher"):
        teacher_card(recipe.generate.teacher)
    with inside("train.student"):
        student_card(recipe.train.student)
    for position, task in enumerate(recipe.eval.tasks):
        if isinstance(task, CardTask):
            with inside(f"eval.tasks[{position}].task"):
                task_card(task.task)
    for position, extra in enumerate(recipe.eval.extra):
        with inside(f"eval.extra[{position}]"):
            if extra.teacher is not None:
                teacher_card(extra.teacher)
            if extra.student is not None:
                student_card(extra.student)


def check_per_source(recipe: Recipe) -> None:
    """RecipeError for a cap on a source that is not among the recipe's: it would cap nothing."""
    known = source_names(recipe.problems.sources)
    for name in recipe.filter.select.per_source:
        if name not in known:
            raise RecipeError(f"filter.select.per_source.{name}: unknown source; {nearest(name, known)}")


def check_mix_names(recipe: Recipe) -> None:
    """RecipeError for a mix that is called as a source of problems: their counts would run together."""
    known = source_names(recipe.problems.sources)
    for position, entry in enumerate(recipe.filter.mix):
        if entry.name in known:
            raise RecipeError(
                f"filter.mix[{position}].name: '{entry.name}' is a source of problems already, and counts "
                "are by name; give the mix another"
            )
