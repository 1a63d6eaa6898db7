"""Labelled rows of the verifier's tests: (gold, answer or response, whether it is right).

A tenth of them, chosen by hash, is held out: no test asserts a verdict on one, the bench prints their rates
apart, and nobody looks at a row of it to mend the verifier, so that the two rates show when the tables have
become a training set.

blind.jsonl and blind_held_out.jsonl hold rows whose author had not seen the verifiers, from public reports about
answer checkers (`source`; facts only, the wording is ours) and by kind, halved by a hash of their ids. Nobody
looks at the second half to mend a verifier.
"""

import hashlib
from typing import Any, TypeVar

Row = TypeVar("Row", bound=tuple[Any, ...])


def held_out(row: tuple[Any, ...]) -> bool:
    return int(hashlib.sha256((row[0] + row[1]).encode()).hexdigest(), 16) % 10 == 0


def shown(rows: list[Row]) -> list[Row]:
    """The rows that tests may assert: all but those held out."""
    return [row for row in rows if not held_out(row)]
