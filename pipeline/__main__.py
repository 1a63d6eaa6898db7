"""The command line: one subcommand a stage, the only place that imports the stages, lazily.

python -m pipeline problems --recipe recipes/demo.yaml
"""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.exceptions import Exit, TyperException

from pipeline import options, telemetry
from pipeline.options import DEFAULT_RUNS, Force, Override, RecipePath, Runs

if TYPE_CHECKING:
    from pipeline.report.against import Comparison
    from pipeline.stage import Context

app = typer.Typer(
    name="retort",
    help="Distil verified chain-of-thought from a large MoE teacher into a small dense student.",
    epilog="Example: python -m pipeline generate --recipe recipes/demo.yaml",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130


def context(recipe: Path, runs: Path, force: bool, override: list[str] | None) -> "Context":
    """Load the recipe and say how the stage was asked to start. RecipeError on any fault of the recipe."""
    from pipeline.recipe import load_recipe
    from pipeline.references import check_references
    from pipeline.stage import Context, Start

    loaded = check_references(load_recipe(recipe, override), str(recipe))
    return Context(loaded, runs, Start(force, sys.argv, str(recipe)))


def rank() -> int:
    """The place of this process among those that one launcher started."""
    from pipeline.errors import RecipeError

    text = os.environ.get("RANK", "0")
    if not (text.isascii() and text.isdigit()):
        raise RecipeError(f"RANK={text}: a launcher sets it to a number from 0; unset it")
    return int(text)


@app.callback()
def retort() -> None:
    """Distil verified chain-of-thought from a large MoE teacher into a small dense student."""


@app.command()
def problems(
    recipe: RecipePath, runs: Runs = DEFAULT_RUNS, force: Force = False, override: Override = None
) -> None:
    """Load, check, dedupe and decontaminate the problems of a recipe."""
    from pipeline.problems import run

    run(context(recipe, runs, force, override))


@app.command()
def generate(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    force: Force = False,
    override: Override = None,
    engine: options.EngineKind = "vllm",
    url: options.Urls = None,
    concurrency: options.Concurrency = 256,
    tensor_parallel: options.TensorParallel = None,
    data_parallel: options.DataParallel = None,
    served_name: options.ServedName = None,
    adopt: options.Adopt = None,
) -> None:
    """Sample the teacher until enough traces of each problem are correct, within a budget."""
    from pipeline.sampling import EngineFlags
    from teachers.generate import GenerateFlags, run

    flags = EngineFlags(
        engine=engine,
        urls=tuple(url or ()),
        concurrency=concurrency,
        tensor_parallel=tensor_parallel,
        data_parallel=data_parallel,
        served_name=served_name,
    )
    run(context(recipe, runs, force, override), GenerateFlags(flags, tuple(adopt or ())))


@app.command("filter")
def filter_(
    recipe: RecipePath, runs: Runs = DEFAULT_RUNS, force: Force = False, override: Override = None
) -> None:
    """Keep the traces that every rule lets pass, drop the others for a stated reason, select examples."""
    from pipeline.filter import run

    run(context(recipe, runs, force, override))


@app.command()
def train(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    force: Force = False,
    override: Override = None,
    device: options.Device = "auto",
    tokens_per_device: Annotated[int, typer.Option(help="Tokens of one micro-batch.")] = 8192,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third slower.")
    ] = False,
    liger: Annotated[bool, typer.Option("--liger", help="Liger's kernels; needs liger-kernel.")] = False,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints to resume from.")] = None,
    log_every: Annotated[int, typer.Option(help="Steps between rows of metrics.jsonl.")] = 10,
    tracker: Annotated[
        Literal["none", "trackio", "tensorboard", "wandb"], typer.Option(help="Also log there.")
    ] = "none",
) -> None:
    """Fine-tune the student of a recipe on its examples, after a preflight."""
    from students.flags import TrainFlags
    from students.train import run

    if tracker != "none":
        telemetry.wake(tracker, os.environ)
    flags = TrainFlags(
        device=device,
        tokens_per_device=tokens_per_device,
        gradient_checkpointing=gradient_checkpointing,
        liger=liger,
        save_every=save_every,
        log_every=log_every,
        tracker=tracker,
        rank=rank(),
        processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    run(context(recipe, runs, force, override), flags)


@app.command("eval")
def eval_(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    force: Force = False,
    override: Override = None,
    url: options.ModelUrls = None,
    served_name: options.ModelNames = None,
    concurrency: options.Concurrency = 256,
) -> None:
    """Measure base, student and teacher on the same questions, with intervals."""
    from eval.stage import run
    from pipeline.sampling import EngineFlags

    flags = EngineFlags(concurrency=concurrency)
    run(context(recipe, runs, force, override), flags, url or [], served_name or [])


def compare_later(first: Path, second: Path) -> "Comparison":
    """The second run against the first; what it imports takes longer than a report that is up to date."""
    from eval.compare import compared

    return compared(first, second)


@app.command()
def report(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    against: options.Against = None,
    force: Force = False,
    override: Override = None,
) -> None:
    """Write report.html, report.md and the model card; print the path of the page."""
    from pipeline.report import run

    run(context(recipe, runs, force, override), compare_later, against)


@app.command()
def plan(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    override: Override = None,
    pilot: Annotated[int | None, typer.Option(help="Sample this many problems for real first.")] = None,
    url: options.Urls = None,
    assume: options.Assume = None,
) -> None:
    """Print what a run will cost before anything is bought, with every assumption; --pilot measures."""
    from pipeline.sampling import EngineFlags
    from teachers.assumed import assumed_from
    from teachers.generate import GenerateFlags
    from teachers.plan import run

    flags = GenerateFlags(EngineFlags(engine="server" if url else "vllm", urls=tuple(url or ())))
    run(context(recipe, runs, False, override), assumed_from(assume or []), pilot, flags)


@app.command()
def preflight(recipe: RecipePath, runs: Runs = DEFAULT_RUNS, override: Override = None) -> None:
    """Show what the student would be trained on, and check template, mask, tokens and weights."""
    from students.check import run

    run(context(recipe, runs, False, override))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A .jsonl file of rows {gold, response}.")],
    verifier: Annotated[str, typer.Option(help="For rows that name none.")] = "math",
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 2,
    deadline: Annotated[float, typer.Option(help="Seconds for one row.")] = 5.0,
    out: Annotated[Path | None, typer.Option(help="Where the rows go; else to stdout.")] = None,
) -> None:
    """Verify the rows of a file; with a column `correct`, audit the verifier itself."""
    from pipeline.verify.command import run_verify

    run_verify(file, verifier, workers, deadline, out)


