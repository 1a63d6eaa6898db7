"""torch's own variable-length attention (torch.nn.attention.varlen): one kernel call for a row of examples.

On a GPU it needs no further package, forward and backward, in 16 bits. students/attention.py calls it where
it can run and is the faster way, and goes example by example elsewhere. On an H200 with torch 2.11 it was 3.8
times as fast where 32 examples had 256 tokens, 0.96 where five had 60 to 3,000, 0.86 where four had 2,048 and
0.5 where one had 16,384: single calls take other kernels, which are faster on long examples.
"""

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MAX_HEAD = 256  # FlashAttention's kernels
SHORT = 1024  # tokens of an example on average, up to which one call for all is the faster way
# FlashAttention-2 begins with Ampere
OLDEST = (8, 0)


def working_dtype(query: "torch.Tensor") -> "torch.dtype":
    """The type that torch computes attention in: autocast's where that is on."""
    import torch

    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def is_faster(query: "torch.Tensor", num_examples: int) -> bool:
    """Whether one call for all examples beats a call for each; queries are [1, heads, tokens, size]."""
    return query.shape[2] < SHORT * num_examples


def can_run(query: "torch.Tensor", dropout: float) -> bool:
    """Whether the kernel takes these queries."""
    import torch

    if not query.is_cuda or dropout or query.shape[-1] > MAX_HEAD:
        return False
    half = working_dtype(query) in (torch.bfloat16, torch.float16)
    return half and torch.cuda.get_device_capability(query.device) >= OLDEST and bool(parameters())


@cache
def parameters() -> frozenset[str]:
    """The names that this torch's varlen_attn takes; none where it has no such function (before 2.10)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def attend(
    query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", options: dict[str, Any]
) -> "torch.Tensor":
    """Causal attention within each example: [1, heads, tokens, size] to [1, tokens, heads, size]."""
    from torch.nn.attention.varlen import varlen_attn

    borders, longest = options["cu_seq_lens_q"], options.get("max_length_q")
    if longest is None:
        longest = int(borders.diff().max())
    dtype, window = working_dtype(query), options.get("sliding_window")
    more: dict[str, Any] = {"scale": options.get("scaling")}
    groups = query.shape[1] // key.shape[1]
    if "enable_gqa" in parameters():
        more["enable_gqa"] = groups > 1
    elif groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    # a token sees itself and the window - 1 before it
    more["window_size"] = (-1 if window is None or window >= longest else window - 1, 0)
    rows = [part[0].transpose(0, 1).to(dtype).contiguous() for part in (query, key, value)]
    borders = borders.int()
    out: Any = varlen_attn(rows[0], rows[1], rows[2], borders, borders, int(longest), int(longest), **more)
    return out[None]
