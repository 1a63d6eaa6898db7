"""`python -m pipeline preflight`: show what would be trained on, and run every check, without training.

Before the filter stage has finished, one made-up example stands in, so that a template, a token or a weight
file that would spoil the run is found before anything is generated.
"""

import sys
from collections.abc import Iterable

from pipeline.context import Context
from pipeline.recipe.cards import in_mode_of
from pipeline.records import Example, read_examples
from pipeline.run.revisions import pinned
from students.examples import build
from students.format import load_format
from students.in_vllm import check_answers
from students.layout import choose_layout
from students.model import load_student, pick_device, quiet_libraries
from students.preflight import Subject, preflight, render
from students.train import EXAMPLES


def run(context: Context) -> None:
    """Print the examples and the checks. StageError with every fault."""
    quiet_libraries()
    recipe, card = context.recipe, context.student_card
    model = pinned(context.run, context.base)
    style = load_format(card, model)
    examples, where = examples_of(context)
    data = build(examples, style, recipe.train, recipe.seed)
    for number, one in enumerate(data.shown, start=1):
        sizes = f"{len(one.encoded.ids)} tokens, {len(one.encoded.trained)} trained on"
        print(f"--- example {number} ({where}): {sizes}")
        print(render(one.encoded, style, colour=sys.stdout.isatty()))
    device = pick_device("auto")
    student = load_student(card, model, recipe.train, device)
    checks = preflight(Subject(recipe, card, model, style, student, data.shown, data.largest_id))
    if student.device.type != device:
        student.to(device)  # type: ignore[arg-type]  # its kernels are asked there
    layout = choose_layout(student, [one.encoded.ids for one in data.shown], recipe.train.max_length)
    dropped = "".join(f", {count:,} {reason}" for reason, count in data.dropped.items())
    print(f"--- {len(data.train):,} examples to train on, {len(data.held_out):,} held out{dropped}")
    print(f"--- examples are {layout.name}, attention {layout.attention}")
    if in_mode_of(data.thinking, model) is not model:
        print("--- no example has thinking, so eval, chat, serve and polish will ask for none")
    check_answers(model, student, data.shown[0].encoded.prompt)
    print(f"preflight: {len(checks)} checks passed: {', '.join(checks)}")


def examples_of(context: Context) -> tuple[Iterable[Example], str]:
    """The examples of a finished filter stage, or a made-up one; and where they are from."""
    if context.manifest("filter") is not None:
        return read_examples(context.directory("filter") / EXAMPLES), EXAMPLES
    answer = {"role": "assistant", "content": "\\boxed{4}", "reasoning_content": "2 + 2 is 4."}
    chat = [*context.prompt.messages("What is 2 + 2?"), answer]
    return [Example("made-up", 0, chat, 0)], "made up, as filter has not finished"
