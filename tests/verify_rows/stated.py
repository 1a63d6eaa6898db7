"""Where an answer stands and what is said of it: the rows of stated.jsonl by verifier.

A row is (gold, response, right, metadata).

Written by kind (hedges, retractions, thinking, boxes, languages, letters in prose, dates), both directions each. Where
`correct` is null nothing can be told of the answer: UNDECIDED, with the verifier's name in front of the gold.
"""

import json
from pathlib import Path
from typing import Any

Row = tuple[Any, ...]

with Path(__file__).with_suffix(".jsonl").open(encoding="utf-8") as lines:
    HELD = [json.loads(line) for line in lines]


def labelled(verifier: str) -> list[Row]:
    return [
        (row["gold"], row["response"], row["correct"], row.get("metadata", {}))
        for row in HELD
        if row["verifier"] == verifier and row["correct"] is not None
    ]


MATH, CHOICE, TEXT, JSON = map(labelled, ("math", "choice", "text", "json"))
UNDECIDED: list[Row] = [
    (row["verifier"], row["gold"], row["response"], row.get("metadata", {}))
    for row in HELD
    if row["correct"] is None
]
