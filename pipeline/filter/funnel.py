"""The funnel of a run: how many traces each rule dropped, by source and by difficulty, and examples of each.

Reads the manifests of problems and filter, kept.jsonl and dropped.jsonl, for examples failed.jsonl too and
what problems dropped; writes nothing.

    python -m pipeline funnel --recipe recipes/demo.yaml
    python -m pipeline funnel --recipe recipes/demo.yaml --show wrong
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.context import Context
from pipeline.errors import RecipeError
from pipeline.filter.apply import BARRED, STUDENT
from pipeline.filter.difficulty import DIFFICULTIES, difficulty_of
from pipeline.problems.tasks import draw_key
from pipeline.recipe.rule_entry import rule_name
from pipeline.recipe.strict_yaml import nearest
from pipeline.records import Filtered, read_filtered
from pipeline.render import split_response
from pipeline.rows import json_lines
from pipeline.run.contract import Manifest
from pipeline.verify.judge import Rate

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES_SHOWN = 5
MAX_TEXT = 1_500  # characters of a thinking or an answer that are shown
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
KEPT = ("", "kept")
UNSOLVED = ("", "kept, wrong")  # one of a problem that no trace solves


Outcome = tuple[str, str]  # rule and reason


def show_funnel(context: Context, show: str | None = None) -> None:
    """Print the table, or with `show` five examples of a reason (or of a rule's drops) to stdout."""
    filtered = context.require("filter", "funnel")
    console = open_console()
    if show is not None:
        print_examples(console, context, show)
        return
    print_problems(console, context.require("problems", "funnel"))
    print_judge(console, context.manifest("judge") if context.recipe.judge else None)
    rules = [rule_name(entry) for entry in filtered.config["filter"]["rules"]]
    print_traces(console, count_rows(context.directory("filter")), filtered.counts.failed, rules)


def open_console() -> "Console":
    """Colours on a terminal; in a pipe plain text that is not cut at 80 columns."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(highlight=False, width=200, no_color=True)


def rows_of(directory: Path) -> Iterator[Filtered]:
    for name in ("dropped.jsonl", "kept.jsonl"):
        yield from read_filtered(directory / name)


def count_rows(directory: Path) -> Counter[tuple[Outcome, str]]:
    """Rows by outcome and column: each is in that of its source, a trace in that of its difficulty too.

    Two passes over the files: the pass rate of each problem first, then the table.
    """
    tries: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for row in rows_of(directory):
        if row.kind == "trace":
            tries[row.problem_id] += 1
            correct[row.problem_id] += row.is_correct
    counts: Counter[tuple[Outcome, str]] = Counter()
    for row in rows_of(directory):
        outcome = (row.rule, row.reason) if row.rule else KEPT
        if row.kind == "mix":
            counts[outcome, f"{row.source} (mix)"] += 1
        else:
            column = f"{row.source} ({row.gold_from})" if row.gold_from else row.source
            outcome = UNSOLVED if row.unsolved else outcome
            counts[outcome, column] += 1
            counts[outcome, difficulty_of(correct[row.problem_id] / tries[row.problem_id])] += 1
    return counts


def print_problems(console: "Console", manifest: Manifest) -> None:
    from rich.table import Table

    counts, open_ones = manifest.counts, sum(manifest.notes.get("without_gold", {}).values())
    table = Table(title="problems", title_justify="left", box=None)
    table.add_column("reason")
    table.add_column("problems", justify="right")
    table.add_row("in", f"{counts.num_in:,}")
    for reason, count in counts.dropped.items():
        table.add_row(f"- {reason}", f"{count:,}", style="yellow")
    table.add_row("kept", f"{counts.kept:,}", style="green")
    if open_ones:
        table.add_row("of them without a gold answer", f"{open_ones:,}")
    console.print(table)
    console.print()


def print_judge(console: "Console", manifest: Manifest | None) -> None:
    """What a judge was asked, what it said, and how often it was mistaken on canaries."""
    if manifest is None:
        return
    from rich.table import Table

    table = Table(title="judge", title_justify="left", box=None)
    table.add_column("verdict")
    table.add_column("traces", justify="right")
    table.add_row("in", f"{manifest.counts.num_in:,}")
    for status in ("correct", "wrong"):
        table.add_row(status, f"{manifest.notes.get(status, 0):,}")
    for reason, count in {**manifest.counts.dropped, **manifest.counts.failed}.items():
        table.add_row(f"- {reason}", f"{count:,}", style="yellow")
    console.print(table)
    for name in ("false_accept", "false_reject"):
        rate = manifest.notes["audit"][name]
        console.print(f"{name.replace('_', ' ')}s on canaries: {Rate(rate['mistaken'], rate['total'])}")
    console.print()


def print_traces(
    console: "Console", counts: Counter[tuple[Outcome, str]], failed: dict[str, int], rules: list[str]
) -> None:
    from rich.table import Table

    sources = sorted({column for _, column in counts} - set(DIFFICULTIES))
    order = [BARRED, *rules, STUDENT, "select", "mix"]
    seen = {outcome for outcome, _ in counts}
    dropped = sorted(seen - {KEPT, UNSOLVED}, key=lambda outcome: (order.index(outcome[0]), outcome))
    kept = [KEPT, UNSOLVED] if UNSOLVED in seen else [KEPT]
    outcomes = [*dropped, *kept]
    table = Table(title="traces", title_justify="left", box=None)
    for header in ("rule", "reason"):
        table.add_column(header)
    for header in ("traces", "share", *sources, *(f"pass {d}" for d in DIFFICULTIES)):
        table.add_column(header, justify="right")
    total = sum(counts[outcome, source] for outcome in outcomes for source in sources) + sum(failed.values())

    def cells(*rows: Outcome) -> list[str]:
        by_column = [sum(counts[row, column] for row in rows) for column in (*sources, *DIFFICULTIES)]
        number = sum(by_column[: len(sources)])
        share = f"{number / total:.1%}" if total else ""
        return [f"{number:,}", share, *(f"{n:,}" if n else "." for n in by_column)]

    table.add_row("", "in", *cells(*outcomes))
    for outcome in outcomes:
        rule, reason = outcome
        style = "green" if outcome in kept else "yellow"
        table.add_row(rule, reason if outcome in kept else f"- {reason}", *cells(outcome), style=style)
    for kind, count in Counter(failed).most_common():
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
                fate = "kept" if name == "kept.jsonl" else row.get("reason") or row.get("kind", "")
                names = {fate, row.get("rule") or ""}
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
        if "response" in row:
            split = split_response(row["response"], context.teacher_card.thinking)
            row = {**row, "thinking": split.thinking, "answer": split.answer}
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
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]} [... {len(text) - MAX_TEXT:,} more ...] {text[-half:]}"
