"""The report stage. Needs neither torch nor vLLM.

Reads the manifests of all finished stages, eval's results.json and samples, filter's kept and dropped traces,
and eval of the run that it is set against. Writes runs/<name>/report/: report.html, report.md and README.md
(the model card).

    python -m pipeline report --recipe recipes/demo.yaml
"""

import logging

from pipeline.report.against import Compare, inputs_against, recall, remember, set_against
from pipeline.report.gather import STAGES
from pipeline.stage import Context, Counts, Plan, begin, check_outputs, inputs_of, read_manifest, require

log = logging.getLogger(__name__)

STAGE_VERSION = 3
# what is read of each stage, all that eval wrote among it: nothing that was changed since is reported
READ = {
    "problems": ["problems.jsonl"],
    "generate": ["forecast.json"],
    "filter": ["kept.jsonl", "dropped.jsonl"],
    "train": ["metrics.jsonl"],
    "eval": None,
}


def run(context: Context, compare: Compare, against: str | None = None) -> None:
    """Write the report and print its path on stdout; opens nothing. `against` names another run, with which
    `compare` compares this one, here and in later reports."""
    run_directory = context.run
    require(run_directory / "eval", "report", context.start.recipe)
    found = {stage: read_manifest(run_directory / stage) for stage in STAGES}
    manifests = {stage: manifest for stage, manifest in found.items() if manifest is not None}
    if against is not None:
        remember(run_directory, against)
    other = recall(run_directory)
    inputs = inputs_of(manifests) | inputs_against(other)
    plan = Plan("report", STAGE_VERSION, context.recipe.model_dump(), inputs, context.recipe.seed)
    directory = context.directory("report")
    stage = begin(directory, plan, context.start)
    if stage is not None:
        from pipeline.report.gather import gather
        from pipeline.report.markdown import card_markdown, report_markdown
        from pipeline.report.page import report_page
        from pipeline.report.traces import answered_questions, sifted_traces

        with stage:
            for name in manifests:
                check_outputs(run_directory / name, READ[name])
            findings = gather(context.recipe, run_directory, set_against(run_directory, other, compare))
            sifted = sifted_traces(run_directory / "filter")
            answered = answered_questions(run_directory / "eval", findings.models, findings.tasks)
            pages = {
                "report.html": report_page(findings, sifted, answered),
                "report.md": report_markdown(findings),
                "README.md": card_markdown(findings),
            }
            for name, text in pages.items():
                (directory / name).write_text(text, encoding="utf-8")
            stage.finish(Counts(len(manifests), len(manifests)), dict.fromkeys(pages))
    print(directory / "report.html")
