"""Verify rows of a file: `python -m pipeline verify FILE.jsonl [--verifier math] [--out FILE]`.

Reads rows {gold, response, optional verifier, metadata, correct}; writes them in order with all their fields
and `verdict`, `reason`, `extracted`, `layer`. Where rows carry a boolean `correct`, the confusion matrix of
verdicts against labels follows the summary on stderr, and the rates of each `kind` where they carry that.
"""

import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import RecipeError, VerifyError
from pipeline.recipe.cards import Tags
from pipeline.records import Verdict
from pipeline.render import split_response
from pipeline.rows import read_rows
from pipeline.verify.confusion import confusion_table, rates_table
from pipeline.verify.pool import Row, VerifierPool
from pipeline.verify.table import check_verifier, comparing

TAGS = Tags(opened_by_prompt=False)
FIELDS = ("reason", "extracted", "layer")  # of a verdict, under their names


def run_verify(
    file: Path,
    verifier: str = "math",
    workers: int | None = None,
    deadline: float = 5.0,
    out: Path | None = None,
) -> None:
    """Rows go to `out`, which appears complete or not at all, or to stdout; one worker process for each core
    where `workers` is None.

    Raises RecipeError where `file` cannot be read or `out` cannot be written, VerifyError where a row cannot
    be verified.
    """
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
    kinds: Counter[tuple[str, bool, str]] = Counter()
    seconds = 0.0
    with pool:
        for row, verdict in verdicts_in_order(file, verifier, pool):
            statuses[verdict.status] += 1
            reasons[verdict.reason] += verdict.status == "unverifiable"
            seconds += verdict.seconds
            if isinstance(row.get("correct"), bool):
                labels[row["correct"], verdict.status] += 1
                if "kind" in row:
                    kinds[f"{verdict.verifier} {row['kind']}", row["correct"], verdict.status] += 1
            found = {"verdict": verdict.status} | {name: getattr(verdict, name) for name in FIELDS}
            stream.write(line_of(row | found))
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
    if kinds:
        print(rates_table(kinds), file=sys.stderr)


def line_of(row: dict[str, Any]) -> str:
    """JSON, with escapes only where a lone surrogate could not be written."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(row)
    return text + "\n"


def verdicts_in_order(
    file: Path, verifier: str, pool: VerifierPool
) -> Iterator[tuple[dict[str, Any], Verdict]]:
    """Each row with its verdict, in the order of the file; reads a bounded number of rows ahead."""
    read: deque[dict[str, Any]] = deque()

    def asked() -> Iterator[Row]:
        for line in read_rows(file):
            read.append(line.values or {})
            yield asked_row(line.where, line.number, read[-1], verifier)

    for verdict in pool.map(asked()):
        yield read.popleft(), verdict


def asked_row(place: str, number: int, row: dict[str, Any], verifier: str) -> Row:
    """What is put to the pool. A gold that is a list means any of its values."""
    missing = [name for name in ("gold", "response") if name not in row]
    if missing:
        raise VerifyError(f"{place}: no {missing[0]!r}; the row has: {', '.join(row) or 'nothing'}")
    name, gold, metadata = row.get("verifier", verifier), row["gold"], row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise VerifyError(f"{place}: 'metadata' must be a JSON object, found {as_text(metadata)}")
    if isinstance(gold, list) and name not in ("any", "json"):
        metadata = {**metadata, "verifier": name}
        name = "any"
    try:
        check_verifier(name, metadata, as_text(gold))
        for one in gold if name == "any" and isinstance(gold, list) else ():
            check_verifier(comparing(name, metadata), metadata, as_text(one))
    except VerifyError as error:
        raise VerifyError(f"{place}: {error}") from None
    # a response without thinking is its own answer
    answer = split_response(as_text(row["response"]), TAGS).answer
    return (str(number), 0), name, as_text(gold), answer, metadata


def as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
