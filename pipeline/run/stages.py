"""The table of stages. A new stage is one row here, one section of the schema and one module.

Everything that must know the stages reads this table: the command line, make (this file prints the names when
it is run), the report, publish, compare, serve, chat and eval. It imports nothing: make asks any Python.
"""

from __future__ import annotations  # for the older Python that make may find

from typing import NamedTuple


class Stage(NamedTuple):
    """`home` is module:function, resolved by the command line alone. `reads` names the stages that it reads.

    `section` is the recipe's section without which a run has no such stage: make and whoever goes through the
    stages passes it over then. `unit` is what its counts count;
    `shown` are the files that a report reads (None: all). `checkpoint`: it leaves a student in checkpoint/.
    `samples`: it takes --adopt, because what it asks of an engine is paid for.
    """

    name: str
    home: str
    section: str
    help: str
    unit: str = ""
    reads: tuple[str, ...] = ()
    shown: tuple[str, ...] | None = ()
    checkpoint: bool = False
    samples: bool = False


STAGES = (
    Stage(
        "problems",
        "pipeline.problems.stage:run",
        section="problems",
        help="Load, check, dedupe and decontaminate the problems",
        unit="problems",
        shown=("problems.jsonl",),
    ),
    Stage(
        "generate",
        "teachers.generate:run",
        section="generate",
        help="Sample the teacher through vLLM, verify beside it",
        unit="traces sampled",
        reads=("problems",),
        samples=True,
    ),
    Stage(
        "judge",
        "pipeline.judging.stage:run",
        section="judge",
        help="Ask a judge where verifiers cannot tell, in recipes that have one",
        reads=("problems", "generate"),
        samples=True,
    ),
    Stage(
        "filter",
        "pipeline.filter.stage:run",
        section="filter",
        help="Keep verified traces, drop the rest for a reason",
        unit="traces kept",
        reads=("problems", "generate", "judge"),
        shown=("kept.jsonl", "dropped.jsonl"),
    ),
    Stage(
        "train",
        "students.train:run",
        section="train",
        help="Fine-tune the student (TRL, full or LoRA)",
        unit="examples",
        reads=("problems", "filter"),
        shown=("metrics.jsonl",),
        checkpoint=True,
    ),
    Stage(
        "polish",
        "students.polish:run",
        section="polish",
        help="Distil on what the student itself samples, where the recipe asks",
        reads=("problems", "train"),
        shown=("metrics.jsonl",),
        checkpoint=True,
    ),
    Stage(
        "eval",
        "eval.stage:run",
        section="eval",
        help="Measure base, student and teacher alike, with intervals",
        reads=("problems", "filter", "train", "polish"),
        shown=None,
        samples=True,
    ),
    Stage(
        "report",
        "pipeline.report.stage:run",
        section="report",
        help="Write report.html, report.md and the model card",
        reads=("problems", "generate", "judge", "filter", "train", "polish", "eval"),
    ),
)
NAMES = tuple(stage.name for stage in STAGES)
BY_NAME = {stage.name: stage for stage in STAGES}


def before(name: str) -> tuple[str, ...]:
    """The stages in front of `name`, in order."""
    return NAMES[: NAMES.index(name)]


if __name__ == "__main__":
    # a line for make: name, + where it takes --adopt, help without blanks
    print(*(f"{s.name}:{'+' * s.samples}:{s.help.replace(' ', '_')}" for s in STAGES))
