"""The filter's second pass: divide the traces that passed the rules into kept and dropped, write examples."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import IO, Any

import msgspec

from pipeline.examples import Format, example_row, write_parquet
from pipeline.mix import Mixer
from pipeline.selection import KEPT, REASONS, Selected

SELECT = "select"


class SourceOf(msgspec.Struct):
    source: str


def write_unselected(passed: Path, dropped: Path, selected: Selected) -> Counter[tuple[str, str, str]]:
    """Append the traces that passed the rules but were not selected; counts by (rule, reason, source)."""
    counts: Counter[tuple[str, str, str]] = Counter()
    decode = msgspec.json.Decoder(SourceOf).decode
    with passed.open("rb") as lines, dropped.open("ab") as out:
        for place, line in enumerate(lines):
            code = int(selected.reasons[place])
            if code == KEPT:
                continue
            extra = json.dumps({"rule": SELECT, "reason": REASONS[code], "detail": ""}).encode()
            out.write(b"%b, %b\n" % (line.rstrip()[:-1], extra[1:]))
            counts[(SELECT, REASONS[code], decode(line).source)] += 1
    return counts


def write_kept(passed: Path, out: Path, selected: Selected, form: Format, mixer: Mixer) -> int:
    """Write kept.jsonl and examples.parquet together: selected traces in their order, then the mix."""
    with ExitStack() as stack:
        kept = stack.enter_context((out / "kept.jsonl").open("wb"))
        dropped, failed = (
            stack.enter_context((out / name).open("a", encoding="utf-8", errors="surrogatepass"))
            for name in ("dropped.jsonl", "failed.jsonl")
        )
        mixed = (
            json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
            for row in mixer.rows(dropped, failed)
        )
        lines = chain(selected_lines(passed, selected), mixed)
        return write_parquet(out / "examples.parquet", _examples(lines, kept, form))


def _examples(lines: Iterable[bytes], file: IO[bytes], form: Format) -> Iterator[dict[str, Any]]:
    for line in lines:
        file.write(line)
        yield example_row(msgspec.json.decode(line), form)


def selected_lines(passed: Path, selected: Selected) -> Iterator[bytes]:
    """The rows that selection chose, in its order."""
    with passed.open("rb") as file:
        for offset in selected.offsets:
            file.seek(int(offset))
            yield file.readline()
