"""Which verifiers there are: one row each. And the check that a problem names one that can be used.

Light: the host imports this; the home of a verifier is imported in the verifier processes only. A new
verifier is one module with a function (response, gold, metadata) -> Outcome, and one row here.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any

from pipeline.errors import VerifyError
from pipeline.verify.code import check_code, check_gold
from pipeline.verify.families import ALLOWED, REFUSED
from pipeline.verify.outcome import Outcome
from pipeline.verify.schema import check_schema

Verify = Callable[[str, str, dict[str, Any]], Outcome]  # (response, gold, metadata)


@dataclass(frozen=True, slots=True)
class Verifier:
    """`version` goes up when a verdict can change: verdicts and the plans of stages carry it.

    `home` is "module:function". `check` raises VerifyError unless the metadata of a problem holds what it
    needs, `check_gold` unless its gold is of the verifier's form. `deadline_seconds` and `memory_mb` are
    limits of its own for one response; None: those of the pool.
    `preloaded`: every worker has it from the start; otherwise it is imported for the first who asks.
    `deferred`: who is right is told after sampling, so all samples of such a problem are taken.
    """

    version: str
    home: str
    check: Callable[[dict[str, Any]], None] | None = None
    check_gold: Callable[[str], None] | None = None
    deadline_seconds: float | None = None
    memory_mb: int | None = None
    preloaded: bool = True
    deferred: bool = False


def check_family(metadata: dict[str, Any]) -> None:
    """Whether a problem of reasoning_gym names a family whose scorer does not run the answer."""
    family = metadata.get("family")
    if not isinstance(family, str):
        raise VerifyError(
            "verifier 'reasoning_gym' needs metadata {'family': name, 'entry': the library's entry}, "
            f"found family {family!r}"
        )
    if family in REFUSED:
        raise VerifyError(
            f"reasoning-gym family {family!r} is refused: {REFUSED[family]}. Choose another family"
        )
    if family not in ALLOWED:
        raise VerifyError(f"unknown reasoning-gym family {family!r}{nearest(family, ALLOWED)}")


def check_layers(metadata: dict[str, Any]) -> None:
    """Whether the layers that a problem of math asks for, if it does, are a list of names."""
    layers = metadata.get("layers", [])
    if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
        raise VerifyError(
            "verifier 'math': `layers` in its metadata must be a list of names ('string', 'values', "
            f"'math_verify'), found {layers!r:.40}"
        )


def check_inner(metadata: dict[str, Any]) -> None:
    """Whether a problem of any names a verifier that can compare."""
    inner = comparing("any", metadata)
    if inner == "any":
        raise VerifyError("verifier 'any' cannot hold another 'any': give all golds in one list")
    if inner in DEFERRED:
        raise VerifyError(
            f"verifier 'any' compares at once, and {inner!r} tells after sampling: it cannot be inside"
        )
    check_verifier(inner, metadata)


def check_voted(metadata: dict[str, Any]) -> None:
    """Whether the answers of a problem without a gold can be compared with each other."""
    inner = comparing("majority", metadata)
    if inner not in VOTED:
        raise VerifyError(
            f"a majority is of answers that verifier {' or '.join(VOTED)} compares, found {inner!r}"
        )


VOTED = ("choice", "json", "math", "text")  # the verifiers whose answers can stand for a gold
VERIFIERS = {
    "math": Verifier("4", "pipeline.verify.math:verify_math", check=check_layers),
    "choice": Verifier("3", "pipeline.verify.choice:verify_choice"),
    "text": Verifier("3", "pipeline.verify.text:verify_text"),
    "json": Verifier("3", "pipeline.verify.json:verify_json", check=check_schema),
    "reasoning_gym": Verifier(
        "3",
        "pipeline.verify.gym:verify_reasoning_gym",
        check=check_family,
        preloaded=False,  # the library's import costs a second and 100 MB
    ),
    "code": Verifier(
        "1",
        "pipeline.verify.code:verify_code",
        check=check_code,
        check_gold=check_gold,
        deadline_seconds=200.0,  # of the worker; programs have less, in pipeline/verify/code.py
        memory_mb=4096,  # a program can be given no more than its worker has
        preloaded=False,
    ),
    "any": Verifier("2", "pipeline.verify.any:verify_any", check=check_inner),
    "judge": Verifier("1", "pipeline.verify.judge:verify_judge", deferred=True),
    "majority": Verifier("1", "pipeline.verify.majority:verify_majority", check=check_voted, deferred=True),
    "none": Verifier("1", "pipeline.verify.none:verify_none", deferred=True),
}
VERSIONS = {name: row.version for name, row in VERIFIERS.items()}
DEFERRED = frozenset(name for name, row in VERIFIERS.items() if row.deferred)
PRELOADED = frozenset(name for name, row in VERIFIERS.items() if row.preloaded)


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of the verifiers in use, in alphabetical order. The verifier that an "any" compares
    with is in the result only if it is among the names."""
    return {name: VERSIONS[name] for name in sorted(set(names))}


def check_verifier(name: str, metadata: dict[str, Any], gold: str | None = None) -> None:
    """Raise VerifyError, saying what to do, unless `name` with this metadata can be used, and with this gold
    where one is given."""
    row = VERIFIERS.get(name) if isinstance(name, str) else None  # a row of a file may hold anything
    if row is None:
        raise VerifyError(
            f"unknown verifier {name!r}{nearest(name, VERIFIERS)}; there are: {', '.join(VERIFIERS)}"
        )
    if row.check is not None:
        row.check(metadata)
    if gold is not None and row.check_gold is not None:
        row.check_gold(gold)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    matches = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def comparing(name: str, metadata: dict[str, Any]) -> str:
    """The verifier that compares with a gold: of "any" and "majority" the one in the metadata, else `name`
    itself."""
    inner = metadata.get("verifier", "math") if name in ("any", "majority") else name
    if not isinstance(inner, str):
        raise VerifyError(
            f"verifier {name!r}: `verifier` in its metadata must name a verifier, found {inner!r:.40}"
        )
    return inner


def needed(name: str, metadata: dict[str, Any]) -> set[str]:
    """The verifiers that a worker must have loaded to use `name` with this metadata."""
    return {name, comparing(name, metadata)}


@cache
def function_of(name: str) -> Verify:
    """A verifier's function. Imports what it needs: for the verifier processes only."""
    function: Verify = resolve_name(VERIFIERS[name].home)
    return function
