"""The training set: examples.parquet of the filter stage, encoded, without those that are too long.

Nothing is ever cut: an example longer than max_length is dropped and counted, and the stage fails where more
than the recipe's share would go.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.errors import StageError
from pipeline.recipe.schema import Train
from pipeline.records import Example
from pipeline.render import STRAY_END, split_message, stray_mark
from students.format import Encoded, Format

TOO_LONG = "longer_than_max_length"
NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Shown:
    """One example: its messages and what they were encoded to."""

    messages: list[dict[str, str]]
    encoded: Encoded


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """`train` and `held_out` are disjoint in problems; `dropped` counts by reason; `shown` are the first
    examples that are not dropped, with thinking and without, for preflight. `thinking`: all of them have
    some (always), none has (never), or both."""

    train: list[Encoded]
    held_out: list[Encoded] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    shown: list[Shown] = field(default_factory=list)
    thinking: Literal["always", "never", "both"] = "always"

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
    modes: set[bool] = set()
    dropped, longest = Counter[str](), 0
    for example in examples:
        encoded = replace(style.encode(example.messages), key=(example.problem_id, example.sample))
        longest = max(longest, len(encoded.ids))
        reason = why_dropped(example, encoded, style, recipe.max_length)
        if reason is not None:
            dropped[reason] += 1
            continue
        thinks = split_message(example.messages[-1], style.tags).thinking is not None
        if len(shown) < NUM_SHOWN or thinks not in modes:
            shown.append(Shown(example.messages, encoded))
        modes.add(thinks)
        (held_out if is_held_out(example.problem_id, recipe.held_out_share, seed) else train).append(encoded)
    thinking: Literal["always", "never", "both"] = (
        "both" if len(modes) > 1 else "never" if modes == {False} else "always"
    )
    data = TrainingSet(train, held_out, dict(dropped), shown, thinking)
    if dropped.total() > recipe.max_dropped_share * data.num_in:
        listed = ", ".join(f"{reason} {count:,}" for reason, count in dropped.most_common())
        raise StageError(
            f"train: {dropped.total():,} of {data.num_in:,} examples would be dropped ({listed}), more than "
            f"max_dropped_share {recipe.max_dropped_share:g} allows; the longest has {longest:,} tokens and "
            f"train.max_length is {recipe.max_length:,}. {advice(dropped)}, or raise train.max_dropped_share"
        )
    if not train:
        less = f"Lower train.held_out_share {recipe.held_out_share:g}" if held_out else advice(dropped)
        raise StageError(
            f"train: no example is left to train on ({data.num_in} read, {dropped.total()} dropped, "
            f"{len(held_out)} held out). {less}, or generate more problems"
        )
    return data


def advice(dropped: Counter[str]) -> str:
    """What helps against the drops: a longer limit only where examples are too long."""
    if dropped and TOO_LONG not in dropped:
        return "Run: make filter FORCE=1, which drops what holds a thinking tag or a special token as text"
    return "Raise train.max_length, lower generate.sampling.max_tokens"


def why_dropped(example: Example, encoded: Encoded, style: Format, max_length: int) -> str | None:
    """Too long, or a text that would teach the student to open, close, end or steer where it must not."""
    if len(encoded.ids) > max_length:
        return TOO_LONG
    split = split_message(example.messages[-1], style.tags)
    reason = stray_mark(split, style.tags, style.turn_end, style.special)
    if reason is None and encoded.trained.count(style.turn_end_id) != 1:
        return STRAY_END
    return reason


def is_held_out(problem_id: str, share: float, seed: int) -> bool:
    """All examples of one problem fall on the same side, whatever else is in the file."""
    digest = hashlib.sha256(f"{seed}-{problem_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
