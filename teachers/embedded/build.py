"""Train the embedded teacher from scratch on the CPU: a tiny Qwen3-MoE that reasons in worked steps.

Reads nothing. Writes model.safetensors (bf16), config.json, generation_config.json, the tokenizer files
and chat_template.jinja beside this file, or to the directory given:
`python -m teachers.embedded.build [DIRECTORY]`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.embedded import (
    SEED,
    Schedule,
    Text,
    build,
    chat_completion,
    chat_prompt,
    mixed_items,
)
from teachers.embedded.steps import SOLVERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Stopped well before it is perfect: at temperature 1 it still errs, as a real teacher does.
SCHEDULE = Schedule(steps=1300, rows=16, learning_rate=2e-3)


def worked_texts(seed: int) -> Iterator[Text]:
    """Endless problems with their worked steps; no question is a reserved one."""
    for item in mixed_items(seed):
        thinking, answer = SOLVERS[item.family](item.entry["metadata"])
        yield Text(chat_prompt(item.question), chat_completion(thinking, answer))


def build_model(vocab_size: int, eos: int, pad: int) -> "PreTrainedModel":
    """1.8M parameters in 8 experts a layer, 2 of them active."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(SEED)
    unnamed: dict[str, Any] = {"head_dim": 32}  # the model reads it, the configuration's signature lacks it
    config = Qwen3MoeConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        router_aux_loss_coef=0.001,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        **unnamed,
    )
    model = Qwen3MoeForCausalLM(config)
    # five times the speed of the default experts in fp32
    model.set_experts_implementation("grouped_mm")
    model.config.output_router_logits = True  # adds the load-balancing loss
    return model


if __name__ == "__main__":
    build(Path(__file__).parent, build_model, worked_texts(SEED + 1), SCHEDULE)
