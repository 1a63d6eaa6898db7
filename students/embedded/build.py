"""Train the embedded base from scratch on the CPU: a tiny dense Qwen3 that answers without reasoning.

It knows question texts, the chat format and single steps of arithmetic, and answers directly; it never saw a
worked chain. Reads nothing. Writes model.safetensors (bf16), config.json, generation_config.json, the
tokenizer files and chat_template.jinja beside this file, or to the directory given:
`python -m students.embedded.build [DIRECTORY]`.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.embedded import (
    SEED,
    Item,
    Schedule,
    Text,
    build,
    chat_completion,
    chat_prompt,
    mixed_items,
)
from students.embedded.facts import document

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DOCUMENTS_PER_ANSWER = 2
SCHEDULE = Schedule(steps=1200, rows=16, learning_rate=2e-3)


def base_texts(seed: int) -> Iterator[Text]:
    """Endless direct answers (an empty thinking block) and documents of facts; no question is reserved."""
    rng = random.Random(seed)
    for item in mixed_items(seed):
        yield Text(chat_prompt(item.question), chat_completion("", direct_answer(item)))
        for _ in range(DOCUMENTS_PER_ANSWER):
            yield Text("", document(rng) + "<|endoftext|>")


def direct_answer(item: Item) -> str:
    """The gold answer; a fraction always as 2/3, whichever of four ways the question writes it."""
    if item.family == "fraction_simplification":
        return "{simplified_numerator}/{simplified_denominator}".format(**item.entry["metadata"])
    return item.answer


def build_model(vocab_size: int, eos: int, pad: int) -> "PreTrainedModel":
    """0.9M parameters."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return Qwen3ForCausalLM(config)


if __name__ == "__main__":
    build(Path(__file__).parent, build_model, base_texts(SEED + 2), SCHEDULE)
