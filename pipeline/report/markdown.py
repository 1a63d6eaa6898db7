"""report.md and README.md (the model card). Markdown is data here: cells are escaped, nothing is rendered."""

import json
from pathlib import Path
from typing import Any

from pipeline.cards import model_location, student_card, teacher_card
from pipeline.report.gather import Findings
from pipeline.report.table import Table, escape, table_lines
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
from pipeline.report.words import (
    BUDGET_NOTE,
    CONTAMINATION_NOTE,
    NOT_CONTAMINATED_NOTE,
    cost_note,
    limits,
    subtitle,
    way_of_measuring,
    what_is_measured,
)


def report_markdown(findings: Findings) -> str:
    """The whole report as text."""
    lines = [
        f"# Report of {findings.recipe.name}",
        "",
        subtitle(findings) + ".",
        "",
        *scores_section(findings),
    ]
    lines += against_section(findings)
    lines += [*budget_section(findings), *contamination_section(findings), *funnel_section(findings)]
    return "\n".join([*lines, *cost_section(findings), *provenance_section(findings)]) + "\n"


def card_markdown(findings: Findings) -> str:
    """The model card that goes with the checkpoint, in the form that the Hugging Face hub reads."""
    recipe = findings.recipe
    lines = [*front_matter(findings), f"# {recipe.name}", "", subtitle(findings) + ".", ""]
    lines += [*scores_section(findings), *contamination_section(findings), *funnel_section(findings)]
    lines += ["## Licences and provenance", ""]
    for table in provenance_tables(findings):
        lines += [*table_lines(table), ""]
    teacher = teacher_card(recipe.generate.teacher)
    if teacher.training_on_outputs == "restricted":
        lines += [
            f"The licence of the teacher ({teacher.licence}) restricts what may be trained on its outputs: "
            "read it before this checkpoint is passed on.",
            "",
        ]
    lines += ["## Limits", "", *[f"- {limit}" for limit in limits(findings)], ""]
    return "\n".join([*lines, *recipe_section(recipe.model_dump(exclude_unset=True))]) + "\n"


def front_matter(findings: Findings) -> list[str]:
    """YAML for the hub; values are JSON strings, which YAML reads."""
    student = student_card(findings.recipe.train.student)
    fields = {"license": student.licence.lower(), "library_name": "transformers"}
    if not Path(model_location(student.model)).is_dir():  # the hub knows no directory of this project
        fields["base_model"] = student.model
    return [
        "---",
        *[f"{key}: {json.dumps(value)}" for key, value in fields.items()],
        "tags: [distillation]",
        "---",
        "",
    ]


def scores_section(findings: Findings) -> list[str]:
    _, entry = findings.headline
    lines = ["## Scores", "", what_is_measured(findings), "", way_of_measuring(findings), ""]
    for task, _ in findings.pool_first():
        lines += [f"### {escape(task)}", "", *table_lines(scores_table(findings, task)), ""]
    gap = gap_text(entry)
    lines += [escape(gap), ""] if gap else []
    differences = paired_table(findings)
    return (
        [*lines, "### Paired differences", "", *table_lines(differences), ""] if differences.rows else lines
    )


def against_section(findings: Findings) -> list[str]:
    """The pair of an ablation: what differs, what both were given, and what it came to."""
    other = findings.against
    if other is None:
        return []
    lines = [f"## Against {escape(other.name)}", ""]
    if other.changes:
        lines += [*[f"- {escape(change)}" for change in other.changes], ""]
    held = other.comparison
    if held is None:
        return [*lines, f"Not compared: {escape(other.why_not)}", ""]
    lines += [held.note, "", *table_lines(held.scores), ""]
    return [*lines, *table_lines(held.budgets), "", held.verdict, ""]


def budget_section(findings: Findings) -> list[str]:
    """The budget curve of the headline as a table, and what forced closing gave."""
    name, entry = findings.headline
    lines = [f"## Score against allowed tokens ({escape(name)})", "", BUDGET_NOTE, ""]
    curves = entry["budget"]
    rows = [
        [f"{first['max_tokens']:,}", *[f"{100 * curves[model][place]['pass@1']:.1f}%" for model in curves]]
        for place, first in enumerate(next(iter(curves.values())))
    ]
    for place, model in enumerate(curves):
        for row, point in zip(rows, curves[model], strict=True):
            low, high = point["ci95"]
            row[place + 1] += f" [{100 * low:.1f}, {100 * high:.1f}]"
    lines += [*table_lines(Table(["tokens", *curves], rows)), ""]
    forced = forced_table(findings)
    return [*lines, "### Thinking closed by force", "", *table_lines(forced), ""] if forced else lines


def contamination_section(findings: Findings) -> list[str]:
    table = contamination_table(findings)
    if table is None:
        return ["## Contamination", "", NOT_CONTAMINATED_NOTE, ""]
    return ["## Contamination", "", CONTAMINATION_NOTE, "", *table_lines(table), ""]


def funnel_section(findings: Findings) -> list[str]:
    return ["## Funnel", "", *table_lines(funnel_table(findings)), ""]


def cost_section(findings: Findings) -> list[str]:
    lines = ["## Cost", "", cost_note(findings), "", *table_lines(cost_table(findings)), ""]
    ledger, forecast = ledger_table(findings), forecast_table(findings)
    if ledger:
        lines += [*table_lines(ledger), ""]
    return [*lines, "### Forecast against fact", "", *table_lines(forecast), ""] if forecast else lines


def provenance_section(findings: Findings) -> list[str]:
    lines = ["## Provenance", ""]
    for table in [*provenance_tables(findings), software_table(findings)]:
        lines += [*table_lines(table), ""]
    return [*lines, *recipe_section(findings.recipe.model_dump(exclude_unset=True))]


def recipe_section(recipe: dict[str, Any]) -> list[str]:
    return ["## Recipe", "", "```json", json.dumps(recipe, indent=2, ensure_ascii=False), "```"]
