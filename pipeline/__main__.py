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

if TYPE_CHECKING:
    from pipeline.stage import Context

app = typer.Typer(
    name="retort",
    help="Distil verified chain-of-thought from a large MoE teacher into a small dense student.",
    epilog="Example: python -m pipeline all --recipe recipes/demo.yaml",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Option("--recipe", "-r", help="The recipe file, recipes/*.yaml.")]
Runs = Annotated[Path, typer.Option(help="The directory that holds one directory per run.")]
Force = Annotated[bool, typer.Option("--force", help="Move a directory that blocks aside, then run.")]
Override = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value; changes the fingerprint.")
]

EngineKind = Annotated[
    Literal["vllm", "server"], typer.Option(help="vLLM in this process, or OpenAI-compatible servers.")
]
Urls = Annotated[
    list[str] | None, typer.Option("--url", help="A server, as http://host:8000/v1; may be repeated.")
]
Concurrency = Annotated[int, typer.Option(help="Requests in flight at most.")]
TensorParallel = Annotated[int | None, typer.Option(help="Devices that share one model; else the card's.")]
DataParallel = Annotated[int | None, typer.Option(help="Copies of the model; else the card's.")]
ServedName = Annotated[
    str | None, typer.Option(help="The model's name at the servers, where it has another.")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the student runs.")]
Adopt = Annotated[
    list[str] | None, typer.Option("--adopt", help="The name of a run whose traces of equal key are taken.")
]

DEFAULT_RUNS = Path("runs")


def context(recipe: Path, runs: Path, force: bool, override: list[str] | None) -> "Context":
    """Load the recipe and say how the stage was asked to start. RecipeError on any fault of the recipe."""
    from pipeline.recipe import load_recipe
    from pipeline.stage import Context, Start

    return Context(load_recipe(recipe, override), runs, Start(force, sys.argv, str(recipe)))


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


@app.command("filter")
def filter_(
    recipe: RecipePath, runs: Runs = DEFAULT_RUNS, force: Force = False, override: Override = None
) -> None:
    """Keep the traces that every rule lets pass, drop the others for a stated reason, select examples."""
    from pipeline.filter import run

    run(context(recipe, runs, force, override))


@app.command()
def generate(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    force: Force = False,
    override: Override = None,
    engine: EngineKind = "vllm",
    url: Urls = None,
    concurrency: Concurrency = 256,
    tensor_parallel: TensorParallel = None,
    data_parallel: DataParallel = None,
    served_name: ServedName = None,
    adopt: Adopt = None,
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


@app.command()
def train(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    force: Force = False,
    override: Override = None,
    device: Device = "auto",
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
        wake(tracker)
    flags = TrainFlags(
        device=device,
        tokens_per_device=tokens_per_device,
        gradient_checkpointing=gradient_checkpointing,
        liger=liger,
        save_every=save_every,
        log_every=log_every,
        tracker=tracker,
        rank=int(os.environ.get("RANK", "0")),
        processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    run(context(recipe, runs, force, override), flags)


@app.command()
def preflight(recipe: RecipePath, runs: Runs = DEFAULT_RUNS, override: Override = None) -> None:
    """Show what the student would be trained on, and check template, mask, tokens and weights."""
    from students.check import run

    run(context(recipe, runs, False, override))


@app.command()
def chat(
    recipe: RecipePath, runs: Runs = DEFAULT_RUNS, override: Override = None, device: Device = "auto"
) -> None:
    """Talk to the finished student in this terminal; its thinking is dimmed."""
    from students.chat import run

    run(context(recipe, runs, False, override), device)


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


@app.command("eval")
def eval_(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    force: Force = False,
    override: Override = None,
    url: Annotated[
        list[str] | None, typer.Option("--url", help="A model that is served: teacher=http://host:8000/v1.")
    ] = None,
    concurrency: Concurrency = 256,
) -> None:
    """Measure base, student and teacher on the same questions, with intervals."""
    from eval.stage import run
    from pipeline.sampling import EngineFlags

    run(context(recipe, runs, force, override), EngineFlags(concurrency=concurrency), url or [])


@app.command()
def report(
    recipe: RecipePath, runs: Runs = DEFAULT_RUNS, force: Force = False, override: Override = None
) -> None:
    """Write report.html, report.md and the model card; print the path of the page."""
    from pipeline.report import run

    run(context(recipe, runs, force, override))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A finished run: its name, or its directory.")],
    second: Annotated[str, typer.Argument(help="The run to set against it.")],
    runs: Runs = DEFAULT_RUNS,
    model: Annotated[str, typer.Option(help="Which model of both runs.")] = "student",
) -> None:
    """Compare two finished runs question by question, and check that they were given equal budgets."""
    from eval.compare import compare as compare_runs

    paths = [Path(name) if Path(name).is_dir() else runs / name for name in (first, second)]
    print(compare_runs(paths[0], paths[1], model))


@app.command("serve-teacher")
def serve_teacher(
    teacher: Annotated[str, typer.Option(help="A card of teachers/cards/.")] = "embedded-moe",
    port: Annotated[int, typer.Option(help="The port on loopback.")] = 8000,
    concurrency: Concurrency = 256,
    tensor_parallel: TensorParallel = None,
    data_parallel: DataParallel = None,
) -> None:
    """Serve a teacher on loopback with vllm serve and the settings of its card, until Ctrl-C."""
    from pipeline.sampling import EngineFlags
    from teachers.serve import run

    flags = EngineFlags(concurrency=concurrency, tensor_parallel=tensor_parallel, data_parallel=data_parallel)
    run(teacher, port, flags)


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
def export(
    recipe: RecipePath,
    layout: Annotated[Literal["trl", "sharegpt", "alpaca"], typer.Option("--format", help="Whose layout.")],
    runs: Runs = DEFAULT_RUNS,
    override: Override = None,
) -> None:
    """Write the examples in the layout of another trainer; prints the path."""
    from pipeline.exports import export as write

    print(write(context(recipe, runs, False, override), layout))


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


def plan(
    recipe: RecipePath,
    runs: Runs = DEFAULT_RUNS,
    override: Override = None,
    pilot: Annotated[int | None, typer.Option(help="Sample this many problems for real first.")] = None,
    engine: EngineKind = "vllm",
    url: Urls = None,
    concurrency: Concurrency = 256,
    devices: Annotated[int, typer.Option(help="Devices for the teacher.")] = 8,
    memory: Annotated[float, typer.Option(help="GiB of one device.")] = 80.0,
    bandwidth: Annotated[float, typer.Option(help="GB/s of one device's memory.")] = 3350.0,
    price: Annotated[float, typer.Option(help="Money for one device-hour.")] = 2.5,
    problems: Annotated[int | None, typer.Option(help="How many problems, where it is not known.")] = None,
    pass_rate: Annotated[float, typer.Option(min=0, max=1, help="Assumed where no pilot measured it.")] = 0.6,
    tokens_share: Annotated[
        float, typer.Option(help="Assumed tokens of a trace, as part of max_tokens.")
    ] = 0.4,
    prompt_tokens: Annotated[int, typer.Option(help="Assumed tokens of a prompt.")] = 200,
) -> None:
    """Print what a run will cost before anything is bought, with every assumption; --pilot measures."""
    from pipeline.sampling import EngineFlags
    from teachers.estimate import Devices
    from teachers.generate import GenerateFlags
    from teachers.plan import Assumed, run

    flags = GenerateFlags(EngineFlags(engine=engine, urls=tuple(url or ()), concurrency=concurrency))
    hardware = Devices(devices, memory, bandwidth, price)
    assumed = Assumed(pass_rate, tokens_share, prompt_tokens, hardware, concurrency, problems)
    run(context(recipe, runs, False, override), assumed, pilot, flags)


def main() -> None:
    """Run the command line; a PipelineError becomes one `error: ...` on stderr and an exit code."""
    quiet_libraries()
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that one launcher started
    logging.basicConfig(
        level=logging.INFO if is_first else logging.ERROR, format="%(message)s", stream=sys.stderr
    )
    from pipeline.errors import PipelineError

    try:
        code = app(standalone_mode=False)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except TyperException as error:
        print(f"error: {error.format_message()} Try: python -m pipeline --help", file=sys.stderr)
        sys.exit(2)
    except Exit as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted: what is finished is kept; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def quiet_libraries() -> None:
    """No telemetry of any library unless the user turned it on by setting the variable."""
    for name, value in {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRACKIO_DISABLE": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)


def wake(tracker: str) -> None:
    """Undo what `quiet_libraries` switched off for a tracker that was asked for; a user's own value stays."""
    for name, off in {"wandb": {"WANDB_MODE": "disabled"}, "trackio": {"TRACKIO_DISABLE": "1"}}.get(
        tracker, {}
    ).items():
        if os.environ.get(name) == off:
            del os.environ[name]


if __name__ == "__main__":
    main()
