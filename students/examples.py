"""The training set: examples.parquet of the filter stage, encoded, without those that are too long.

Nothing is ever cut: an example longer than max_length is dropped and counted, and the stage fails where more
than the recipe's share would go.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import StageError
from pipeline.recipe import Train
from pipeline.records import Example
from students.format import Encoded, Format

TOO_LONG = "longer_than_max_length"


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """`train` and `held_out` are disjoint in problems; `dropped` counts by reason."""

    train: list[Encoded]
    held_out: list[Encoded]
    dropped: dict[str, int] = field(default_factory=dict)

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
    """Encode, drop what is too long, hold out a share of the problems. StageError where too much would go."""
    train, held_out, too_long = [], [], []
    for example in examples:
        encoded = style.encode(example.messages)
        if len(encoded.ids) > recipe.max_length:
            too_long.append(len(encoded.ids))
        elif is_held_out(example.problem_id, recipe.held_out_share, seed):
            held_out.append(encoded)
        else:
            train.append(encoded)
    if len(too_long) > recipe.max_dropped_share * len(examples):
        raise StageError(
            f"train.max_length: {len(too_long):,} of {len(examples):,} examples are longer than "
            f"{recipe.max_length} tokens and would be dropped, more than max_dropped_share "
            f"{recipe.max_dropped_share:g} allows; the longest has {max(too_long):,}. Raise train.max_length, "
            "lower generate.sampling.max_tokens, or raise train.max_dropped_share"
        )
    if not train:
        raise StageError(
            f"train: no example is left to train on ({len(examples)} read, {len(too_long)} too long, "
            f"{len(held_out)} held out). Raise train.max_length, or generate more problems"
        )
    return TrainingSet(train, held_out, {TOO_LONG: len(too_long)} if too_long else {})


def is_held_out(problem_id: str, share: float, seed: int) -> bool:
    """All examples of one problem fall on the same side, whatever else is in the file."""
    digest = hashlib.sha256(f"{seed}-{problem_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
