"""What a verifier concludes about one response, before the pool adds the key, the version and the time.

Reasons: `correct` has "equal"; `wrong` has "different" or "no_answer"; `unverifiable` has
"unparsable_answer", "bad_gold", "undecided" (both were read), "too_big" and "too_long" (nothing was
computed), "error" (a library failed on this pair) and, from the pool, "timeout", "memory", "crash".
"""

from dataclasses import dataclass

from pipeline.records import Status

MAX_EXTRACTED = 2_000  # characters of an answer that a verdict carries; longer ones are cut


@dataclass(frozen=True, slots=True)
class Outcome:
    """`layer` names what decided: string, numeric, probing, math_verify, ... or "" where nothing could."""

    status: Status
    reason: str
    extracted: str | None
    layer: str


def correct(extracted: str | None, layer: str) -> Outcome:
    return Outcome("correct", "equal", extracted, layer)


def wrong(extracted: str | None, layer: str, reason: str = "different") -> Outcome:
    return Outcome("wrong", reason, extracted, layer)


def unverifiable(reason: str, extracted: str | None = None, layer: str = "") -> Outcome:
    return Outcome("unverifiable", reason, extracted, layer)
