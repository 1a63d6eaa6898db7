"""One row over several processes: context parallelism for examples that one device does not hold.

Each process takes an equal run of a row's tokens through the whole model. Before attention the processes
exchange: each then has all tokens of its share of the heads, and keeps examples apart as it would alone
(students.attention); after it they exchange back. This is DeepSpeed-Ulysses (arXiv 2309.14509). The library's
own ways do not keep packed examples apart: torch's ring attention, which accelerate's cp_size takes, is one
causal block with kernels for CUDA alone, and its sp_size wants DeepSpeed.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from transformers import AttentionInterface, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from pipeline.errors import RecipeError, StageError
from pipeline.flags import TrainFlags
from pipeline.plan.memory import share_out
from pipeline.recipe.schema import TopkLoss, Train
from students.attention import FLASH, NAME, attend_apart, register
from students.format import IGNORED
from students.layout import Layout


def obstacle(student: PreTrainedModel, layout: Layout) -> str | None:
    """What keeps processes from sharing a row of this student, however many they are, or None."""
    # of FlashAttention's student it is `attend_apart` that the layout was asked about, but on a GPU
    ours = layout.attention == NAME or (layout.attention == FLASH and student.device.type == "cpu")
    if not layout.packed or not ours:
        return f"its examples are {layout.name}, with attention {layout.attention}"
    if keeps_state(student):
        return "some of its layers carry a state along the row"
    return None


def heads_of(student: PreTrainedModel) -> tuple[int, int]:
    """Heads of attention, and those of them that hold keys."""
    config: Any = student.config.get_text_config()
    heads = config.num_attention_heads
    return heads, getattr(config, "num_key_value_heads", None) or heads


def keeps_state(student: PreTrainedModel) -> bool:
    """Whether a layer is no attention: a convolution over the row, linear attention, a state-space mixer."""
    return any(isinstance(module, nn.Conv1d) or hasattr(module, "A_log") for module in student.modules())


def possible_sizes(student: PreTrainedModel, layout: Layout, recipe: Train) -> list[int]:
    """How many processes can share a row of this student, were they launched."""
    if isinstance(recipe.loss, TopkLoss) or obstacle(student, layout) is not None:
        return []
    heads, keys = heads_of(student)
    return [size for size in range(2, heads + 1) if share_out(heads, keys, size)]


def check_sharing(student: PreTrainedModel, layout: Layout, flags: TrainFlags) -> None:
    """StageError where rows of the student cannot be shared as --context-parallel says."""
    size = flags.context_parallel or 1
    if size == 1:
        return
    why = obstacle(student, layout)
    if why is None and not share_out(*heads_of(student), size):
        heads, keys = heads_of(student)
        why = f"{size} does not share out its {heads} heads and {keys} heads of keys"
    if why is not None:
        raise StageError(
            f"--context-parallel {size}: {type(student).__name__} cannot have its rows shared: {why}. Leave "
            "the flag out, and take --gradient-checkpointing for long examples"
        )


@dataclass(frozen=True, slots=True)
class SharedRows:
    """TRL's row without padding, of which process `index` of `size` gets its run of the tokens.

    The end is filled up to a multiple of `size` with an example of its own that nothing learns from. Labels
    are shifted before the cut, as the first label of a run is what the last token of the run before predicts.
    """

    index: int
    size: int

    def __call__(self, given: list[dict[str, Any]]) -> dict[str, Any]:
        (row,) = given
        if missing := -len(row["input_ids"]) % self.size:
            row = {
                "input_ids": [*row["input_ids"], *[0] * missing],
                "labels": [*row["labels"], *[IGNORED] * missing],
                "seq_lengths": [*row["seq_lengths"], missing],
            }
        whole = dict(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([row]))
        whole["shift_labels"] = nn.functional.pad(whole["labels"][:, 1:], (0, 1), value=IGNORED)
        for name in ("input_ids", "labels", "shift_labels", "position_ids"):
            whole[name] = whole[name].chunk(self.size, dim=1)[self.index]
        return whole


@contextmanager
def sharing(student: PreTrainedModel, size: int) -> Iterator[None]:
    """Attention over the `size` processes that follow each other and share each row.

    RecipeError where processes have decided differently, as on nodes with other GPUs.
    """
    if distributed.is_initialized():
        decided: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(decided, size)
        if len(set(decided)) > 1:
            raise RecipeError(
                f"train: for some processes rows have to be shared by {max(decided)}, for others by "
                f"{min(decided)}, as their GPUs differ. Give --context-parallel {max(decided)} to all"
            )
    if size == 1:
        yield
        return
    group, _ = distributed.new_subgroups(group_size=size)
    student.set_attn_implementation(register())
    AttentionInterface.register(NAME, functools.partial(attend_shared, group=group))
    try:
        yield
    finally:
        AttentionInterface.register(NAME, attend_apart)


def attend_shared(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    group: distributed.ProcessGroup,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """`attend_apart` over all tokens of the group's row; `cu_seq_lens_q` holds the borders of that row.

    Takes this process's [1, heads, tokens, size], returns its [1, tokens, heads, size].
    """
    if (copies := group.size() // key.shape[1]) > 1:  # fewer of them than processes: several get the same one
        key, value = (part.repeat_interleave(copies, dim=1) for part in (key, value))
    query, key, value = (_all_tokens(part, group) for part in (query, key, value))
    out, _ = attend_apart(module, query, key, value, attention_mask, **options)
    return _all_heads(out, group), None


def _all_tokens(part: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
    """All heads of this process's tokens, [1, h, t, d], for all tokens of its heads, [1, h / n, n t, d]."""
    number, (_, heads, tokens, width) = group.size(), part.shape
    sent = part.reshape(number, heads // number, tokens, width)
    return _exchanged(sent, group).transpose(0, 1).reshape(1, heads // number, number * tokens, width)


def _all_heads(part: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
    """The way back: all tokens of this process's heads, [1, n t, h, d], for all heads of its tokens,
    [1, t, n h, d]."""
    number, (_, tokens, heads, width) = group.size(), part.shape
    sent = part.reshape(number, tokens // number, heads, width)
    received = _exchanged(sent, group)  # by process: its heads of our tokens
    return received.transpose(0, 1).reshape(1, tokens // number, number * heads, width)


def _exchanged(sent: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
    return all_to_all_single_autograd(sent.contiguous(), None, None, group)
