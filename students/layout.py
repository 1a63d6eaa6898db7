"""How examples are laid out, found by asking the very student: packed or padded, and with which attention.

Two questions, for whatever architecture comes. Is an attention function the model's own within rounding?
Sinks, soft caps and masks that are not a window go missing without a word. And is an example packed among
others the same as alone? Layers that carry a state along the row (linear attention, Mamba, convolutions) need
kernels that know where an example begins; their fallbacks take such borders and do not heed them. Some rotary
embeddings (LongRoPE, dynamic) go by the longest example of a row, in any layout.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from pipeline.errors import StageError, in_one_line
from students import varlen
from students.attention import FLASH, NAME, register

log = logging.getLogger(__name__)

EAGER, SDPA = "eager", "sdpa"
COMPARED = "retort_compared"
SHARPNESS = 8.0  # the spread of the scores that are compared: of even ones no cap and no sink is seen
MAX_TOKENS = 40  # of an example in the probe; windows and chunks beyond it are asked of the mask function
# the largest difference that is rounding, as a share of the scale of what is compared: in fp32, of one call
# in 16 bits, and of a model in 16 bits (its median token's: rounding sends single tokens to other experts)
EXACT, HALF_EXACT, ROUNDED = 1e-3, 3e-2, 0.1
SEEN = 1e-2  # a neighbour that is not seen changes nothing, in any precision


@dataclass(frozen=True, slots=True)
class Layout:
    """`packed`: examples lie end to end; else they are padded. `attention` is transformers' name for the
    implementation; `reason` says why it is not the fast way, '' where it is."""

    packed: bool
    attention: str
    reason: str = ""

    @property
    def name(self) -> str:
        return "packed" if self.packed else "padded"

    def to_notes(self) -> dict[str, str]:
        """For the manifest."""
        notes = {"layout": self.name, "attention": self.attention}
        return notes | {"reason": self.reason} if self.reason else notes


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """TRL's padded batch of the one row that a loader gives: a micro-batch as a list of examples."""

    pad_token_id: int

    def __call__(self, given: list[dict[str, Any]]) -> dict[str, Any]:
        (row,) = given
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        examples = [{"input_ids": ids, "labels": labels} for ids, labels in pairs]
        return dict(DataCollatorForLanguageModeling(self.pad_token_id)(examples))


def choose_layout(student: PreTrainedModel, examples: list[list[int]], longest: int) -> Layout:
    """The fastest layout in which the student computes the same as for each example alone; now set in it.

    `examples` are token ids, of which the first and the last are used; `longest` is the length up to which
    attention must agree.
    StageError where even padded examples are not the same as alone.
    """
    own, training = student.config._attn_implementation, student.training
    # a student that is shared out over GPUs later is asked on the CPU, of what stands for their kernel
    on_cpu = student.device.type == "cpu"
    asked = register() if own == FLASH and on_cpu else own
    student.eval()
    try:
        with torch.no_grad(), torch.autocast(student.device.type, torch.bfloat16, enabled=not on_cpu):
            layout = _chosen(_Probe(student, examples, longest), asked)
    finally:
        student.train(training)
    if layout.attention == asked:
        layout = replace(layout, attention=own)
    student.set_attn_implementation(layout.attention)
    if layout.reason:
        log.info(
            "layout: examples are %s, with attention %s: %s", layout.name, layout.attention, layout.reason
        )
    return layout


def _chosen(probe: "_Probe", own: str) -> Layout:
    student = probe.student
    differs = probe.attention_differs(own) or probe.kernel_differs(own)
    if differs is None and _waits(student, own):
        reason = "without a variable-length kernel a GPU would be given each example by itself"
    elif differs is None:
        seen = probe.packed_differs(own)
        if seen is None:
            probe.refuse_by_longest(own, packed=True)
            return Layout(packed=True, attention=own)
        reason = seen
    else:
        reason = f"{own} is not the model's own attention ({differs})"
    for attention in (SDPA, EAGER):
        if attention == SDPA and not (student._supports_sdpa and probe.attention_differs(SDPA) is None):
            continue
        if (fault := probe.padded_differs(attention)) is None:
            probe.refuse_by_longest(attention, packed=False)
            return Layout(packed=False, attention=attention, reason=reason)
    raise StageError(
        f"{type(probe.student).__name__}: an example is not the same among others as alone, neither packed "
        f"({reason}) nor padded ({fault}), so training would be on something else than what is asked later. "
        "Choose a student of another architecture"
    )


