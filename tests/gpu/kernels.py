"""Rows about attention: torch's variable-length kernel and FlashAttention's against the call example by example.

What this machine has not (a package, a newer card) is not here; what is there and not used, or wrong, fails.
"""

from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from packaging.version import Version
from transformers import AutoModelForCausalLM, Qwen3Config
from transformers.utils import is_flash_attn_2_available

from students import attention, varlen
from tests.gpu.machine import seconds_of
from tests.gpu.setting import NotHere, Setting, require_gpus

HEADS, KEYS, SIZE = 16, 8, 128  # of Qwen3-0.6B and 1.7B
ROWS = {
    "32 x 256": [256] * 32,
    "4 x 2,048": [2048] * 4,
    "1 x 16,384": [16384],
    "mixed": [100, 1900, 700, 60, 3000],
}
Parts = list[torch.Tensor]
TOLERANCE = 0.02  # of the largest value: bf16 has 8 bits
FIRST_WITH_VARLEN = "2.10"


class Layer(torch.nn.Module):
    """All that an attention function reads of a layer."""


def row_of(lengths: list[int]) -> tuple[list[torch.Tensor], dict[str, Any]]:
    torch.manual_seed(0)
    total = sum(lengths)
    parts = [
        torch.randn(1, heads, total, SIZE, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (HEADS, KEYS, KEYS)
    ]
    borders = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    return parts, {"cu_seq_lens_q": borders, "max_length_q": max(lengths), "scaling": SIZE**-0.5}


def one_call(row: Parts, options: dict[str, Any]) -> torch.Tensor:
    assert varlen.can_run(row[0], 0.0)
    return varlen.attend(*row, options)


def example_by_example(row: Parts, options: dict[str, Any]) -> torch.Tensor:
    lengths = options["cu_seq_lens_q"].diff().tolist()
    examples = zip(*(part.split(lengths, dim=2) for part in row), strict=True)
    return torch.cat([attention._causal(Layer(), each, options) for each in examples], dim=2).transpose(1, 2)


def gradients(
    attend: Any, row: Parts, options: dict[str, Any], given: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """The output, and the gradients of queries, keys and values for `given` (or ones) at the output."""
    out = attend(row, options)
    return [out, *torch.autograd.grad(out, row, torch.ones_like(out) if given is None else given)]


def largest_difference(row: Parts, options: dict[str, Any]) -> dict[str, float]:
    """Of output and gradients between both ways, as a share of the largest value of each."""
    # one tensor for both: randn_like follows strides, and those of the outputs differ
    given = torch.randn(1, row[0].shape[2], HEADS, SIZE, device="cuda", dtype=torch.bfloat16)
    ours, theirs = (gradients(attend, row, options, given) for attend in (one_call, example_by_example))
    return {
        name: round(float((a - b).detach().abs().max() / b.detach().abs().max()), 5)
        for name, a, b in zip(("output", "queries", "keys", "values"), ours, theirs, strict=True)
    }


def variable_length(setting: Setting) -> dict[str, Any]:
    """Values and gradients agree, with and without a window, and how many times faster a pass is."""
    require_gpus(setting)
    if Version(torch.__version__) < Version(FIRST_WITH_VARLEN):
        raise NotHere(f"torch {torch.__version__}: torch.nn.attention.varlen begins with {FIRST_WITH_VARLEN}")
    if (capability := torch.cuda.get_device_capability()) < varlen.OLDEST:
        raise NotHere(f"capability {capability}: the kernel begins with {varlen.OLDEST}")
    assert varlen.parameters(), f"torch {torch.__version__} has no torch.nn.attention.varlen"
    hold_taken()
    found: dict[str, Any] = {"torch": torch.__version__, "takes": sorted(varlen.parameters())}
    apart = {}
    for window in (None, 512):
        row, options = row_of(ROWS["mixed"])
        apart[f"window {window}"] = largest_difference(row, options | {"sliding_window": window})
    found["difference"] = apart
    assert all(by < TOLERANCE for each in apart.values() for by in each.values()), found
    for name, lengths in ROWS.items():
        row, options = row_of(lengths)
        ways = (one_call, example_by_example)
        fast, slow = (seconds_of(partial(gradients, attend, row, options)) for attend in ways)
        found[f"speed, {name}"] = round(slow / fast, 2)
    return found


def hold_taken() -> None:
    """AssertionError where a student's attention does not take the kernel for a row of short examples."""
    row, options = row_of(ROWS["32 x 256"])
    with patch.object(varlen, "attend", wraps=varlen.attend) as taken:
        attention.attend_apart(Layer(), row[0], row[1], row[2], None, **options)
    assert taken.called, "attention goes example by example"


def flash_attention(setting: Setting) -> dict[str, Any]:
    """A student is packed with it, by train's own questions, and its gradients are those of our attention."""
    require_gpus(setting)
    if not is_flash_attn_2_available():
        raise NotHere("transformers takes no flash_attn that is not FlashAttention 2.3.3 or newer")
    from students.layout import choose_layout  # TRL, which the row above need not wait for

    name = attention.implementation("cuda")
    assert name == attention.FLASH, name
    sizes = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    torch.manual_seed(0)
    student: Any = AutoModelForCausalLM.from_config(
        Qwen3Config(**sizes, **heads), dtype=torch.bfloat16, attn_implementation=name
    ).to("cuda")
    lengths = [100, 60, 300]
    ids = torch.randint(0, sizes["vocab_size"], (1, sum(lengths)), device="cuda")
    layout = choose_layout(student, [part.tolist() for part in ids[0].split(lengths)], 2048)
    assert (layout.packed, layout.attention) == (True, name), layout
    places = torch.cat([torch.arange(length, device="cuda") for length in lengths])[None]
    found = []
    for implementation in (name, attention.register()):
        student.set_attn_implementation(implementation)
        _, options = row_of(lengths)
        borders = {
            f"{what}_{side}": options[f"{what}_q"] for what in ("cu_seq_lens", "max_length") for side in "qk"
        }
        student.zero_grad()
        student(input_ids=ids, position_ids=places, labels=ids, use_cache=False, **borders).loss.backward()
        found.append(torch.cat([weight.grad.float().flatten() for weight in student.parameters()]))
    by = float((found[0] - found[1]).norm() / found[1].norm())
    assert by < TOLERANCE, by
    return {"implementation": name, "gradients differ": round(by, 5)}
