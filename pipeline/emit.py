"""The filter's second pass: divide the traces that passed the rules into kept and dropped, write examples."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.examples import Format, example_row, write_parquet
from pipeline.selection import KEPT, REASONS, Selected

SELECT = "select"


def write_unselected(passed: Path, dropped: Path, selected: Selected) -> Counter[tuple[str, str, str]]:
    """Append the traces that passed the rules but were not selected; counts by (rule, reason, source)."""
    counts: Counter[tuple[str, str, str]] = Counter()
    with passed.open("rb") as lines, dropped.open("ab") as out:
        for place, line in enumerate(lines):
            code = int(selected.reasons[place])
            if code == KEPT:
                continue
            extra = json.dumps({"rule": SELECT, "reason": REASONS[code], "detail": ""}).encode()
            out.write(b"%b, %b\n" % (line.rstrip()[:-1], extra[1:]))
            counts[(SELECT, REASONS[code], json.loads(line)["source"])] += 1
    return counts


def write_kept(
    passed: Path, out: Path, selected: Selected, form: Format, mixed: Iterable[dict[str, Any]]
) -> int:
    """Write kept.jsonl and examples.parquet together: selected traces in their order, then the mix."""
    rows = chain(selected_rows(passed, selected), mixed)
    with (out / "kept.jsonl").open("w", encoding="utf-8", errors="surrogatepass") as file:
        return write_parquet(out / "examples.parquet", _examples(rows, file, form))


def _examples(rows: Iterable[dict[str, Any]], file: Any, form: Format) -> Iterator[dict[str, Any]]:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        yield example_row(row, form)


def selected_rows(passed: Path, selected: Selected) -> Iterator[dict[str, Any]]:
    """The rows that selection chose, in its order."""
    with passed.open("rb") as file:
        for offset in selected.offsets:
            file.seek(int(offset))
            yield json.loads(file.readline())
