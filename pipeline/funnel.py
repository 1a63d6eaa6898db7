"""The funnel of a run: how many traces each rule dropped, by source and by difficulty, and examples of each.

Reads the manifests of problems and filter, kept.jsonl, dropped.jsonl and failed.jsonl; writes nothing.

    python -m pipeline funnel --recipe recipes/demo.yaml
    python -m pipeline funnel --recipe recipes/demo.yaml --show wrong
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.errors import RecipeError
from pipeline.rows import json_lines
from pipeline.stage import Context, require
from pipeline.strict_yaml import nearest
from pipeline.tasks import draw_key

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES_SHOWN = 5
MAX_TEXT = 1_500  # characters of a thinking or an answer that are shown
DIFFICULTIES = ("0%", "1-25%", "26-50%", "51-75%", "76-99%", "100%")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
KEPT = ("", "kept")


class VerdictOf(msgspec.Struct):
    status: str


class RowOf(msgspec.Struct):
    """What the funnel counts of a row of kept.jsonl or dropped.jsonl."""

    source: str
    kind: str = "trace"
    problem_id: str = ""
    rule: str | None = None
    reason: str = "kept"
    verdict: VerdictOf | None = None
    finish_reason: str = ""


@dataclass(slots=True)
class Funnel:
    """Counts of traces by (rule, reason) and source, and by (rule, reason) and difficulty."""

    by_source: Counter[tuple[tuple[str, str], str]] = field(default_factory=Counter)
    by_difficulty: Counter[tuple[tuple[str, str], str]] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def outcomes(self) -> list[tuple[str, str]]:
        """(rule, reason) pairs that occur; the kept last."""
        seen = {outcome for outcome, _ in self.by_source}
        return [*(outcome for outcome in seen if outcome != KEPT), KEPT]


def show_funnel(context: Context, show: str | None = None) -> None:
    """Print the table, or with `show` five examples of a reason (or of a rule's drops) to stdout."""
    directory = context.directory("filter")
    manifest = require(directory, "funnel", context.start.recipe)
    console = open_console()
    if show is not None:
        print_examples(console, context, show)
        return
    problems = require(context.directory("problems"), "funnel", context.start.recipe)
    print_problems(console, problems["counts"])
    print_traces(console, count_rows(directory), rule_order(manifest["config"]["filter"]["rules"]))


def open_console() -> "Console":
    """Colours on a terminal; in a pipe plain text that is not cut at 80 columns."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(highlight=False, width=200, no_color=True)


def rule_order(rules: list[Any]) -> list[str]:
    return [rule if isinstance(rule, str) else next(iter(rule)) for rule in rules]


def rows_of(directory: Path) -> Iterator[RowOf]:
    decode = msgspec.json.Decoder(RowOf).decode
    for name in ("dropped.jsonl", "kept.jsonl"):
        with (directory / name).open("rb") as file:
            for line in file:
                yield decode(line)


def count_rows(directory: Path) -> Funnel:
    """Two passes over the files: the pass rate of each problem first, then the table."""
    tries: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for row in rows_of(directory):
        if row.kind == "trace":
            tries[row.problem_id] += 1
            correct[row.problem_id] += is_correct(row)
    funnel = Funnel()
    for row in rows_of(directory):
        outcome = (row.rule or "", row.reason)
        funnel.by_source[(outcome, f"{row.source} (mix)" if row.kind == "mix" else row.source)] += 1
        if row.kind == "trace":
            rate = correct[row.problem_id] / tries[row.problem_id]
            funnel.by_difficulty[(outcome, difficulty_of(rate))] += 1
    funnel.failed.update(
        str((line.values or {}).get("kind")) for line in json_lines(directory / "failed.jsonl")
    )
    return funnel


def is_correct(row: RowOf) -> bool:
    return row.verdict is not None and row.verdict.status == "correct" and row.finish_reason == "stop"


def difficulty_of(pass_rate: float) -> str:
    """The column of a pass rate: none, each quarter, all."""
    if pass_rate in (0.0, 1.0):
        return DIFFICULTIES[0] if pass_rate == 0 else DIFFICULTIES[-1]
    return DIFFICULTIES[1 + min(3, int(pass_rate * 4 - 1e-9))]


def print_problems(console: "Console", counts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title="problems", title_justify="left", box=None)
    table.add_column("reason")
    table.add_column("problems", justify="right")
    table.add_row("in", f"{counts['in']:,}")
    for reason, count in counts["dropped"].items():
        table.add_row(f"- {reason}", f"{count:,}", style="yellow")
    table.add_row("kept", f"{counts['kept']:,}", style="green")
    console.print(table)
    console.print()


def print_traces(console: "Console", funnel: Funnel, rules: list[str]) -> None:
    from rich.table import Table

    sources = sorted({source for _, source in funnel.by_source})
    order = [*rules, "select", "mix"]
    outcomes = sorted(
        funnel.outcomes(), key=lambda o: (o == KEPT, order.index(o[0]) if o[0] in order else 0, o)
    )
    table = Table(title="traces", title_justify="left", box=None)
    for header in ("rule", "reason"):
        table.add_column(header)
    for header in ("traces", "share", *sources, *(f"pass {d}" for d in DIFFICULTIES)):
        table.add_column(header, justify="right")
    total = sum(funnel.by_source.values()) + sum(funnel.failed.values())

    def cells(rows: list[tuple[str, str]]) -> list[str]:
        by_source = [sum(funnel.by_source[(row, source)] for row in rows) for source in sources]
        by_difficulty = [sum(funnel.by_difficulty[(row, d)] for row in rows) for d in DIFFICULTIES]
        share = f"{sum(by_source) / total:.1%}" if total else ""
        return [f"{sum(by_source):,}", share, *(f"{n:,}" if n else "." for n in by_source + by_difficulty)]

    table.add_row("", "in", *cells(outcomes))
    for outcome in outcomes:
        rule, reason = outcome
        style = "green" if outcome == KEPT else "yellow"
        table.add_row(rule, reason if outcome == KEPT else f"- {reason}", *cells([outcome]), style=style)
    for kind, count in funnel.failed.most_common():
        table.add_row("", f"! {kind}", f"{count:,}", f"{count / total:.1%}", style="red")
    console.print(table)


def print_examples(console: "Console", context: Context, show: str) -> None:
    """Five examples of a reason or a rule, drawn by the recipe's seed, from filter or else from problems."""
    known: set[str] = set()
    best: list[tuple[bytes, int, dict[str, Any]]] = []
    number = 0
    for stage in ("filter", "problems"):
        for name in ("dropped.jsonl", "kept.jsonl", "failed.jsonl"):
            path = context.directory(stage) / name
            for line in json_lines(path) if path.is_file() else ():
                row = line.values or {}
                names = {row.get("reason") or row.get("kind") or "kept", row.get("rule") or ""}
                known |= names
                if show not in names:
                    continue
                number += 1
                best.append((draw_key(context.recipe.seed, line.file, line.number), number, row))
                best = sorted(best)[:EXAMPLES_SHOWN]
    if not best:
        raise RecipeError(f"--show {show}: nothing was dropped for it; {nearest(show, sorted(known - {''}))}")
    console.print(f"{len(best)} of {number:,} rows with {show}\n")
    for place, (_, _, row) in enumerate(best, 1):
        print_example(console, place, row)


def print_example(console: "Console", place: int, row: dict[str, Any]) -> None:
    from rich.text import Text

    verdict = row.get("verdict") or {}
    head = [row.get("source"), row.get("problem_id") or row.get("id"), row.get("rule"), row.get("reason")]
    if "sample" in row:
        head.insert(2, f"sample {row['sample']}")
    console.print(Text(f"[{place}] " + " · ".join(str(part) for part in head if part), style="bold"))
    matched = row.get("matched") or {}
    for label, value, style in (
        ("why", row.get("detail"), "yellow"),
        ("question", row.get("question"), ""),
        ("matched", matched.get("question"), ""),
        ("gold", row.get("gold"), "green"),
        ("extracted", verdict.get("extracted"), "cyan"),
        ("thinking", row.get("thinking"), "dim"),
        ("answer", row.get("answer"), ""),
    ):
        if value:
            console.print(
                Text(f"{label}: ", style="bold").append(shorten(str(value)), style=f"not bold {style}")
            )
    console.print()


def shorten(text: str) -> str:
    """At most 1,500 characters, the middle left out, and no control characters: traces are models' text."""
    text = CONTROL.sub("", text)
    half = MAX_TEXT // 2
    return (
        text
        if len(text) <= MAX_TEXT
        else f"{text[:half]} [... {len(text) - MAX_TEXT:,} more ...] {text[-half:]}"
    )
