"""any: a response is right when it matches one of several golds.

`gold` is a JSON array of strings; metadata may name the verifier that compares ("math" when absent).
"""

import json
from typing import Any

from pipeline.verify.outcome import Outcome, unverifiable
from pipeline.verify.table import comparing, function_of


def verify_any(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    """The first correct outcome, else the first wrong one, else why nothing could be told."""
    golds = read_golds(gold)
    if not golds:
        return unverifiable("bad_gold")
    verify = function_of(comparing("any", metadata))
    outcomes = []
    for one in golds:
        outcome = verify(response, one, metadata)
        if outcome.status == "correct":
            return outcome
        outcomes.append(outcome)
    # one gold that could not be compared leaves the question open, whatever the others said
    open_ones = [outcome for outcome in outcomes if outcome.status == "unverifiable"]
    return (open_ones or outcomes)[0]


def read_golds(gold: str) -> list[str]:
    """The golds; none where `gold` is not a JSON array."""
    try:
        values = json.loads(gold)
    except ValueError:
        return []
    if not isinstance(values, list):
        return []
    return [value if isinstance(value, str) else json.dumps(value) for value in values]
