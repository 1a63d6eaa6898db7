"""`python -m pipeline chat`: talk to the finished student in a terminal, its thinking dimmed.

Each question is put in the recipe's prompt style; earlier turns keep their answers and lose their thinking,
as in the student's training. An empty line or Ctrl-D ends.
"""

import sys
from collections.abc import Iterator
from threading import Thread
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, TextIteratorStreamer

from pipeline.render import Tags, messages, split_thinking
from pipeline.sampling.prompts import ChatPrompts
from pipeline.stage import Context
from students.fit import quiet_libraries
from students.format import load_tokenizer
from students.model import pick_device
from students.serve import finished_student

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def run(context: Context, device: str = "auto") -> None:
    """Read questions from stdin, write answers to stdout, until an empty line."""
    quiet_libraries()
    model = finished_student(context)
    place = pick_device(device)
    dtype = torch.float32 if place == "cpu" else getattr(torch, model.dtype)
    tokenizer = load_tokenizer(model.model, None)
    student = AutoModelForCausalLM.from_pretrained(model.model, dtype=dtype, trust_remote_code=False)
    cast(Any, student).to(place)
    prompts = ChatPrompts(tokenizer, model)
    history: list[dict[str, str]] = []
    print(f"{context.recipe.name}: ask something; an empty line ends.", file=sys.stderr)
    while question := read_question():
        history += messages(question, context.recipe.generate.prompt)
        text = "".join(show(stream(student, tokenizer, prompts.ids(history)), model.tags))
        history.append({"role": "assistant", "content": split_thinking(text, model.tags).answer})


def read_question() -> str:
    print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def stream(student: PreTrainedModel, tokenizer: Any, prompt: list[int]) -> Iterator[str]:
    """The response, piece by piece, with the sampling of the student's generation_config.json."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = torch.tensor([prompt], device=student.device)
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "streamer": streamer}
    worker = Thread(target=cast(Any, student).generate, kwargs=options, daemon=True)
    worker.start()
    yield from streamer
    worker.join()


def show(pieces: Iterator[str], tags: Tags) -> Iterator[str]:
    """Print pieces as they come, those before the closing tag dimmed; yields them."""
    colour = sys.stdout.isatty()
    thinking, text = tags.opened_by_prompt, ""
    if colour and thinking:
        print(DIM, end="")
    for piece in pieces:
        text += piece
        if not thinking and colour and tags.open in piece:
            thinking = True
            print(DIM, end="")
        print(piece, end="", flush=True)
        if thinking and tags.close in text:
            thinking = False
            print(PLAIN if colour else "", end="")
        yield piece
    print(PLAIN if colour else "")
