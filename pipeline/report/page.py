"""report.html: one file that asks nothing of any server and runs nothing that a model wrote.

Text is escaped by the template engine; the browser's data is JSON in which no tag can open; the content
security policy allows this page's own script and style by their hashes, pictures as data, and nothing else.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report.charts import budget_chart, funnel_chart, lengths_chart, loss_chart, scores_chart
from pipeline.report.gather import Findings
from pipeline.report.numbers import interval, percent
from pipeline.report.tables import (
    contamination_table,
    cost_table,
    forced_table,
    forecast_table,
    funnel_table,
    gap_text,
    ledger_table,
    paired_table,
    provenance_tables,
    scores_table,
    software_table,
)
from pipeline.report.traces import MAX_CHARACTERS, Answered, Sifted
from pipeline.report.words import (
    BUDGET_NOTE,
    CONTAMINATION_NOTE,
    NOT_CONTAMINATED_NOTE,
    cost_note,
    subtitle,
    way_of_measuring,
    what_is_measured,
)

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Headline:
    title: str
    value: str
    note: str


def report_page(findings: Findings, sifted: Sifted, answered: Answered) -> str:
    """The page as text."""
    import jinja2
    from markupsafe import Markup

    css, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    held = {"models": findings.models, "questions": answered.shown, "traces": sifted.shown}
    return environment.get_template("page.html.j2").render(
        policy=policy(css, script),
        css=Markup(css),
        script=Markup(script),
        data=Markup(inert_json(held)),
        questions_note=questions_note(answered),
        traces_note=traces_note(sifted),
        charts={
            "scores": scores_chart(findings),
            "budget": budget_chart(findings),
            "funnel": funnel_chart(findings),
            "lengths": lengths_chart(sifted.lengths),
            "loss": loss_chart(findings.metrics),
        },
        **words_and_tables(findings),
    )


def words_and_tables(findings: Findings) -> dict[str, Any]:
    _, entry = findings.headline
    return {
        "name": findings.recipe.name,
        "subtitle": subtitle(findings),
        "how": way_of_measuring(findings),
        "cards": headline_cards(findings),
        "headline_note": what_is_measured(findings),
        "score_tables": [(task, scores_table(findings, task)) for task, _ in findings.pool_first()],
        "gap": gap_text(entry),
        "paired": paired_table(findings),
        "against": findings.against,
        "budget_note": BUDGET_NOTE,
        "forced": forced_table(findings),
        "contamination": contamination_table(findings),
        "contamination_note": CONTAMINATION_NOTE,
        "not_contaminated_note": NOT_CONTAMINATED_NOTE,
        "funnel": funnel_table(findings),
        "cost_note": cost_note(findings),
        "cost": cost_table(findings),
        "ledger": ledger_table(findings),
        "forecast": forecast_table(findings),
        "provenance": provenance_tables(findings),
        "software": software_table(findings),
        "recipe": json.dumps(findings.recipe.model_dump(exclude_unset=True), indent=2, ensure_ascii=False),
    }


def headline_cards(findings: Findings) -> list[Headline]:
    """pass@1 of each model, then the recovered gap; the interval stands under each value."""
    _, entry = findings.headline
    cards = []
    for model in findings.models:
        held = entry[model]
        cards.append(Headline(f"{model}, pass@1", percent(held["pass@1"]), bounds(held["ci95"])))
    gap = entry.get("gap_recovered")
    if gap is not None:
        note = bounds(gap["ci95"]) if gap["ci95"] else str(gap["reason"])
        cards.append(Headline("gap recovered", percent(gap["value"]), note))
    return cards


def bounds(ci95: list[float]) -> str:
    """The note of a card; no line ends between the two bounds."""
    return "95% interval " + interval(ci95).replace(" ", "\N{NO-BREAK SPACE}")


def policy(css: str, script: str) -> str:
    """The content security policy: hashes of the one style and the one script, pictures as data."""
    return (
        f"default-src 'none'; script-src '{source_hash(script)}'; style-src '{source_hash(css)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def inert_json(value: Any) -> str:
    """JSON that cannot end the element that holds it, whatever its strings say."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace").decode()


def questions_note(answered: Answered) -> str:
    shown, samples = len(answered.shown), answered.samples
    extent = f"All {shown:,} questions"
    if shown < answered.total:
        extent = f"A sample: {shown:,} of {answered.total:,} questions"
    each = "the first sample" if samples == 1 else f"the first {samples} samples"
    return f"{extent}, with {each} of every model; all samples are in eval/*.samples-*.jsonl."


def traces_note(sifted: Sifted) -> str:
    total, shown = sifted.counts.total(), len(sifted.shown)
    if not total:
        return "This run holds no filtered traces."
    extent = (
        f"All {total:,} traces"
        if shown == total
        else f"A sample: {shown:,} of {total:,} traces, of each reason"
    )
    return f"{extent}. Here texts above {MAX_CHARACTERS:,} characters are cut in the middle."
