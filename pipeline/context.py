"""Context: what every stage and command is given, loaded and checked once.

The recipe with its cards and prompts as objects, the run's directory, and how the stage was asked to start.
Nobody looks up a card by its name, or a directory by another one's parent, again.
"""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.errors import RecipeError, inside
from pipeline.recipe.cards import (
    Cards,
    SampledModel,
    StudentCard,
    TaskCard,
    TeacherCard,
    called,
    in_mode_of,
    load_cards,
    sampled_student,
    sampled_teacher,
)
from pipeline.recipe.prompts import Prompt
from pipeline.recipe.schema import ExtraModel, Recipe, load_recipe
from pipeline.recipe.sources import CardTask, Task, source_names
from pipeline.recipe.strict_yaml import nearest
from pipeline.run.contract import Manifest, Start, check_outputs, read_manifest, require
from pipeline.run.stages import STAGES, Stage

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
THINKING = "thinking"  # in the notes of train, where the card knows a mode without it: always, never or both


@dataclass(frozen=True)
class Context:
    """`runs` holds one directory a run. Models are described as engines see them."""

    recipe: Recipe
    cards: Cards
    runs: Path
    start: Start

    @property
    def run(self) -> Path:
        return self.runs / self.recipe.name

    def directory(self, stage: str) -> Path:
        return self.run / stage

    def manifest(self, stage: str) -> Manifest | None:
        """The manifest of a finished stage of this run, None where it is not finished."""
        return read_manifest(self.directory(stage))

    def require(self, stage: str, wanted_by: str) -> Manifest:
        """The manifest of a stage that must be finished; StageError names what to run where it is not."""
        return require(self.directory(stage), wanted_by, self.start.recipe)

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages of this recipe, in order."""
        return [stage for stage in STAGES if getattr(self.recipe, stage.section) is not None]

    @property
    def student_stages(self) -> dict[str, str]:
        """The stage that leaves the checkpoint, by what results call it: the student is the last one's, and
        where there are two the one before left it unpolished."""
        stages = [stage.name for stage in self.stages if stage.checkpoint]
        return dict(zip(("student", "unpolished"), reversed(stages), strict=False))

    @property
    def student_stage(self) -> str:
        """The stage whose checkpoint is the student: the last one of this recipe that leaves one."""
        return self.student_stages["student"]

    @property
    def checkpoint(self) -> Path:
        return self.directory(self.student_stage) / CHECKPOINT

    @property
    def teacher_name(self) -> str:
        """What traces, messages and the report call the teacher."""
        return called(self.recipe.generate.teacher)

    @property
    def student_name(self) -> str:
        """What messages and the report call the base that the student is trained from."""
        return called(self.recipe.train.student)

    @property
    def teacher_card(self) -> TeacherCard:
        return self.cards.teachers[self.teacher_name]

    @property
    def student_card(self) -> StudentCard:
        return self.cards.students[self.student_name]

    def task_card(self, task: Task) -> TaskCard | None:
        """The card of an eval task; None for a procedural one and a bare file."""
        return self.cards.tasks[task.task] if isinstance(task, CardTask) else None

    @cached_property
    def teacher(self) -> SampledModel:
        return sampled_teacher(self.teacher_name, self.teacher_card)

    @cached_property
    def judge(self) -> SampledModel:
        """The model that verifies; for recipes with the section alone."""
        assert self.recipe.judge is not None
        return sampled_teacher(called(self.recipe.judge.model), self.judge_card)

    @property
    def judge_card(self) -> TeacherCard:
        assert self.recipe.judge is not None
        return self.cards.teachers[called(self.recipe.judge.model)]

    @property
    def judge_restriction(self) -> str | None:
        """What is to be read of the judge's licence: the student learns nothing that the judge wrote, but
        what it learns is chosen by that. None where there is no judge, or its licence allows all of it."""
        said = None if self.recipe.judge is None else self.judge_card.restriction("judge")
        return said and f"{said}, and where it judges traces it chooses what the student is trained on"

    @cached_property
    def base(self) -> SampledModel:
        return sampled_student("base", self.student_card)

    @property
    def student(self) -> SampledModel:
        """The trained student; its checkpoint must be there."""
        return self.model("student")

    def finished_student(self, wanted_by: str) -> SampledModel:
        """The student of a finished run. StageError where it is not finished, or was changed since."""
        self.require(self.student_stage, wanted_by)
        check_outputs(self.directory(self.student_stage))
        return self.as_trained(self.student, wanted_by)

    @property
    def trained_thinking(self) -> str | None:
        """Whether the student's examples had thinking: always, never or both. None where train is not
        finished, or its card knows but one mode."""
        trained = self.manifest("train")
        return None if trained is None else trained.notes.get(THINKING)

    def as_trained(self, model: SampledModel, wanted_by: str) -> SampledModel:
        """The student, what it was before, or its teacher, in the mode of the student's examples."""
        asked = in_mode_of(self.trained_thinking, model)
        if asked is not model:
            log.info("%s: %s is asked without thinking, as in all examples of train", wanted_by, model.name)
        return asked

    @cached_property
    def extra(self) -> dict[str, ExtraModel]:
        """The models that are only compared, by name."""
        return {extra.name: extra for extra in self.recipe.eval.extra}

    def card(self, model: str) -> tuple[str, TeacherCard | StudentCard]:
        """The card of a model that eval compares, and its name."""
        extra = self.extra.get(model)
        teacher = extra.teacher if extra else self.recipe.generate.teacher if model == "teacher" else None
        if teacher is not None:
            return called(teacher), self.cards.teachers[called(teacher)]
        student = called(extra.student if extra and extra.student else self.recipe.train.student)
        return student, self.cards.students[student]

    def model(self, name: str) -> SampledModel:
        """A model that eval compares, by the name that results call it."""
        extra = self.extra.get(name)
        if name in self.student_stages:
            checkpoint = self.directory(self.student_stages[name]) / CHECKPOINT
            return sampled_student(name, self.student_card, checkpoint)
        if extra is None:
            return self.teacher if name == "teacher" else self.base
        _, card = self.card(name)
        if isinstance(card, TeacherCard):
            return sampled_teacher(name, card)
        return sampled_student(name, card, Path(extra.checkpoint) if extra.checkpoint else None)

    @cached_property
    def prompt(self) -> Prompt:
        """The prompt of generate, which the student is trained with, and those of sources of their own."""
        sources, prompts = self.recipe.problems.sources, self.cards.prompts
        own = {
            name: prompts[source.prompt]
            for name, source in zip(source_names(sources), sources, strict=True)
            if source.prompt is not None
        }
        prompt = prompts[self.recipe.generate.prompt]
        return replace(prompt, by_source={name: one for name, one in own.items() if one != prompt})

    def eval_prompt(self, task: Task | None) -> Prompt:
        """The prompt of an eval task: its own, else the recipe's for eval, its card's, or generate's."""
        card = None if task is None else self.task_card(task)
        named = (task and task.prompt) or self.recipe.eval.prompt or (card and card.prompt)
        return self.cards.prompts[named or self.recipe.generate.prompt]

    def run_named(self, flag: str, name: str, stage: str = "") -> Path:
        """The directory of another run, which `flag` gives by its name or path. RecipeError where there is
        none, or none that holds `stage`."""
        path = Path(name) if Path(name).is_dir() and not (self.runs / name).is_dir() else self.runs / name
        if not (path / stage).is_dir():
            runs = sorted(self.runs.iterdir()) if self.runs.is_dir() else []
            known = [run.name for run in runs if run.is_dir() and (run / stage).is_dir()]
            raise RecipeError(
                f"{flag} {name}: {path / stage} does not exist; {nearest(name, known or ['none'])}"
            )
        return path

    def stage_named(self, flag: str, name: str, stage: str, needed: bool = True) -> Path:
        """The directory of `stage` that `flag` names by its run, or one that lies aside: demo/generate.1.

        RecipeError where there is no such run or, if it is `needed`, no such directory in it."""
        for path in (self.runs / name, Path(name)):
            kind, _, number = path.name.partition(".")
            if kind == stage and (number.isdecimal() or not number) and path.is_dir():
                return path
        return self.run_named(flag, name, stage if needed else "") / stage


def load_context(
    path: Path, runs: Path, start: Start | None = None, overrides: list[str] | None = None
) -> Context:
    """Load a recipe and all that it names. RecipeError on any fault of the recipe or of a card."""
    recipe = load_recipe(path, overrides)
    with inside(str(path)):
        cards = load_cards(recipe)
    return Context(recipe, cards, runs, start or Start(recipe=str(path)))
