"""The tables of the report as rows of text, the same for Markdown and HTML."""

from dataclasses import dataclass
from typing import Any

from pipeline.report.gather import Findings
from pipeline.report.numbers import count, p_value, percent, points, score, seconds

# which entries of a task are no model's
NO_MODELS = {"paired", "gap_recovered", "budget", "contamination", "without_flagged", "card"}


@dataclass(frozen=True, slots=True)
class Table:
    head: list[str]
    rows: list[list[str]]


def scores_table(findings: Findings, task: str) -> Table:
    """One row a model: every score of one task with its interval."""
    entry = findings.results["tasks"][task]
    sizes = list(next(iter(entry[model]["pass@k"] for model in findings.models)))
    head = [
        "model",
        "n x k",
        "pass@1",
        *[f"pass@{size}" for size in sizes],
        "cons@k",
        "tokens",
        "cut",
        "no answer",
    ]
    rows = []
    for model in findings.models:
        held = entry[model]
        rows.append(
            [
                model,
                f"{held['n']:,} x {held['k']}",
                score(held["pass@1"], held["ci95"]),
                *[score(held["pass@k"][size]["value"], held["pass@k"][size]["ci95"]) for size in sizes],
                score(held["cons@k"]["value"], held["cons@k"]["ci95"]),
                mean_tokens(held),
                score(held["truncated"], held["intervals"]["truncated"]),
                score(held["no_answer"], held["intervals"]["no_answer"]),
            ]
        )
    return Table(head, rows)


def mean_tokens(held: dict[str, Any]) -> str:
    low, high = held["intervals"]["mean_tokens"]
    return f"{held['mean_tokens']:,.0f} [{low:,.0f}, {high:,.0f}]"


def paired_table(findings: Findings) -> Table:
    """One row a task and pair of models: difference, p, and what this n could have found."""
    rows = []
    for task, entry in findings.results["tasks"].items():
        for pair, held in entry["paired"].items():
            adjusted = p_value(held["p_holm"]) if "p_holm" in held else "-"
            rows.append(
                [
                    task,
                    pair.replace("-", " - "),
                    points(held["delta"], held["ci95"]),
                    f"{p_value(held['p'])} ({held['test']})",
                    adjusted,
                    f"{100 * held['mde']:.1f} points",
                ]
            )
    return Table(["task", "difference", "paired", "p", "p (Holm)", "could detect"], rows)


def funnel_table(findings: Findings) -> Table:
    rows = []
    for step in findings.funnel:
        lost = ", ".join(f"{reason} {number:,}" for reason, number in step.lost.items())
        rows.append([step.stage, step.label, count(step.count), lost or "-"])
    return Table(["stage", "what", "count", "lost before it, by reason"], rows)


def cost_table(findings: Findings) -> Table:
    rows = [
        [
            cost.stage,
            seconds(cost.seconds),
            seconds(cost.engine_seconds) if cost.engine_seconds else "-",
            count(cost.prompt_tokens) if cost.prompt_tokens else "-",
            count(cost.output_tokens) if cost.output_tokens else "-",
        ]
        for cost in findings.costs
    ]
    return Table(["stage", "wall time", "engine time", "prompt tokens", "output tokens"], rows)


def gap_text(entry: dict[str, Any]) -> str | None:
    """The recovered gap in words, None where not all three models were compared."""
    gap = entry.get("gap_recovered")
    if gap is None:
        return None
    if gap["value"] is None:
        return f"Not defined: {gap['reason']}."
    low, high = gap["ci95"]
    return f"{percent(gap['value'])} [{percent(low)}, {percent(high)}] of the way from base to teacher."
