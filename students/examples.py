"""The training set: examples.parquet of the filter stage, encoded, without those that are too long.

Nothing is ever cut: an example longer than max_length is dropped and counted, and the stage fails where more
than the recipe's share would go.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.errors import StageError
from pipeline.recipe.schema import Train
from pipeline.records import Example
from students.format import Encoded, Format, split_message

TOO_LONG = "longer_than_max_length"
STRAY_TAG = "stray_thinking_tag"
STRAY_END = "stray_end_of_turn"
NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Shown:
    """One example: its messages and what they were encoded to."""

    messages: list[dict[str, str]]
    encoded: Encoded


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """`train` and `held_out` are disjoint in problems; `dropped` counts by reason; `shown` are the first
    examples that are not dropped, for preflight."""

    train: list[Encoded]
    held_out: list[Encoded] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    shown: list[Shown] = field(default_factory=list)

    @property
    def largest_id(self) -> int:
        return max(max(example.ids) for example in (*self.train, *self.held_out))

    @property
    def num_in(self) -> int:
        return len(self.train) + len(self.held_out) + sum(self.dropped.values())


def build(examples: Iterable[Example], style: Format, recipe: Train, seed: int) -> TrainingSet:
    """Encode, drop what cannot be trained on, hold out a share. StageError where too much would go."""
    train: list[Encoded] = []
    held_out: list[Encoded] = []
    shown: list[Shown] = []
    dropped, longest = Counter[str](), 0
    for example in examples:
        encoded = style.encode(example.messages)
        longest = max(longest, len(encoded.ids))
        reason = why_dropped(example, encoded, style, recipe.max_length)
        if reason is not None:
            dropped[reason] += 1
            continue
        if len(shown) < NUM_SHOWN:
            shown.append(Shown(example.messages, encoded))
        (held_out if is_held_out(example.problem_id, recipe.held_out_share, seed) else train).append(encoded)
    data = TrainingSet(train, held_out, dict(dropped), shown)
    if dropped.total() > recipe.max_dropped_share * data.num_in:
        listed = ", ".join(f"{reason} {count:,}" for reason, count in dropped.most_common())
        raise StageError(
            f"train: {dropped.total():,} of {data.num_in:,} examples would be dropped ({listed}), more than "
            f"max_dropped_share {recipe.max_dropped_share:g} allows; the longest has {longest:,} tokens and "
            f"train.max_length is {recipe.max_length:,}. Raise train.max_length, lower "
            "generate.sampling.max_tokens, or raise train.max_dropped_share"
        )
    if not train:
        raise StageError(
            f"train: no example is left to train on ({data.num_in} read, {dropped.total()} dropped, "
            f"{len(held_out)} held out). Raise train.max_length, or generate more problems"
        )
    return data


def why_dropped(example: Example, encoded: Encoded, style: Format, max_length: int) -> str | None:
    """Too long, or a text that would teach the student to open, close or end where it must not."""
    if len(encoded.ids) > max_length:
        return TOO_LONG
    split = split_message(example.messages[-1], style.tags)
    text = f"{split.thinking or ''}{split.answer}"
    if split.closing == "unclosed" or style.tags.open in text or style.tags.close in text:
        return STRAY_TAG
    if encoded.ids[encoded.num_prompt :].count(style.turn_end_id) != 1:
        return STRAY_END
    return None


def is_held_out(problem_id: str, share: float, seed: int) -> bool:
    """All examples of one problem fall on the same side, whatever else is in the file."""
    digest = hashlib.sha256(f"{seed}-{problem_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
