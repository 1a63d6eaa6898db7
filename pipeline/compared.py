"""The models that eval compares, as a recipe names them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.strict_yaml import Strict

Compared = Literal["base", "student", "teacher"]
# keys of a task's entry in results.json that an extra model cannot be called
RESERVED_NAMES = {"base", "student", "teacher", "paired", "gap_recovered", "budget", "forced_budget"} | {
    "contamination", "task"
}  # fmt: skip


class ExtraModel(Strict):
    """A model that is only compared: `student` or `teacher` names the card that says how it is asked, and a
    student's card may be given another `checkpoint`. A served one is a flag: --url <name>=http://..."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]  # it names files
    student: str | None = None
    teacher: str | None = None
    checkpoint: str | None = None

    @model_validator(mode="after")
    def _one_card(self) -> "ExtraModel":
        if (self.student is None) == (self.teacher is None):
            raise ValueError("name one card, either student or teacher")
        if self.checkpoint is not None and self.student is None:
            raise ValueError("a checkpoint is read with a student's card; name it")
        if self.name in RESERVED_NAMES:
            raise ValueError(f"the name '{self.name}' is taken; choose another")
        return self
