"""`python -m pipeline preflight`: show what would be trained on, and run every check, without training.

Before the filter stage has finished, one made-up example stands in, so that a template, a token or a weight
file that would spoil the run is found before anything is generated.
"""

import sys

from pipeline.cards import sampled_student, student_card
from pipeline.records import Example
from pipeline.render import messages
from pipeline.revisions import pinned
from pipeline.stage import Context, read_manifest
from students.examples import build, read_examples
from students.fit import EXAMPLES, quiet_libraries
from students.flags import TrainFlags
from students.format import load_format
from students.model import load_student, pick_device
from students.preflight import Subject, choose, preflight, render


def run(context: Context, flags: TrainFlags | None = None) -> None:
    """Print the examples and the checks. StageError with every fault."""
    quiet_libraries()
    recipe = context.recipe
    card = student_card(recipe.train.student)
    model = pinned(context.run, sampled_student(recipe.train.student))
    style = load_format(card, model)
    examples, where = examples_of(context)
    shown = choose(examples, style, recipe.train)
    for number, one in enumerate(shown, start=1):
        trained = len(one.encoded.ids) - one.encoded.num_prompt
        print(f"--- example {number} ({where}): {len(one.encoded.ids)} tokens, {trained} trained on")
        print(render(one.encoded, style, colour=sys.stdout.isatty()))
    data = build(examples, style, recipe.train, recipe.seed)
    student = load_student(card, model, recipe.train, pick_device((flags or TrainFlags()).device))
    checks = preflight(Subject(recipe, card, model, style, student, shown, data.largest_id))
    dropped = "".join(f", {count:,} {reason}" for reason, count in data.dropped.items())
    print(f"--- {len(data.train):,} examples to train on, {len(data.held_out):,} held out{dropped}")
    print(f"preflight: {len(checks)} checks passed: {', '.join(checks)}")


def examples_of(context: Context) -> tuple[list[Example], str]:
    """The examples of a finished filter stage, or a made-up one; and where they are from."""
    directory = context.directory("filter")
    if read_manifest(directory) is not None:
        return read_examples(directory / EXAMPLES), EXAMPLES
    tags = student_card(context.recipe.train.student).thinking
    answer = f"{tags.open}\n2 + 2 is 4.\n{tags.close}\n\n\\boxed{{4}}"
    chat = [
        *messages("What is 2 + 2?", context.recipe.generate.prompt),
        {"role": "assistant", "content": answer},
    ]
    return [Example("made-up", 0, chat, 0)], "made up, as filter has not finished"
