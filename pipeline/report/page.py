"""report.html: one file that asks nothing of any server and runs nothing that a model wrote."""

from pathlib import Path

from pipeline.report.gather import Findings
from pipeline.report.tables import cost_table, funnel_table, paired_table, scores_table

HERE = Path(__file__).resolve().parent


def report_page(findings: Findings) -> str:
    """The page as text; every value is escaped by the template engine."""
    import jinja2

    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    tables = [(f"Scores: {task}", scores_table(findings, task)) for task in findings.results["tasks"]]
    tables += [("Paired differences", paired_table(findings)), ("Funnel", funnel_table(findings))]
    tables += [("Cost", cost_table(findings))]
    return environment.get_template("page.html.j2").render(name=findings.recipe.name, tables=tables)
