"""none: nobody tells right from wrong, and every response is unverifiable. For sources without golds."""

from typing import Any

from pipeline.verify.outcome import Outcome, unverifiable

NO_VERIFIER = "no_verifier"  # the reason of all its verdicts


def verify_none(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    return unverifiable(NO_VERIFIER)
