"""Preferences that need a model: of the traces that passed the rules, which does the base find likely?

Reads .passed.jsonl once more, in its order; selection ranks by what the weigher says. The weigher is handed
in: this room imports no model (students.likelihood is the one that the command line hands in).
"""

from array import array
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline.filter.selection import Selection
from pipeline.records import FILTERED, ProblemIndex

if TYPE_CHECKING:
    from pipeline.context import Context

BY_MODEL = ("likely", "surprising")
CHUNK = 256  # lines that the weigher is given at once

Weigh = Callable[[Sequence[bytes]], list[float]]  # lines of .passed.jsonl; the higher is preferred
MakeWeigher = Callable[["Context"], Weigh]


def weigh_passed(passed: Path, index: ProblemIndex, selection: Selection, weigh: Weigh) -> "array[float]":
    """Give every trace that passed to selection, with its weight; the weights in the order of the file."""
    weights, offset = array("f"), 0
    with passed.open("rb") as lines, tqdm(None, "weigh", unit=" traces", disable=None) as bar:
        while chunk := list(islice(lines, CHUNK)):
            for line, weight in zip(chunk, weigh(chunk), strict=True):
                row = FILTERED.decode(line)
                position = index.position(row.problem_id)
                assert position is not None, "a trace of no problem never passed the rules"
                selection.add(position, row.sample, row.trained_tokens, offset, weight)
                weights.append(weight)
                offset += len(line)
            bar.update(len(chunk))
    return weights


def means_of(weights: "array[float]", kept: Sequence[bool]) -> dict[str, Any]:
    """The mean weight of all that passed and of what was kept, for the manifest."""
    held = [weight for weight, is_kept in zip(weights, kept, strict=True) if is_kept]
    return {
        name: round(sum(values) / len(values), 5) if values else None
        for name, values in (("mean_of_passed", weights), ("mean_of_kept", held))
    }
