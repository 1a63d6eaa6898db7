"""The tables of the report as rows of text, the same for Markdown and HTML."""

from typing import Any

from pipeline.report.gather import Findings
from pipeline.report.numbers import count, p_value, points, score, seconds, short
from pipeline.report.table import Table


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
    bounds = held["intervals"]["mean_tokens"]  # None at one question
    extent = f"{bounds[0]:,.0f}, {bounds[1]:,.0f}" if bounds else "no interval of one"
    return f"{held['mean_tokens']:,.0f} [{extent}]"


def paired_table(findings: Findings) -> Table:
    """One row a task and pair of models: difference, p, and what this n could have found."""
    rows = []
    for task, entry in findings.pool_first():
        for pair, held in entry["paired"].items():
            adjusted = p_value(held["p_holm"]) if "p_holm" in held else "-"
            rows.append(
                [
                    task,
                    " - ".join(pair.rsplit("-", 1)),
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
        return f"Gap recovered: not defined, {gap['reason']}."
    return f"Gap recovered: {score(gap['value'], gap['ci95'])} of the way from base to teacher."


def contamination_table(findings: Findings) -> Table | None:
    """One row a task and model: the score with and without the questions that training has seen."""
    rows = []
    for task, entry in findings.pool_first():
        held = entry.get("contamination")
        if held is None:
            continue
        if not held["flagged"]:
            rows.append([task, f"0 of {held['questions']:,}", "-", "-", "-", "-"])
            continue
        seen = f"{held['flagged']:,} of {held['questions']:,}"
        rules = ", ".join(f"{rule} {number:,}" for rule, number in held["rules"].items()) or "-"
        for model in findings.models:
            without = (held["without_flagged"] or {}).get(model)
            rest = score(without["pass@1"], without["ci95"]) if without else "no question is left"
            rows.append([task, seen, rules, model, score(entry[model]["pass@1"], entry[model]["ci95"]), rest])
    head = ["task", "flagged questions", "by rule", "model", "pass@1", "without the flagged"]
    return Table(head, rows) if rows else None


def forced_table(findings: Findings) -> Table | None:
    """pass@1 where the thinking was cut at a budget, closed, and the answer sampled anew."""
    rows = [
        [task, model, f"{point['thinking_tokens']:,}", score(point["pass@1"], point["ci95"])]
        for task, entry in findings.results["tasks"].items()
        for model, points_of in (entry.get("forced_budget") or {}).items()
        for point in points_of
    ]
    return Table(["task", "model", "thinking tokens", "pass@1"], rows) if rows else None


def ledger_table(findings: Findings) -> Table | None:
    """What a kept trace and a point of the student's score cost, in tokens, engine time and money."""
    manifests = findings.manifests
    if "generate" not in manifests or "filter" not in manifests:
        return None
    bought = next(cost for cost in findings.costs if cost.stage == "generate")
    kept = manifests["filter"]["counts"]["kept"]
    # imported traces may be without a count of tokens, and adopted ones took no engine time here
    tokens, time = bought.output_tokens, bought.engine_seconds
    rows = [["teacher output tokens per kept trace", count(tokens / kept) if kept and tokens else "-"]]
    rows.append(["teacher engine time per kept trace", f"{time / kept:.3f} s" if kept and time else "-"])
    rows.append(["teacher output tokens per point gained", per_point(findings, tokens) if tokens else "-"])
    price = findings.recipe.report.price_per_engine_hour
    if price is not None:
        currency = findings.recipe.report.currency
        for cost in findings.costs:
            if cost.engine_seconds:
                money = cost.engine_seconds / 3600 * price
                rows.append(
                    [f"{cost.stage}: engine time at {price:g} {currency} an hour", f"{money:.4f} {currency}"]
                )
    return Table(["what", "cost"], rows)


def per_point(findings: Findings, tokens: int) -> str:
    """Tokens for each percentage point of student - base, with the interval of that difference."""
    _, entry = findings.headline
    gain = entry["paired"].get("student-base")
    if gain is None or gain["ci95"][0] <= 0:
        return "- (no gain that is separated from zero)"
    low, high = gain["ci95"]
    value, least, most = (tokens / (100 * share) for share in (gain["delta"], high, low))
    return f"{value:,.0f} [{least:,.0f}, {most:,.0f}]"


def forecast_table(findings: Findings) -> Table | None:
    """What generate's pilot foretold beside what came; None where there was no pilot."""
    notes = (findings.manifests.get("generate") or {}).get("notes") or {}
    rows = []
    for name, held in (notes.get("forecast") or {}).items():
        low, high = (findings.forecast.get(f"{name}_{end}") for end in ("low", "high"))
        span = f" [{low:,}, {high:,}]" if low is not None and high is not None else ""
        ratio = f"{held['ratio']:.2f}" if held["ratio"] is not None else "-"
        fact = f"{held['fact']:,}" if held["fact"] is not None else "-"
        rows.append([name.replace("_", " "), f"{held['forecast']:,}{span}", fact, ratio])
    return Table(["generate", "forecast", "fact", "forecast / fact"], rows) if rows else None


def provenance_tables(findings: Findings) -> list[Table]:
    """Stages with their fingerprints and code, models, sources and tasks with their licences."""
    stages = Table(
        ["stage", "fingerprint", "code", "started", "wall time"],
        [
            [
                stage,
                short(manifest["fingerprint"]),
                short(manifest["code"]["commit"], 12) + (" (changed)" if manifest["code"]["dirty"] else ""),
                manifest["started"],
                seconds(manifest["seconds"]),
            ]
            for stage, manifest in findings.manifests.items()
        ],
    )
    models = Table(
        ["model", "weights of", "sha256 or revision", "card", "licence", "training on its outputs"],
        [[m.name, m.model, m.weights, m.card, m.licence, m.outputs] for m in findings.model_facts],
    )
    sources = Table(
        ["problems from", "kept", "licence"], [[s.name, count(s.kept), s.licence] for s in findings.sources]
    )
    asked = [(task, findings.results["tasks"][task]) for task in findings.tasks]
    first = findings.models[0]
    tasks = Table(
        ["measured on", "questions", "version of its card", "licence"],
        [[t, count(e[first]["n"]), str(e["task"]["version"] or "-"), e["task"]["licence"]] for t, e in asked],
    )
    return [stages, models, sources, tasks]


def software_table(findings: Findings) -> Table:
    versions = findings.results["versions"]
    return Table(["library", "version"], [[name, version] for name, version in versions.items()])
