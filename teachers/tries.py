"""How hard each problem was for the teacher: tries.jsonl, one line a problem, difficulty as data.

    {"problem_id": ..., "tries": 3, "correct": 2, "pass_rate": 0.6667, "solved": true}

Of a problem that a judge or a majority decides after sampling, `pass_rate` and `solved` are null.

`pass_rate` is correct/tries. Where sampling stopped at `keep` correct traces that is a little high: an
unbiased estimate is (keep - 1) / (tries - 1).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.recipe.schema import Samples
from pipeline.records import Problem
from pipeline.sampling import Store
from pipeline.sampling.job import most_samples
from pipeline.sampling.keys import counts
from pipeline.verify.table import DEFERRED


def write_tries(path: Path, problems: Iterable[Problem], store: Store, samples: Samples) -> dict[str, Any]:
    """Write a line for each problem; the totals of them, for the manifest."""
    totals, undecided = {"problems": 0, "solved": 0, "tries": 0, "correct": 0}, 0
    with path.open("w", encoding="utf-8") as file:
        for problem in problems:
            row = tries_of(problem, store, samples)
            file.write(json.dumps(row) + "\n")
            totals["problems"] += 1
            if row["solved"] is None:
                undecided += 1
                continue
            for name in ("solved", "tries", "correct"):
                totals[name] += int(row[name])
    totals["given_up"] = totals["problems"] - totals["solved"] - undecided
    if undecided:
        totals["undecided"] = undecided
    return totals


def tries_of(problem: Problem, store: Store, samples: Samples) -> dict[str, Any]:
    tries, correct = counts(store.keys.all_bits(problem.id), most_samples(problem, samples))
    decided = problem.verifier not in DEFERRED
    return {
        "problem_id": problem.id,
        "tries": tries,
        "correct": correct,
        "pass_rate": round(correct / tries, 4) if tries and decided else None,
        "solved": correct >= samples.keep if decided else None,
    }
