"""A run up to its trained student, made in a minute: the teacher's weights write the traces, no engine starts."""

from pathlib import Path
from typing import Any

from pipeline.context import Context, load_context
from pipeline.problems.stage import run as run_problems
from pipeline.records import Example, ProblemFile, write_examples
from pipeline.render import split_response
from pipeline.run.contract import Counts, Plan, Start, begin
from students.train import EXAMPLES
from students.train import run as run_train
from tests.conftest import RECIPE

SUMS = "{reasoning_gym: chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}}"
SECTION = """\
polish:
  rounds: 3
  problems_per_round: 32
  batch_size: 16
  max_tokens: 120
  learning_rate: 2.0e-4
  held_out: 24
  evaluate_every: 2
"""
CHANGES = ("train.held_out_share=0.1", "train.epochs=5", "train.batch_size=32",
           "train.learning_rate=2e-3")  # fmt: skip


def polish_recipe(directory: Path) -> Path:
    path = directory / "small.yaml"
    source = "{reasoning_gym: count_bits, size: 500, config: {min_n: 256, max_n: 4095}}"
    path.write_text(RECIPE.replace(SUMS, source, 1) + SECTION)
    return path


def context_in(runs: Path, *overrides: str) -> Context:
    """The context of the recipe beside `runs`."""
    path = runs.parent / "small.yaml"
    return load_context(path, runs, Start(recipe=str(path)), [*CHANGES, *overrides])


def embedded_teacher(context: Context) -> Any:
    """The teacher's weights, as polish asks them."""
    from pipeline.sampling.prompts import load_prompts
    from students.model import load_teacher
    from students.scoring import TeacherWeights

    prompts = load_prompts(context.teacher)
    assert prompts is not None
    end = prompts.encode("<|im_end|>")[0]
    return TeacherWeights(load_teacher(context.teacher, "cpu"), prompts, end)


def train_student(context: Context) -> None:
    """Problems, examples of the teacher's greedy responses, and the student that is trained on them."""
    run_problems(context)
    problems = list(ProblemFile(context.directory("problems") / "problems.jsonl"))
    teacher = embedded_teacher(context)
    chats = [context.prompt.messages(problem.question) for problem in problems]
    examples = []
    for problem, chat, ids in zip(problems, chats, teacher.write(chats, 120), strict=True):
        split = split_response(teacher.prompts.decode(ids[:-1]), context.teacher.tags)
        turn = {"role": "assistant", "reasoning_content": split.thinking or "", "content": split.answer}
        if ids[-1] == teacher.end and split.closing == "closed":
            examples.append(Example(problem.id, 0, [*chat, turn], len(ids)))
    with begin(context.directory("filter"), Plan("filter", 1, {}, {}, 0), Start()) as stage:  # type: ignore[union-attr]
        write_examples(stage.directory / EXAMPLES, examples)
        stage.finish(Counts(len(examples), len(examples)), {EXAMPLES: len(examples)})
    run_train(context)
