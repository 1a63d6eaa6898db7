"""Which verifiers there are, their versions, and the check that a problem names one that can be used.

Light: the host imports this; what the verifiers need (math-verify, reasoning-gym) is imported in the zygote.
A code verifier with its sandbox and a judge have their place in VERSIONS and HOMES.
"""

import difflib
from collections.abc import Iterable
from pkgutil import resolve_name
from typing import Any

from pipeline.errors import VerifyError
from pipeline.verify.families import ALLOWED, REFUSED
from pipeline.verify.several import Verify, verify_any

# A version goes up when a verdict can change; it is part of every fingerprint that depends on verdicts.
VERSIONS = {
    "math": "2",
    "choice": "2",
    "text": "2",
    "json": "2",
    "reasoning_gym": "2",
    "any": "2",
}
HOMES = {
    "math": "pipeline.verify.math_answer:verify_math",
    "choice": "pipeline.verify.choice:verify_choice",
    "text": "pipeline.verify.text:verify_text",
    "json": "pipeline.verify.json_value:verify_json",
    "reasoning_gym": "pipeline.verify.gym:verify_reasoning_gym",
}
# what every worker has; reasoning-gym's import costs a second and 100 MB, so it waits for the first who asks
COMMON = frozenset(VERSIONS) - {"reasoning_gym"}


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


def needed(name: str, metadata: dict[str, Any]) -> set[str]:
    """The verifiers that a worker must have loaded to use `name` with this metadata."""
    return {name, metadata.get("verifier", "math")} if name == "any" else {name}


def load_verifiers(names: Iterable[str]) -> dict[str, Verify]:
    """Name -> function (response, gold, metadata), "any" of them among them. Imports the heavy libraries."""
    verifiers: dict[str, Verify] = {name: resolve_name(HOMES[name]) for name in names if name != "any"}
    return {**verifiers, "any": lambda response, gold, data: verify_any(verifiers, response, gold, data)}
