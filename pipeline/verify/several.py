"""any: a response is right when it matches one of several golds.

`gold` is a JSON array of strings; metadata may name the verifier that compares ("math" when absent).
"""

import json
from collections.abc import Callable
from typing import Any

from pipeline.verify.outcome import Outcome, unverifiable

Verify = Callable[[str, str, dict[str, Any]], Outcome]


def verify_any(verifiers: dict[str, Verify], response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    """The first correct outcome, else the first wrong one, else why nothing could be told."""
    golds = read_golds(gold)
    if not golds:
        return unverifiable("bad_gold")
    inner = verifiers[metadata.get("verifier", "math")]
    outcomes = []
    for one in golds:
        outcome = inner(response, one, metadata)
        if outcome.status == "correct":
            return outcome
        outcomes.append(outcome)
    # one gold that could not be compared leaves the question open, whatever the others said
    open_ones = [outcome for outcome in outcomes if outcome.status == "unverifiable"]
    return (open_ones or outcomes)[0]


def read_golds(gold: str) -> list[str]:
    try:
        values = json.loads(gold)
    except ValueError:
        return []
    if not isinstance(values, list):
        return []
    return [value if isinstance(value, str) else json.dumps(value) for value in values]
