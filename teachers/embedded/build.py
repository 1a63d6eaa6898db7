"""Train the embedded teacher from scratch on the CPU: a tiny Qwen3-MoE that reasons in worked steps.

Reads nothing. Writes model.safetensors (bf16), config.json, generation_config.json, the tokenizer files
and chat_template.jinja beside this file, or to the directory given:
`python -m teachers.embedded.build [DIRECTORY]`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.embedded.training import SEED, Text, build, chat_completion, chat_prompt, mixed_items
from teachers.embedded.steps import SOLVERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Stopped well before it is perfect: at temperature 1 it still errs, as a real teacher does.
NUM_STEPS = 1300


def worked_texts(seed: int) -> Iterator[Text]:
    """Endless problems with their worked steps; no question is a reserved one."""
    for item in mixed_items(seed):
        thinking, answer = SOLVERS[item.family](item.entry["metadata"])
        yield Text(chat_prompt(item.question), chat_completion(thinking, answer))


def build_model(sizes: dict[str, Any]) -> "PreTrainedModel":
    """1.8M parameters in 8 experts a layer, 2 of them active."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        intermediate_size=256,
        moe_intermediate_size=128,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        router_aux_loss_coef=0.001,
        **sizes,
    )
    model = Qwen3MoeForCausalLM(config)
    # five times the speed of the default experts in fp32
    model.set_experts_implementation("grouped_mm")
    model.config.output_router_logits = True  # adds the load-balancing loss
    return model


if __name__ == "__main__":
    build(Path(__file__).parent, build_model, worked_texts(SEED + 1), NUM_STEPS)
