"""report.md and README.md (the model card). Markdown is data here: cells are escaped, nothing is rendered."""

from pipeline.report.gather import Findings
from pipeline.report.numbers import short
from pipeline.report.tables import (
    Table,
    cost_table,
    funnel_table,
    gap_text,
    paired_table,
    scores_table,
)


def report_markdown(findings: Findings) -> str:
    """The whole report as text."""
    lines = [
        f"# Report of `{findings.recipe.name}`",
        "",
        *scores_section(findings),
        *funnel_section(findings),
    ]
    return "\n".join([*lines, *cost_section(findings), *provenance_section(findings)]) + "\n"


def scores_section(findings: Findings) -> list[str]:
    name, entry = findings.headline
    lines = ["## Scores", "", "Every value stands with its 95% interval, over questions.", ""]
    for task in [name, *[task for task in findings.results["tasks"] if task != name]]:
        lines += [f"### {task}", "", *table_lines(scores_table(findings, task)), ""]
    gap = gap_text(entry)
    lines += [f"Gap recovered ({name}): {gap}", ""] if gap else []
    return [*lines, "### Paired differences", "", *table_lines(paired_table(findings)), ""]


def funnel_section(findings: Findings) -> list[str]:
    return ["## Funnel", "", *table_lines(funnel_table(findings)), ""]


def cost_section(findings: Findings) -> list[str]:
    return ["## Cost", "", *table_lines(cost_table(findings)), ""]


def provenance_section(findings: Findings) -> list[str]:
    rows = [
        [
            stage,
            f"`{short(manifest['fingerprint'])}`",
            f"`{short(manifest['code']['commit'], 12)}`"
            + (" (changed)" if manifest["code"]["dirty"] else ""),
            manifest["started"],
        ]
        for stage, manifest in findings.manifests.items()
    ]
    return ["## Provenance", "", *table_lines(Table(["stage", "fingerprint", "code", "started"], rows)), ""]


def card_markdown(findings: Findings) -> str:
    """The model card that goes with the checkpoint."""
    recipe = findings.recipe
    lines = [
        f"# {recipe.name}",
        "",
        f"`{recipe.train.student}`, fine-tuned on verified traces of `{recipe.generate.teacher}` "
        f"(method {recipe.train.method}, {recipe.train.epochs:g} epochs).",
        "",
    ]
    return "\n".join([*lines, *scores_section(findings), *funnel_section(findings)]) + "\n"


def table_lines(table: Table) -> list[str]:
    """A pipe table; what would end a cell or open a tag is escaped."""
    rule = "|" + "---|" * len(table.head)
    return [row_line(table.head), rule, *[row_line(row) for row in table.rows]]


def row_line(cells: list[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
