"""Which verifiers there are, their versions, and the check that a problem names one that can be used.

Light: the host imports this; what the verifiers need (math-verify, reasoning-gym) is imported in the zygote.
A code verifier with its sandbox and a judge have their place in VERSIONS and `load_verifiers`.
"""

import difflib
from collections.abc import Callable
from typing import Any

from pipeline.errors import VerifyError
from pipeline.verify.families import ALLOWED, REFUSED
from pipeline.verify.outcome import Outcome

# A version goes up when a verdict can change; it is part of every fingerprint that depends on verdicts.
VERSIONS = {
    "math": "1",
    "choice": "1",
    "text": "1",
    "json": "1",
    "reasoning_gym": "1",
    "any": "1",
}


def check_verifier(name: str, metadata: dict[str, Any]) -> None:
    """Raise VerifyError, saying what to do, unless `name` with this metadata can be used."""
    if name not in VERSIONS:
        raise VerifyError(
            f"unknown verifier {name!r}{nearest(name, VERSIONS)}; there are: {', '.join(VERSIONS)}"
        )
    if name == "reasoning_gym":
        check_family(metadata.get("family"))
    if name == "any":
        inner = metadata.get("verifier", "math")
        if inner == "any":
            raise VerifyError("verifier 'any' cannot hold another 'any': give all golds in one list")
        check_verifier(inner, metadata)


def check_family(family: object) -> None:
    if not isinstance(family, str):
        raise VerifyError(
            "verifier 'reasoning_gym' needs metadata {'family': name, 'entry': the library's entry}"
        )
    if family in REFUSED:
        raise VerifyError(
            f"reasoning-gym family {family!r} is refused: {REFUSED[family]}. Choose another family"
        )
    if family not in ALLOWED:
        raise VerifyError(f"unknown reasoning-gym family {family!r}{nearest(family, ALLOWED)}")


def nearest(name: str, known: object) -> str:
    """`; did you mean 'x'?`, or nothing."""
    matches = difflib.get_close_matches(str(name), list(known), n=1)  # type: ignore[call-overload]
    return f"; did you mean {matches[0]!r}?" if matches else ""


def load_verifiers() -> dict[str, Callable[[str, str, dict[str, Any]], Outcome]]:
    """Name -> function (response, gold, metadata). Imports the heavy libraries: only a worker calls it."""
    from pipeline.verify.choice import verify_choice
    from pipeline.verify.gym import verify_reasoning_gym
    from pipeline.verify.json_value import verify_json
    from pipeline.verify.math_answer import verify_math
    from pipeline.verify.several import verify_any
    from pipeline.verify.text import verify_text

    verifiers: dict[str, Callable[[str, str, dict[str, Any]], Outcome]] = {
        "math": verify_math,
        "choice": verify_choice,
        "text": verify_text,
        "json": verify_json,
        "reasoning_gym": verify_reasoning_gym,
    }
    return {**verifiers, "any": lambda response, gold, data: verify_any(verifiers, response, gold, data)}
