"""The report stage. Needs neither torch nor vLLM.

Reads the manifests of all finished stages, what the table of stages says a report reads of each, and eval of
the run that it is set against. Writes runs/<name>/report/: report.html, report.md and README.md (the model
card).

    python -m pipeline report --recipe recipes/demo.yaml
"""

from pipeline.context import Context
from pipeline.report.against import Compare, recall, remember, set_against
from pipeline.run.contract import Counts, Manifest, Plan, begin, check_outputs, read_manifest, read_manifests
from pipeline.run.stages import BY_NAME, before

STAGE_VERSION = 5


def run(context: Context, compare: Compare, against: str | None = None) -> None:
    """Write the report and print its path on stdout; opens nothing. `against` names another run, with which
    `compare` compares this one, here and in later reports."""
    context.require("eval", "report")
    if against is not None:
        remember(context, against)
    other, manifests = recall(context), finished_stages(context)
    # what was planned, and what came of it
    inputs = {name: manifest.fingerprint for name, manifest in manifests.items()}
    inputs |= {f"{name} outputs": manifest.digest() for name, manifest in manifests.items()}
    theirs = read_manifest(other / "eval") if other is not None else None
    if theirs is not None:  # nothing before its eval is finished
        inputs["against"] = theirs.digest()
    config = context.recipe.model_dump(exclude_defaults=True)
    plan = Plan("report", STAGE_VERSION, config, inputs, context.recipe.seed)
    stage = begin(context.directory("report"), plan, context.start)
    if stage is not None:
        from pipeline.report.gather import gather
        from pipeline.report.markdown import card_markdown, report_markdown
        from pipeline.report.page import report_page
        from pipeline.report.traces import answered_questions, filtered_traces

        with stage:
            for name in manifests:
                check_outputs(context.directory(name), BY_NAME[name].shown)
            findings = gather(context, manifests, set_against(context, other, compare))
            traces = filtered_traces(context.directory("filter"), context.teacher_card.thinking)
            pages = {
                "report.html": report_page(findings, traces, answered_questions(findings)),
                "report.md": report_markdown(findings),
                "README.md": card_markdown(findings),
            }
            for name, text in pages.items():
                (stage.directory / name).write_text(text, encoding="utf-8")
            stage.finish(Counts(len(manifests), len(manifests)), dict.fromkeys(pages))
    print(context.directory("report") / "report.html")


def finished_stages(context: Context) -> dict[str, Manifest]:
    """The manifests of the stages before the report that this recipe has and that are finished."""
    names = [stage.name for stage in context.stages if stage.name in before("report")]
    return read_manifests(context.run, names)
