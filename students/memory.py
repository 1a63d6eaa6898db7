"""Whether the student will fit its device, asked before the first step: the estimate of pipeline.plan.memory
for the very model.

On a GPU `--gradient-checkpointing` follows from it where it is not given; nothing is refused, as an estimate
is no proof, but the flags that would fit are named.
"""

import logging
from dataclasses import replace

import torch
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

from pipeline.flags import TrainFlags
from pipeline.plan.memory import GIB, least_change, load_of, need
from pipeline.recipe.cards import ModelSize
from pipeline.recipe.schema import Train

log = logging.getLogger(__name__)


def size_of_model(student: PreTrainedModel) -> ModelSize:
    """The loaded student's size; widths stay unknown for a mixture of experts or an unusual configuration."""
    config = student.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    # a quantised matrix packs two of its weights into a byte
    parameters = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in student.parameters())
    return ModelSize(
        parameters=parameters,
        active_parameters=parameters,
        layers=config.num_hidden_layers,
        kv_values_per_layer=2 * head_dim * (getattr(config, "num_key_value_heads", None) or heads),
        hidden=config.hidden_size,
        mlp=getattr(config, "intermediate_size", None) if experts == 1 else None,
        queries=heads * head_dim,
        vocabulary=config.vocab_size,
    )


def settle(student: PreTrainedModel, recipe: Train, flags: TrainFlags, room: float | None) -> TrainFlags:
    """The flags with gradient checkpointing decided, after one line that says what the student will take.

    `room`: GiB of the device; None where it is a CPU.
    """
    shards = flags.processes if is_fsdp_enabled() or is_deepspeed_zero3_enabled() else 1
    size = size_of_model(student)
    load = load_of(recipe, flags.tokens_per_device, bool(flags.gradient_checkpointing), shards)
    decided = replace(flags, gradient_checkpointing=load.checkpointing)
    found = need(size, load)
    if found is None or room is None:
        if found is not None:
            # SmolLM2-135M with LoRA was killed on a CPU at 17 GB where this says 8.09 GiB
            log.info(
                "memory: about %.2f GiB on a GPU; a CPU trains in fp32 and takes more (%s)",
                found.total / GIB,
                found,
            )
        return decided
    log.info("memory: about %.1f of %.1f GiB (%s)", found.device_gib, room, found)
    wanted, fitting = least_change(size, recipe, load, room)
    if flags.gradient_checkpointing is None and fitting == replace(load, checkpointing=True):
        log.info("memory: that is too much, so %s is taken", wanted)
        return replace(flags, gradient_checkpointing=True)
    if wanted:
        log.warning("memory: more than the device has. What would fit: %s", wanted)
    return decided


def polish_checkpoints(flags: TrainFlags, device: str) -> bool:
    """Whether polish checkpoints gradients: on a GPU unless the flag says not to, for the teacher and two
    models' logits are in its memory too."""
    return device == "cuda" if flags.gradient_checkpointing is None else flags.gradient_checkpointing


def device_gib(device: str) -> float | None:
    """What the GPU has in all; None on a CPU, whose memory others share."""
    return torch.cuda.get_device_properties(0).total_memory / GIB if device == "cuda" else None
