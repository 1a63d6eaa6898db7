"""From an example's messages to token ids and a loss mask, with the student's own chat template.

The prompt is rendered by pipeline.sampling.prompts, which is also what eval sends to vLLM, so its ids are the
same ones. The trained turn never goes through the template: templates drop thinking, write it twice or ignore
`reasoning_content`. It is written here, once, from the thinking and the answer, and encoded apart from the
prompt, as the model will produce it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cards import SampledModel, StudentCard
from pipeline.errors import StageError
from pipeline.render import Split, Tags, split_thinking
from pipeline.sampling.prompts import ChatPrompts, load_tokenizer

IGNORED = -100  # the label that no loss is taken on, in torch and in every trainer above it


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as the model sees it: `ids`, and how many of them are the prompt (without loss)."""

    ids: list[int]
    num_prompt: int

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.num_prompt + self.ids[self.num_prompt :]


@dataclass(frozen=True, slots=True)
class Format:
    """How one student writes: tokenizer, prompts of its template, tags and the end of its turn."""

    tokenizer: Any
    prompts: ChatPrompts
    tags: Tags
    turn_end: str
    template: str | None = None

    @property
    def turn_end_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(self.turn_end))

    def encode(self, messages: list[dict[str, str]]) -> Encoded:
        """The ids of an example whose last message is the trained one. StageError where there is none."""
        *asked, trained = messages
        if trained["role"] != "assistant" or not asked:
            raise StageError(
                "an example's last message must be the assistant's, after at least one other; found roles "
                f"{[message['role'] for message in messages]}. Run: make filter again"
            )
        prompt = self.prompts.ids(asked)
        text = completion_text(split_message(trained, self.tags), self.opening(prompt), self.tags)
        completion = self.tokenizer.encode(text + self.turn_end, add_special_tokens=False)
        return Encoded(prompt + completion, len(prompt))

    def opening(self, prompt: list[int]) -> str:
        """What the end of a prompt opened already: the opening tag and the white space after it, or ''."""
        tail = self.tokenizer.decode(prompt[-16:], skip_special_tokens=False)
        start = tail.rfind(self.tags.open)
        if start < 0 or tail[start + len(self.tags.open) :].strip():
            return ""
        return tail[start:]


def split_message(message: dict[str, str], tags: Tags) -> Split:
    """Thinking and answer of a trained message, whichever of the two layouts it has."""
    if message.get("reasoning_content"):
        return Split(message["reasoning_content"].strip("\n"), message["content"].strip(), "closed")
    return split_thinking(message["content"], Tags(tags.open, tags.close, opened_by_prompt=False))


def completion_text(split: Split, opening: str, tags: Tags) -> str:
    """The trained turn without its end; `opening` is what the prompt wrote already.

    A prompt that opens a thinking block gets it closed: without thinking the block is empty.
    """
    if split.thinking is None and not opening:
        return split.answer
    block = f"{tags.open}\n{split.thinking or ''}\n{tags.close}\n\n{split.answer}"
    if not opening:
        return block
    body = block[len(tags.open) :]
    written = opening[len(tags.open) :]
    return body[len(written) :] if written and body.startswith(written) else body


def load_format(card: StudentCard, model: SampledModel) -> Format:
    """The format of a student. Reads the tokenizer's files, never the weights."""
    tokenizer = load_tokenizer(model.model, model.revision)
    if tokenizer.chat_template is None and model.template is None:
        raise StageError(
            f"{model.model}: its tokenizer has no chat template; name one of students/templates/*.jinja as "
            "`template` in the student's card"
        )
    return Format(
        tokenizer=tokenizer,
        prompts=ChatPrompts(tokenizer, model),
        tags=model.tags,
        turn_end=turn_end(card, tokenizer, model),
        template=Path(model.template).read_text(encoding="utf-8") if model.template else None,
    )


def turn_end(card: StudentCard, tokenizer: Any, model: SampledModel) -> str:
    """The token that ends the student's turn: the card's `eos`, else the tokenizer's own."""
    token = card.eos or tokenizer.eos_token
    if token is None:
        raise StageError(
            f"{model.model}: its tokenizer names no end-of-text token; state `eos` in the student's card"
        )
    return str(token)
