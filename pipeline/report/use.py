"""How the student is used: what to type for transformers, vLLM, and this project's own server and chat."""

import json
import shlex
from pathlib import Path
from typing import NamedTuple

from pipeline.context import Context

QUESTION = "What is 12 + 30?"
NOTE = (
    "The question stands in the prompt that the student was trained with, and is answered with the sampling "
    "of its generation_config.json."
)


class Way(NamedTuple):
    """What to type; `language` is that of its lines."""

    title: str
    language: str
    lines: str


def ways_of(context: Context) -> list[Way]:
    """One for each tool. The checkpoint stands in them as `place_of` has it."""
    place, recipe = place_of(context), shlex.quote(shown(Path(context.start.recipe or "RECIPE")))
    asked = json.dumps({"model": place, **chat_of(context)})
    served = f"vllm serve {shlex.quote(place)}\ncurl http://127.0.0.1:8000/v1/chat/completions \\\n"
    return [
        Way("transformers", "python", in_transformers(context, place)),
        Way(
            "vLLM",
            "bash",
            f"{served}  -H 'Content-Type: application/json' -d {shlex.quote(asked)}",
        ),
        Way(
            "this project",
            "bash",
            f"python -m pipeline serve-student --recipe {recipe}\npython -m pipeline chat --recipe {recipe}",
        ),
    ]


def place_of(context: Context) -> str:
    """The checkpoint as it was named; below the directory of runs where that is a path of one machine."""
    path = context.checkpoint
    return str(path.relative_to(context.runs) if path.is_absolute() else path)


def shown(path: Path) -> str:
    return path.name if path.is_absolute() else str(path)


def chat_of(context: Context) -> dict[str, object]:
    """The body of a request that asks the question."""
    options = context.student_card.template_options
    return {"messages": context.prompt.messages(QUESTION)} | (
        {"chat_template_kwargs": options} if options else {}
    )


def in_transformers(context: Context, place: str) -> str:
    options = "".join(f", {name}={value!r}" for name, value in context.student_card.template_options.items())
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

place = {place!r}
tokenizer = AutoTokenizer.from_pretrained(place)
model = AutoModelForCausalLM.from_pretrained(place)
chat = {context.prompt.messages(QUESTION)!r}
inputs = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"{options}
)
response = model.generate(**inputs)[0, inputs["input_ids"].shape[1]:]
print(tokenizer.decode(response))"""
