"""`python -m pipeline chat`: talk to the finished student in a terminal, its thinking dimmed.

Each question is put in the recipe's prompt style; earlier turns keep their answers and lose their thinking,
as in the student's training. An empty line or Ctrl-D ends.
"""

import sys
import time
from collections.abc import Iterator
from threading import Thread
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, TextIteratorStreamer

from pipeline.context import Context
from pipeline.recipe.cards import Tags
from pipeline.render import split_response
from pipeline.sampling.prompts import ChatPrompts, load_tokenizer
from students.model import pick_device, quiet_libraries

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def run(context: Context, device: str = "auto") -> None:
    """Read questions from stdin, write answers to stdout, until an empty line."""
    quiet_libraries()
    begun = time.monotonic()
    model = context.finished_student("chat")
    place = pick_device(device)
    dtype = torch.float32 if place == "cpu" else getattr(torch, model.dtype)
    tokenizer = load_tokenizer(model.model, None)
    student = AutoModelForCausalLM.from_pretrained(model.model, dtype=dtype, trust_remote_code=False)
    cast(Any, student).to(place)
    prompts = ChatPrompts(tokenizer, model)
    history: list[dict[str, str]] = []
    taken = f"loaded in {time.monotonic() - begun:.1f} s on {place}"
    print(f"{context.recipe.name}: {taken}; ask something; an empty line ends.", file=sys.stderr)
    while question := read_question():
        asked = context.prompt.messages(question)
        history += asked[-1:] if history else asked  # a system turn stands once, at the beginning
        text = "".join(show(stream(student, tokenizer, prompts.ids(history)), model.tags))
        history.append({"role": "assistant", "content": split_response(text, model.tags).answer})


def read_question() -> str:
    print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def stream(student: PreTrainedModel, tokenizer: Any, prompt: list[int]) -> Iterator[str]:
    """The response, piece by piece, with the sampling of the student's generation_config.json.

    Special tokens stay in it but for the end of the turn: a student's tags may be some.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=False)
    ids = torch.tensor([prompt], device=student.device)

    def write() -> None:
        try:
            cast(Any, student).generate(input_ids=ids, attention_mask=torch.ones_like(ids), streamer=streamer)
        finally:
            streamer.end()  # else a failure would leave the reader waiting

    worker = Thread(target=write, daemon=True)
    worker.start()
    for piece in streamer:
        yield piece.removesuffix(tokenizer.eos_token)
    worker.join()


def show(pieces: Iterator[str], tags: Tags) -> Iterator[str]:
    """Print pieces as they come, those up to the closing tag dimmed; yields them."""
    colour = sys.stdout.isatty()
    text, dim = "", False
    for piece in pieces:
        text += piece
        head, closed, answer = text.partition(tags.close) if tags else (text, "", "")
        thinking = (
            bool(tags) and not closed and (tags.opened_by_prompt or head.lstrip().startswith(tags.open))
        )
        if colour and thinking and not dim:
            print(DIM, end="")
            dim = True
        rest = answer if closed and dim else ""
        print(piece[: len(piece) - len(rest)], end="")
        if dim and closed:
            print(PLAIN + rest, end="")
            dim = False
        sys.stdout.flush()
        yield piece
    print(PLAIN if dim else "")