@app.command()
def audit(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    override: Override = None,
    sample: Annotated[int, typer.Option(help="Verdicts to ask a second opinion on.")] = 400,
) -> None:
    """Put a sample of a run's verdicts to other layers; print the disagreements and error rates."""
    from pipeline.verify.audit import audit_run

    print(audit_run(context(recipe, runs, False, override), sample))


@app.command()
def funnel(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    override: Override = None,
    show: Annotated[str | None, typer.Option(help="A reason or a rule: print five examples of it.")] = None,
) -> None:
    """Show how many traces each rule dropped, by source and by difficulty, or examples of a reason."""
    from pipeline.funnel import show_funnel

    show_funnel(context(recipe, runs, False, override), show)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A finished run: its name, or its directory.")],
    second: Annotated[str, typer.Argument(help="The run to set against it.")],
    runs: Runs = DEFAULT_RUNS,
    model: Annotated[str, typer.Option(help="Which model of both runs.")] = "student",
) -> None:
    """Compare two finished runs question by question, and check that they were given equal budgets."""
    from eval.compare import compare as compare_runs
    from pipeline.report.against import named_run

    print(compare_runs(named_run(runs, first), named_run(runs, second), model))


@app.command()
def ablate(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    drop_rule: Annotated[str | None, typer.Option(help="Leave this rule out.")] = None,
    select: Annotated[str | None, typer.Option(help="Prefer shortest, first or random traces.")] = None,
    change: Annotated[str | None, typer.Option("--set", help="One field of filter or train.")] = None,
) -> None:
    """Write a sibling recipe that differs in one field and shares the run's traces; prints its path."""
    from pipeline.ablate import ablate as write

    asked = {"drop-rule": drop_rule, "select": select, "set": change}
    changes = [(kind, value) for kind, value in asked.items() if value is not None]
    print(write(context(recipe, runs, False, None), recipe, changes))


