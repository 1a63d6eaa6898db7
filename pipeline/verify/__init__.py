"""Verdicts on responses: correct, wrong, or why it cannot be told, from processes that can be killed."""

import atexit
import os
from functools import cache
from typing import Any

from pipeline.records import Verdict
from pipeline.verify.pool import VerifierPool
from pipeline.verify.table import VERSIONS, check_verifier, versions_of

__all__ = ["VERSIONS", "VerifierPool", "check_verifier", "verify", "versions_of"]


@cache
def shared_pool(deadline_seconds: float, host: int) -> VerifierPool:
    """One worker for pairs, kept until this process ends; `host` keeps a forked child from using it."""
    pool = VerifierPool(workers=1, deadline_seconds=deadline_seconds)
    pool.__enter__()
    atexit.register(pool.close, cancel=True)
    return pool


def verify(
    response: str,
    gold: str,
    verifier: str = "math",
    metadata: dict[str, Any] | None = None,
    deadline_seconds: float = 5.0,
) -> Verdict:
    """The verdict on one pair, from a worker process that is started by the first call and kept."""
    pool = shared_pool(deadline_seconds, os.getpid())
    return pool.submit(("", 0), verifier, gold, response, metadata or {}).result()