def _waits(student: PreTrainedModel, own: str) -> bool:
    """Whether our attention would go example by example on a GPU: hundreds of launches a step."""
    size = torch.empty(1, 1, 1, 64, dtype=torch.bfloat16, device=student.device)
    return own == NAME and student.device.type == "cuda" and not varlen.can_run(size, dropout=0.0)


@dataclass(slots=True)
class _Probe:
    """The questions, and what was asked already: the logits of the second example alone."""

    student: PreTrainedModel
    examples: list[list[int]]
    longest: int
    alone: torch.Tensor | None = None

    @property
    def first(self) -> list[int]:
        return self.examples[0][:MAX_TOKENS]

    @property
    def second(self) -> list[int]:
        """Its end, so that it is another text where there is one example alone; shorter than the first."""
        return self.examples[-1][-max(1, len(self.first) - 7) :]

    def attention_differs(self, name: str) -> str | None:
        """None where every attention call of a forward pass gives what the model's eager function gives."""
        if not self.student._can_set_attn_implementation():
            return None  # the model brings its own and uses no other
        found = _Compared(name, self.longest, half=name == FLASH)
        with found.registered() as compared, self._attention(compared):
            self.student(input_ids=self._ids(self.first), use_cache=False)
        return found.fault

    def kernel_differs(self, name: str) -> str | None:
        """The same of two packed examples in 16 bits, as a GPU's kernels are given them; None elsewhere."""
        if self.student.device.type == "cpu" or not self.student._can_set_attn_implementation():
            return None
        found = _Compared(name, longest=0, half=True)
        with found.registered() as compared, self._attention(compared):
            self._packed(self.first)
        return found.fault

    def packed_differs(self, name: str) -> str | None:
        """None where the second of two packed examples is the same whatever the first is, and as alone."""
        with self._attention(name):
            one, other = (self._packed(first) for first in (self.first, self.first[::-1]))
        if (by := float(_distances(one, other).max())) > SEEN:
            return f"packed examples see each other, which changes the logits by {by:.2g} of their scale"
        return self._as_alone(one, "packed")

    def refuse_by_longest(self, name: str, packed: bool) -> None:
        """StageError where a neighbour that ends at the greatest length changes the second example.

        Its tokens are few: what is asked is whether the model reads the positions of all examples at once.
        """
        number = min(len(self.first), self.longest)
        beside = self._packed if packed else self._padded
        with self._attention(name):
            near, far = (beside(self.first[:number], begin) for begin in (0, self.longest - number))
        if not (by := float(_distances(far, near).max())) > SEEN:
            return
        config: Any = self.student.config.get_text_config()
        rotary = getattr(config, "rope_parameters", None) or {}
        known = getattr(config, "original_max_position_embeddings", None)
        known = known or rotary.get("original_max_position_embeddings") or config.max_position_embeddings
        raise StageError(
            f"{type(self.student).__name__}: an example beside one of {self.longest:,} tokens is not the "
            f"same as alone, which changes its logits by {by:.2g} of their scale: the rotary embedding "
            f"({rotary.get('rope_type')}) goes by the longest example of a row. Lower train.max_length to "
            f"{known:,}, up to which it does not, or choose another student"
        )

    def padded_differs(self, name: str) -> str | None:
        with self._attention(name):
            logits = self._padded(self.first)
        return self._as_alone(logits, "padded")

    def _as_alone(self, logits: torch.Tensor, how: str) -> str | None:
        if self.alone is None:
            with self._attention(EAGER):
                self.alone = self.student(input_ids=self._ids(self.second), use_cache=False).logits[0]
        exact = self.student.dtype == torch.float32 and not torch.is_autocast_enabled(logits.device.type)
        by = (
            float(_distances(logits, self.alone).max())
            if exact
            else float(_distances(logits, self.alone).median())
        )
        if by <= (EXACT if exact else ROUNDED):
            return None
        return f"{how} logits differ from those alone by {by:.2g} of their scale"

    def _padded(self, first: list[int], begin: int = 0) -> torch.Tensor:
        """Logits of the second example below another one, whose positions begin there."""
        batch = self._collate([first, self.second], padding_free=False)
        if begin:
            positions = torch.arange(batch["input_ids"].shape[1], device=self.student.device)
            batch["position_ids"] = torch.stack([positions + begin, positions])
        return self.student(**batch).logits[1, : len(self.second)]

    def _packed(self, first: list[int], begin: int = 0) -> torch.Tensor:
        """Logits of the second example behind another one, whose positions begin there."""
        batch = self._collate([first, self.second], padding_free=True)
        batch["position_ids"][0, : len(first)] += begin
        return self.student(**batch).logits[0, len(first) :]

    def _collate(self, rows: list[list[int]], padding_free: bool) -> dict[str, Any]:
        batch = DataCollatorForLanguageModeling(0, padding_free=padding_free)(
            [{"input_ids": r} for r in rows]
        )
        batch.pop("labels")
        moved = {k: v.to(self.student.device) if torch.is_tensor(v) else v for k, v in batch.items()}
        return moved | {"use_cache": False}

    def _ids(self, example: list[int]) -> torch.Tensor:
        return torch.tensor([example], device=self.student.device)

    @contextmanager
    def _attention(self, name: str) -> Iterator[None]:
        before = self.student.config._attn_implementation
        self.student.set_attn_implementation(name)
        try:
            yield
        finally:
            self.student.set_attn_implementation(before)


