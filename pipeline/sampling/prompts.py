"""Prompts as token ids: the tokenizer's chat template with the generation prompt, the same everywhere.

Token ids and not text go to the engine, so nothing is tokenized twice and no beginning-of-text token doubles.
Training renders its examples with the same template and options.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.cards import SampledModel


class ChatPrompts:
    """The chat template of `tokenizer`, or the one that the model's card puts in its place."""

    def __init__(self, tokenizer: Any, model: SampledModel) -> None:
        self._tokenizer = tokenizer
        self._options = dict(model.template_options)
        if model.template is not None:
            self._options["chat_template"] = Path(model.template).read_text(encoding="utf-8")

    def ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of the prompt, up to and with what opens the answer."""
        return list(
            self._tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False, **self._options
            )
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text with special tokens: a model may mark its thinking with them."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def load_prompts(model: SampledModel) -> ChatPrompts:
    """The prompts of a model whose engine has not started. Reads the tokenizer's files, never the weights."""
    from transformers import AutoTokenizer

    return ChatPrompts(AutoTokenizer.from_pretrained(model.model, revision=model.revision), model)
