"""report.md and README.md (the model card). Text is escaped: nothing of a run renders as markup."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.recipe.cards import model_location
from pipeline.recipe.strict_yaml import dump
from pipeline.report import tables
from pipeline.report.gather import Findings
from pipeline.report.licences import license_fields
from pipeline.report.table import Table, escape, paragraph, table_lines
from pipeline.report.use import NOTE, ways_of

Block = str | Table | None  # None: the run has no such thing


def report_markdown(findings: Findings) -> str:
    """The whole report as text."""
    name, entry = findings.headline
    return text_of(
        f"# Report of {escape(findings.recipe.name)}",
        paragraph(f"{tables.subtitle(findings)}."),
        *scores(findings),
        *against(findings),
        f"## Score against allowed tokens ({escape(name)})",
        tables.BUDGET_NOTE,
        tables.budget_table(entry),
        *under("### Thinking closed by force", tables.forced_table(findings)),
        *contamination_and_funnel(findings),
        *polish(findings),
        "## Cost",
        tables.cost_note(findings),
        tables.cost_table(findings),
        paragraph(tables.hardware_note(findings)),
        tables.ledger_table(findings),
        *under("### Forecast against fact", tables.forecast_table(findings)),
        *use(findings),
        "## Provenance",
        *tables.provenance_tables(findings),
        noted(tables.licence_note(findings.context)),
        tables.software_table(findings),
        *recipe(findings),
    )


def card_markdown(findings: Findings) -> str:
    """The model card that goes with the checkpoint, in the form that the Hugging Face hub reads."""
    student = findings.context.student_card
    facts: dict[str, Any] = {**license_fields([student.licence]), "library_name": "transformers"}
    facts["pipeline_tag"] = "text-generation"
    if not Path(model_location(student.model)).is_dir():  # the hub knows no directory of this project
        facts["base_model"] = student.model
    facts["tags"] = ["distillation", *(["on-policy-distillation"] if findings.recipe.polish else [])]
    return text_of(
        front_matter(facts),
        f"# {escape(findings.recipe.name)}",
        paragraph(f"{tables.subtitle(findings)}."),
        *use(findings),
        *scores(findings),
        *contamination_and_funnel(findings),
        *polish(findings),
        "## Licences and provenance",
        *tables.provenance_tables(findings),
        paragraph(tables.hardware_note(findings)),
        noted(tables.licence_note(findings.context)),
        "## Limits",
        listed(map(paragraph, tables.limits(findings))),
        *recipe(findings),
    )


def noted(text: str | None) -> Block:
    return text and paragraph(text)


def front_matter(facts: dict[str, Any]) -> str:
    """What the hub reads of a card."""
    return f"---\n{dump(facts)}---"


def text_of(*blocks: Block) -> str:
    """What there is of the blocks, an empty line between two."""
    texts = ["\n".join(table_lines(block)) if isinstance(block, Table) else block for block in blocks]
    return "\n\n".join(text for text in texts if text) + "\n"


def under(title: str, table: Table | None) -> list[Block]:
    return [title, table] if table else []


def listed(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def scores(findings: Findings) -> list[Block]:
    blocks: list[Block] = [
        "## Scores",
        paragraph(tables.what_is_measured(findings)),
        paragraph(tables.way_of_measuring(findings)),
    ]
    for task, entry in findings.pool_first():
        blocks += [f"### {escape(task)}", tables.scores_table(entry)]
    blocks.append(paragraph(tables.gap_text(findings) or ""))
    return blocks + under("### Paired differences", tables.paired_table(findings))


def against(findings: Findings) -> list[Block]:
    """The pair of an ablation: what differs, what both were given, and what it came to."""
    other = findings.against
    if other is None:
        return []
    blocks: list[Block] = [f"## Against {escape(other.name)}", listed(map(paragraph, other.changes))]
    held = other.comparison
    if held is None:
        return [*blocks, f"Not compared: {escape(other.why_not)}"]
    return [*blocks, paragraph(held.note), held.scores, held.budgets, paragraph(held.verdict)]


def contamination_and_funnel(findings: Findings) -> list[Block]:
    table = tables.contamination_table(findings)
    note = tables.CONTAMINATION_NOTE if table else tables.NOT_CONTAMINATED_NOTE
    blocks: list[Block] = ["## Contamination", note, table, "## Funnel", tables.funnel_table(findings)]
    return [*blocks, tables.majority_note(findings), *difficulty(findings), *judge(findings)]


def difficulty(findings: Findings) -> list[Block]:
    table = tables.difficulty_table(findings)
    return ["### By difficulty", tables.difficulty_note(findings), table] if table else []


def judge(findings: Findings) -> list[Block]:
    table = tables.judge_table(findings)
    return ["## Judge", tables.judge_note(findings), table] if table else []


def polish(findings: Findings) -> list[Block]:
    note = tables.polish_note(findings)
    return ["## Polish", paragraph(note), tables.polish_table(findings)] if note else []


def use(findings: Findings) -> list[Block]:
    blocks: list[Block] = ["## Use it", NOTE]
    for way in ways_of(findings.context):
        blocks += [f"### With {way.title}", f"```{way.language}\n{way.lines}\n```"]
    return blocks


def recipe(findings: Findings) -> list[Block]:
    return ["## Recipe", f"```json\n{tables.recipe_json(findings)}\n```"]