@dataclass(slots=True)
class _Compared:
    """An attention function that answers as the model's eager one does, and notes how far `name` is from it.

    Both are given the same queries, keys and values in fp32, the queries made so large that attention is not
    even: sinks and soft caps then show, whatever the weights are and in whatever precision they are held.
    `half`: `name` is given them in 16 bits. `longest` 0 compares no reach.
    """

    name: str
    longest: int
    half: bool = False
    fault: str | None = None
    masks: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    @contextmanager
    def registered(self) -> Iterator[str]:
        """Known to transformers by the name that is given, until the end."""
        AttentionInterface.register(COMPARED, self._attend)
        AttentionMaskInterface.register(COMPARED, self._mask)
        yield COMPARED

    def _mask(self, *given: Any, **options: Any) -> torch.Tensor:
        """The eager mask; kept with what the last of `longest` tokens may see."""
        mask = ALL_MASK_ATTENTION_FUNCTIONS[EAGER](*given, **options)
        if not self.longest:
            return mask
        keys = torch.arange(self.longest, device=mask.device)
        zero = torch.zeros((), dtype=torch.long, device=mask.device)
        try:
            reach = options["mask_function"](zero, zero, keys[-1], keys).broadcast_to(keys.shape)
        except (
            IndexError
        ):  # it looks up something for each token of this row: of a longer one nothing is known
            reach = torch.zeros_like(keys, dtype=torch.bool)
        self.masks.append((mask, reach))
        return mask

    def _attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        **options: Any,
    ) -> Any:
        eager = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        with torch.autocast(query.device.type, enabled=False):
            self.fault = self.fault or self._compare(eager, module, (query, key, value), mask, options)
        return eager(module, query, key, value, mask, **options)

    def _compare(
        self,
        eager: Callable[..., Any],
        module: nn.Module,
        given: tuple[torch.Tensor, ...],
        mask: torch.Tensor | None,
        options: dict[str, Any],
    ) -> str | None:
        spreads = [float(part.float().square().mean().sqrt()) for part in given[:2]]
        large = SHARPNESS / max(spreads[0] * spreads[1], 1e-12)
        dtype = torch.bfloat16 if self.half else torch.float32
        inputs = [(given[0].float() * large).to(dtype), *(part.to(dtype) for part in given[1:])]
        parts = [part.float() for part in inputs]
        theirs = eager(module, *parts, None if mask is None else mask.float(), **options)[0]
        allowed = None if mask is None or self.name != SDPA else mask >= 0
        try:
            ours = ALL_ATTENTION_FUNCTIONS[self.name](module, *inputs, allowed, **options)[0]
        except torch.OutOfMemoryError:
            raise  # nothing of the student's
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:  # a kernel's own limits
            return f"it does not run: {in_one_line(error, 120)}"
        by = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
        if not by <= (HALF_EXACT if self.half else EXACT):  # nor is NaN
            return f"it differs by {by:.2g} of its scale"
        if self.name == SDPA or not self.longest:
            return None
        return self._compare_reach(mask, options.get("sliding_window"))

    def _compare_reach(self, mask: torch.Tensor | None, window: int | None) -> str | None:
        """Of a row of `longest` tokens, which a short one does not show."""
        keys = torch.arange(self.longest, device=None if mask is None else mask.device)
        ours = torch.ones_like(keys, dtype=torch.bool) if window is None else keys >= self.longest - window
        given = None if mask is None else mask.data_ptr()
        theirs = next((reach for known, reach in self.masks if known.data_ptr() == given), None)
        if theirs is None or bool((ours == theirs).all()):
            return None
        seen, allowed = int(ours.sum()), int(theirs.sum())
        return f"of {self.longest:,} tokens the last one would see {seen:,} and not {allowed:,}"


def _distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The largest difference of each token's logits, as a share of the spread of all."""
    return (one.float() - other.float()).abs().amax(dim=-1) / other.float().std().clamp(min=1e-12)
