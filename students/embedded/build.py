"""Train the embedded base from scratch on the CPU: a tiny dense Qwen3 that answers without reasoning.

It knows question texts, the chat format and single steps of arithmetic, and answers directly; it never saw a
worked chain. Reads nothing. Writes model.safetensors (bf16), config.json, generation_config.json, the
tokenizer files and chat_template.jinja beside this file, or to the directory given:
`python -m students.embedded.build [DIRECTORY]`.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.embedded.training import (
    SEED,
    Item,
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
NUM_STEPS = 1200


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


def build_model(sizes: dict[str, Any]) -> "PreTrainedModel":
    """0.9M parameters."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(intermediate_size=384, **sizes))


if __name__ == "__main__":
    build(Path(__file__).parent, build_model, base_texts(SEED + 2), NUM_STEPS)
