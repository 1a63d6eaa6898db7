"""The training set: examples.parquet of the filter stage, encoded, without those that are too long.

Nothing is ever cut: an example longer than max_length is dropped and counted, and the stage fails where more
than the recipe's share would go.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import StageError
from pipeline.recipe import Train
from pipeline.records import Example
from students.format import Encoded, Format, split_message

TOO_LONG = "longer_than_max_length"
STRAY_TAG = "stray_thinking_tag"
STRAY_END = "stray_end_of_turn"


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """`train` and `held_out` are disjoint in problems; `dropped` counts by reason."""

    train: list[Encoded]
    held_out: list[Encoded]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def largest_id(self) -> int:
        return max(max(example.ids) for example in (*self.train, *self.held_out))

    @property
    def num_in(self) -> int:
        return len(self.train) + len(self.held_out) + sum(self.dropped.values())


def read_examples(path: Path, limit: int | None = None) -> list[Example]:
    """The examples of a Parquet file, in its order."""
    import pyarrow.parquet as parquet

    columns = ["problem_id", "sample", "messages", "num_tokens"]
    try:
        table = parquet.read_table(path, columns=columns)
    except (OSError, ValueError) as error:
        raise StageError(
            f"{path}: cannot be read as examples ({' '.join(str(error).split())[:200]}). Run: make filter"
        ) from None
    rows = table.slice(0, limit).to_pylist() if limit else table.to_pylist()
    return [Example(**row) for row in rows]


def build(examples: list[Example], style: Format, recipe: Train, seed: int) -> TrainingSet:
    """Encode, drop what cannot be trained on, hold out a share. StageError where too much would go."""
    train, held_out, dropped = [], [], Counter[str]()
    longest = 0
    for example in examples:
        encoded = style.encode(example.messages)
        longest = max(longest, len(encoded.ids))
        reason = why_dropped(example, encoded, style, recipe.max_length)
        if reason is not None:
            dropped[reason] += 1
        elif is_held_out(example.problem_id, recipe.held_out_share, seed):
            held_out.append(encoded)
        else:
            train.append(encoded)
    if dropped.total() > recipe.max_dropped_share * len(examples):
        raise StageError(
            f"train: {dropped.total():,} of {len(examples):,} examples would be dropped "
            f"({_listed(dropped)}), more than max_dropped_share {recipe.max_dropped_share:g} allows; the "
            f"longest has {longest:,} tokens and train.max_length is {recipe.max_length:,}. Raise "
            "train.max_length, lower generate.sampling.max_tokens, or raise train.max_dropped_share"
        )
    if not train:
        raise StageError(
            f"train: no example is left to train on ({len(examples)} read, {dropped.total()} dropped, "
            f"{len(held_out)} held out). Raise train.max_length, or generate more problems"
        )
    return TrainingSet(train, held_out, dict(dropped))


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


def _listed(dropped: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in dropped.most_common())


def is_held_out(problem_id: str, share: float, seed: int) -> bool:
    """All examples of one problem fall on the same side, whatever else is in the file."""
    digest = hashlib.sha256(f"{seed}-{problem_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
