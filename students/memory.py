"""Whether the student will fit its device, asked before the first step: the estimate of pipeline.plan.memory
for the very model.

On a GPU `--gradient-checkpointing` and then `--context-parallel` follow from it where they are not given;
nothing is refused, as an estimate is no proof, but the flags that would fit are named. The same for the disk.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import StageError
from pipeline.flags import TrainFlags
from pipeline.plan.memory import CHECKPOINTING, GIB, SHARING, fits, least_change, load_of, need
from pipeline.recipe.cards import ModelSize
from pipeline.recipe.reading import experts_of
from pipeline.recipe.schema import Train

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2  # while the next one is written
TRAIN_ADVICE = "Take --gradient-checkpointing, fewer --tokens-per-device or a lower train.max_length"
POLISH_ADVICE = (
    "Take fewer --tokens-per-device, a lower polish.max_tokens or polish.method: lora; a teacher whose "
    "weights do not fit beside the student is served elsewhere (polish.divergence: sampled, --engine server, "
    "--url)"
)


@contextmanager
def explaining_lack_of_memory(stage: str, advice: str) -> Iterator[None]:
    """StageError with `advice` where a GPU's memory runs out in the block, which decorates a function too."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error).split(". ")[0][:200]
        raise StageError(
            f"{stage}: the device's memory ran out ({said}). {advice}; python -m pipeline plan says what is "
            "needed. What was finished is kept: run the same command again"
        ) from error


def num_weights(parameter: nn.Parameter) -> int:
    """How many it holds: a quantised matrix packs two into a byte."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


def size_of_model(student: PreTrainedModel) -> ModelSize:
    """The loaded student's size; widths stay unknown for a mixture of experts or an unusual configuration."""
    config = student.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    experts, _ = experts_of(config.to_dict())
    parameters = sum(map(num_weights, student.parameters()))
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


def settle(
    student: PreTrainedModel,
    recipe: Train,
    flags: TrainFlags,
    room: float | None,
    sizes: Sequence[int] = (),
    attention: str = "",
) -> TrainFlags:
    """The flags with gradient checkpointing and the sharing of rows decided, after one line that says what
    the student will take.

    `room`: GiB of the device; None where it is a CPU. `sizes`: how many processes could share a row.
    `attention`: transformers' name for the one that the layout has chosen.
    """
    size = size_of_model(student)
    shards, sharers = flags.processes if flags.sharded else 1, flags.context_parallel or 1
    load = load_of(recipe, flags.tokens_per_device, bool(flags.gradient_checkpointing), shards, sharers)
    if attention == "eager":  # a model of mixers alone has no heads
        heads = getattr(student.config.get_text_config(), "num_attention_heads", None) or 0
        load = replace(load, scores=heads * recipe.max_length)
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
    wanted, fitting = least_change(size, recipe, load, room, sizes)
    if flags.gradient_checkpointing is None and fitting == replace(load, checkpointing=True):
        log.info("memory: that is too much, so %s is taken", wanted)
        return replace(flags, gradient_checkpointing=True)
    if wanted and flags.context_parallel is None:
        checkpointing = flags.gradient_checkpointing is not False
        for number in (size for size in sizes if flags.processes % size == 0):
            if fits(size, load_of(recipe, flags.tokens_per_device, checkpointing, shards, number), room):
                log.info(
                    "memory: that is too much, so %s%s %d is taken",
                    f"{CHECKPOINTING} with " if checkpointing and not flags.gradient_checkpointing else "",
                    SHARING,
                    number,
                )
                return replace(flags, gradient_checkpointing=checkpointing, context_parallel=number)
    if wanted:
        log.warning("memory: more than the device has. What would fit: %s", wanted)
    return decided


def say_disk(student: nn.Module, dtype: torch.dtype, method: str, steps: Path) -> None:
    """A warning where the disk has no room for what training writes beside `steps`: as much as is trained, in
    fp32, with AdamW's two moments in each checkpoint, and at the end the weights once and in `dtype`."""
    every = trained = 0
    for weight in student.parameters():
        every += num_weights(weight)
        trained += weight.numel() * weight.requires_grad
    adapter = 0 if method == "full" else 4 * trained  # a copy
    most = ((KEPT_CHECKPOINTS + 1) * 3 * 4 + 4) * trained + adapter + dtype.itemsize * every
    held = sum(path.stat().st_size for path in steps.rglob("*") if path.is_file())
    room = held + shutil.disk_usage(steps.parent).free
    if room < most:
        log.warning(
            "disk: train writes up to %.1f GiB into %s, where %.1f GiB are free or its own. Make room: when "
            "the disk is full it ends, and goes on from its last checkpoint when it is run again",
            most / GIB,
            steps.parent,
            room / GIB,
        )


def polish_checkpoints(flags: TrainFlags, device: str) -> bool:
    """Whether polish checkpoints gradients: on a GPU unless the flag says not to, for the teacher and two
    models' logits are in its memory too."""
    return device == "cuda" if flags.gradient_checkpointing is None else flags.gradient_checkpointing


def device_gib(device: str) -> float | None:
    """What the GPU has in all; None on a CPU, whose memory others share."""
    return torch.cuda.get_device_properties(0).total_memory / GIB if device == "cuda" else None
