"""Verify rows of a file: `python -m pipeline verify FILE.jsonl [--verifier math] [--out FILE]`.

Reads rows {gold, response, optional verifier, metadata, correct}; writes them in order with all their fields
and `verdict`, `reason`, `extracted`, `layer`. Where rows carry a boolean `correct`, the confusion matrix of
verdicts against labels follows the summary on stderr.
"""

import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import RecipeError, VerifyError
from pipeline.records import Verdict
from pipeline.render import Tags, split_thinking
from pipeline.rows import read_rows
from pipeline.verify.confusion import confusion_table
from pipeline.verify.pool import VerifierPool

TAGS = Tags(opened_by_prompt=False)
READ_AHEAD = 256  # rows between the one being read and the one being written


def run_verify(file: Path, verifier: str, workers: int, deadline: float, out: Path | None) -> None:
    """Rows go to `out`, which appears complete or not at all, or to stdout. Raises RecipeError where `file`
    cannot be read or `out` cannot be written, VerifyError where a row cannot be verified."""
    pool = VerifierPool(workers, deadline)
    if out is None:
        verify_rows(file, verifier, pool, sys.stdout)
        return
    check_out(file, out)
    unfinished = out.with_name(out.name + ".unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as stream:
            verify_rows(file, verifier, pool, stream)
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def check_out(file: Path, out: Path) -> None:
    """RecipeError where `out` cannot be a file, or is the one that is read."""
    if out.is_dir():
        raise RecipeError(f"--out {out}: is a directory; name a file, for example {out / 'verdicts.jsonl'}")
    if not out.parent.is_dir():
        raise RecipeError(f"--out {out}: there is no directory {out.parent}; make it, or name another file")
    if out.resolve() == file.resolve():
        raise RecipeError(f"--out {out}: is the file that is read; name another file for the verdicts")


def verify_rows(file: Path, verifier: str, pool: VerifierPool, stream: TextIO) -> None:
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    labels: Counter[tuple[bool, str]] = Counter()
    seconds = 0.0
    with pool:
        for row, verdict in verdicts_in_order(file, verifier, pool):
            statuses[verdict.status] += 1
            reasons[verdict.reason] += verdict.status == "unverifiable"
            seconds += verdict.seconds
            if isinstance(row.get("correct"), bool):
                labels[row["correct"], verdict.status] += 1
            stream.write(line_of(row | fields_of(verdict)))
    total = statuses.total()
    details = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common() if count)
    print(
        f"{total:,} rows: {statuses['correct']:,} correct, {statuses['wrong']:,} wrong, "
        f"{statuses['unverifiable']:,} unverifiable{f' ({details})' if details else ''}; "
        f"{seconds:.1f} s of verification",
        file=sys.stderr,
    )
    if labels:
        print(confusion_table(labels), file=sys.stderr)


def line_of(row: dict[str, Any]) -> str:
    """JSON, with escapes only where a lone surrogate could not be written."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(row)
    return text + "\n"


def fields_of(verdict: Verdict) -> dict[str, str | None]:
    return {
        "verdict": verdict.status,
        "reason": verdict.reason,
        "extracted": verdict.extracted,
        "layer": verdict.layer,
    }


def verdicts_in_order(
    file: Path, verifier: str, pool: VerifierPool
) -> Iterator[tuple[dict[str, Any], Verdict]]:
    """Each row with its verdict, in the order of the file; reads a bounded number of rows ahead."""
    flying: deque[tuple[dict[str, Any], Future[Verdict]]] = deque()
    for line in read_rows(file):
        if len(flying) == READ_AHEAD:
            first, future = flying.popleft()
            yield first, future.result()
        row = line.values or {}
        flying.append((row, submit_row(line.where, line.number, row, verifier, pool)))
    for row, future in flying:
        yield row, future.result()


def submit_row(
    place: str, number: int, row: dict[str, Any], verifier: str, pool: VerifierPool
) -> Future[Verdict]:
    """A gold that is a list means any of its values."""
    missing = [name for name in ("gold", "response") if name not in row]
    if missing:
        raise VerifyError(f"{place}: no {missing[0]!r}; the row has: {', '.join(row) or 'nothing'}")
    name, gold, metadata = row.get("verifier", verifier), row["gold"], row.get("metadata") or {}
    if isinstance(gold, list) and name not in ("any", "json"):
        metadata = {**metadata, "verifier": name}
        name = "any"
    try:
        return pool.submit(
            (str(number), 0), name, as_text(gold), answer_part(as_text(row["response"])), metadata
        )
    except VerifyError as error:
        raise VerifyError(f"{place}: {error}") from None


def as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def answer_part(response: str) -> str:
    """What follows the thinking; a response without thinking is its own answer."""
    return split_thinking(response, TAGS).answer
