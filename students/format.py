"""From an example's messages to token ids and a loss mask, with the student's own chat template.

The prompt is rendered by pipeline.sampling.prompts, which is also what eval sends to vLLM, so its ids are the
same ones. The trained turn never goes through the template: templates drop thinking, write it twice or ignore
`reasoning_content`. It is joined here, once, with the student's own tags, and encoded apart from the prompt,
as the model will produce it.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.recipe.cards import SampledModel, StudentCard, Tags
from pipeline.records import Key
from pipeline.render import join_response, split_message
from pipeline.sampling.prompts import ChatPrompts, load_tokenizer

NUM_BLANKS = 16  # tokens of white space that a prompt may write after an opening tag
IGNORED = -100  # the label that no loss is taken on, in torch and in every trainer above it


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as the model sees it: `ids`, and how many of them are the prompt (without loss). `key` says
    which trace it was."""

    ids: list[int]
    num_prompt: int
    key: Key | None = field(default=None, compare=False)

    @property
    def prompt(self) -> list[int]:
        return self.ids[: self.num_prompt]

    @property
    def trained(self) -> list[int]:
        return self.ids[self.num_prompt :]

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.num_prompt + self.trained


@dataclass(frozen=True)
class Format:
    """How one student writes: tokenizer with its template, prompts, tags and the end of its turn."""

    tokenizer: Any
    prompts: ChatPrompts
    tags: Tags
    turn_end: str

    @property
    def turn_end_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(self.turn_end))

    @cached_property
    def special(self) -> frozenset[str]:
        """What the tokenizer reads as one control token wherever it stands in a text."""
        added = self.tokenizer.added_tokens_decoder.values()
        return frozenset({*self.tokenizer.all_special_tokens, *(t.content for t in added if t.special)})

    def encode(self, messages: list[dict[str, str]]) -> Encoded:
        """The ids of an example whose last message is the trained one. StageError where there is none."""
        *asked, trained = messages
        if trained["role"] != "assistant" or not asked:
            raise StageError(
                "an example's last message must be the assistant's, after at least one other; found roles "
                f"{[message['role'] for message in messages]}. Run: make filter again"
            )
        split = split_message(trained, self.tags)
        prompt = self.prompts.ids(asked, thinking=split.thinking is not None)
        text = join_response(split, self.tags, self.opening(prompt))
        return Encoded(prompt + self.prompts.encode(text + self.turn_end), len(prompt))

    def opening(self, prompt: list[int]) -> str:
        """What the end of a prompt opened already: the opening tag and the white space after it, or ''."""
        if not self.tags:
            return ""
        # a token is a byte at least, so the whole tag is among these, with white space behind it
        tail = self.prompts.decode(prompt[-len(self.tags.open.encode()) - NUM_BLANKS :])
        start = tail.rfind(self.tags.open)
        if start < 0 or tail[start + len(self.tags.open) :].strip():
            return ""
        return tail[start:]


def load_format(card: StudentCard, model: SampledModel) -> Format:
    """The format of a student: the card's template and `eos`, else the tokenizer's own. Reads no weights."""
    tokenizer = load_tokenizer(model.model, model.revision)
    if model.template is not None:
        tokenizer.chat_template = Path(model.template).read_text(encoding="utf-8")
    if tokenizer.chat_template is None:
        raise StageError(
            f"{model.model}: its tokenizer has no chat template; name one of students/templates/*.jinja as "
            "`template` in the student's card"
        )
    end = card.eos or tokenizer.eos_token
    if end is None:
        raise StageError(
            f"{model.model}: its tokenizer names no end-of-text token; state `eos` in the student's card"
        )
    return Format(tokenizer, ChatPrompts(tokenizer, model), model.tags, end)
