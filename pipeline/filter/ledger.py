"""What became of every trace and of every row of a mix: counted, and written to dropped.jsonl or failed.jsonl
where it is not kept."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import IO


@dataclass(slots=True)
class Ledger:
    """The two files, open for writing; num_in == kept + dropped + failed once all is done.

    `dropped` is counted by (rule, reason, source), `failed` by kind.
    """

    dropped_file: IO[bytes]
    failed_file: IO[bytes]
    num_in: int = 0
    dropped: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def drop(self, line: bytes, rule: str, reason: str, source: str) -> None:
        self.dropped_file.write(line)
        self.dropped[rule, reason, source] += 1

    def fail(self, kind: str, file: str, number: int, detail: str) -> None:
        """Record a line that is no trace of this run, or no row of a mix."""
        row = {"kind": kind, "file": file, "line": number, "detail": detail}
        self.failed_file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self.failed[kind] += 1