@app.command()
def export(
    recipe: RecipePath,
    layout: Annotated[Literal["trl", "sharegpt", "alpaca"], typer.Option("--format", help="Whose layout.")],
    runs: Runs = DEFAULT_RUNS,
    override: Override = None,
) -> None:
    """Write the examples in the layout of another trainer; prints the path."""
    from pipeline.exports import export as write

    print(write(context(recipe, runs, False, override), layout))


@app.command("import-traces")
def import_traces(
    recipe: RecipePath,
    file: Annotated[Path, typer.Option(help="A .jsonl or .parquet file of traces.")],
    layout: Annotated[str, typer.Option(help="openr1, openthoughts, sharegpt or columns.")] = "columns",
    columns: Annotated[str, typer.Option(help="Of question, response, tokens.")] = "question,response",
    runs: Runs = DEFAULT_RUNS,
    force: Force = False,
    override: Override = None,
) -> None:
    """Take traces that exist already in place of generate; the later stages run on them."""
    from teachers.import_traces import Imported, run
    from teachers.layouts import Columns

    imported = Imported(file, layout, Columns.from_flag(columns))
    run(context(recipe, runs, force, override), imported)


@app.command("serve-teacher")
def serve_teacher(
    teacher: Annotated[str, typer.Option(help="A card of teachers/cards/.")] = "embedded-moe",
    port: Annotated[int, typer.Option(help="The port on loopback.")] = 8000,
    concurrency: options.Concurrency = 256,
    tensor_parallel: options.TensorParallel = None,
    data_parallel: options.DataParallel = None,
) -> None:
    """Serve a teacher on loopback with vllm serve and the settings of its card, until Ctrl-C."""
    from pipeline.sampling import EngineFlags
    from teachers.serve import run

    flags = EngineFlags(concurrency=concurrency, tensor_parallel=tensor_parallel, data_parallel=data_parallel)
    run(teacher, port, flags)


@app.command("serve-student")
def serve_student(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    override: Override = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Serve the finished student with `vllm serve`."""
    from students.serve import run

    run(context(recipe, runs, False, override), host, port)


@app.command()
def chat(
    recipe: RecipePath, runs: Runs = DEFAULT_RUNS, override: Override = None, device: options.Device = "auto"
) -> None:
    """Talk to the finished student in this terminal; its thinking is dimmed."""
    from students.chat import run

    run(context(recipe, runs, False, override), device)


@app.command()
def publish(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    override: Override = None,
    model_repo: Annotated[str | None, typer.Option(help="owner/name of the model on the hub.")] = None,
    data_repo: Annotated[str | None, typer.Option(help="owner/name of the data set on the hub.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the cards, contact nobody.")] = False,
) -> None:
    """Put a finished run on the hub as a model and a data set."""
    from pipeline.publish import run

    run(context(recipe, runs, False, override), model_repo, data_repo, dry_run)


def main() -> None:
    """Run the command line; a PipelineError becomes one `error: ...` on stderr and an exit code."""
    telemetry.quiet(os.environ)
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that one launcher started
    logging.basicConfig(
        level=logging.INFO if is_first else logging.ERROR, format="%(message)s", stream=sys.stderr
    )
    from pipeline.errors import PipelineError

    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except TyperException as error:
        print(f"error: {error.format_message()} Try: python -m pipeline --help", file=sys.stderr)
        sys.exit(2)
    except Exit as stop:
        leave(stop.exit_code)
    except KeyboardInterrupt:
        leave(INTERRUPTED)
    leave(code if isinstance(code, int) else 0)


def leave(code: int) -> None:
    """Exit; after a Ctrl-C, which typer turns into this code, say how to go on."""
    if code == INTERRUPTED:
        print("\ninterrupted: what is finished is kept; run the same command again to go on", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
