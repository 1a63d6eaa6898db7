"""The command line: one subcommand a stage, the only place that imports the stages, lazily.

A command is a function of records of pipeline/flags.py; its options are made from their fields.

    python -m pipeline problems --recipe recipes/demo.yaml
"""

import dataclasses
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from typer.exceptions import Exit, TyperException

from pipeline import telemetry
from pipeline.errors import PipelineError, RecipeError, inside, no_descriptor, write_fault
from pipeline.flags import (
    AdoptFlags,
    Device,
    EngineFlags,
    ModelFlags,
    RunFlags,
    SamplingFlags,
    ShardFlags,
    StageFlags,
    TrainFlags,
    WorkerFlags,
    at_least_one,
    in_this_process,
    launched,
)
from pipeline.run.lifetime import die_with_parent
from pipeline.run.secrets import API_KEY, read_key
from pipeline.run.stages import BY_NAME

if TYPE_CHECKING:
    from pipeline.context import Context
    from pipeline.filter.weighing import Weigh
    from pipeline.report.against import Comparison

app = typer.Typer(
    name="retort",
    help="Distil verified chain-of-thought from a large MoE teacher into a small dense student.",
    epilog="Example: python -m pipeline generate --recipe recipes/demo.yaml",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

log = logging.getLogger(__name__)

INTERRUPTED = 130


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a subcommand of a function: a parameter that is a record of flags becomes the record's options."""

    def make(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        options: dict[str, inspect.Parameter] = {}
        records: dict[str, type[Any]] = {}
        for parameter in inspect.signature(function).parameters.values():
            kind = hints[parameter.name]
            if dataclasses.is_dataclass(kind):
                records[parameter.name] = kind  # type: ignore[assignment]
                options |= {made.name: made for made in options_of(kind)}
            else:
                options[parameter.name] = parameter.replace(
                    annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY
                )

        @functools.wraps(function)
        def run(**values: Any) -> None:
            given = {name: kind(**taken(kind, values)) for name, kind in records.items()}
            if {EngineFlags, ModelFlags}.isdisjoint(records.values()):
                os.environ.pop(API_KEY, None)  # who asks no server needs no key, nor do its children
            read_key(os.environ)
            function(**given, **values)

        run.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {made.name: made.annotation for made in options.values()}
        return app.command(name)(run)

    return make


def options_of(record: Any) -> list[inspect.Parameter]:
    """The options of a record of flags; a field without a help text is not a flag."""
    hints = get_type_hints(record)
    made = []
    for item in dataclasses.fields(record):
        if "help" not in item.metadata:
            continue
        several = hints[item.name] == tuple[str, ...]
        kind = list[str] | None if several else hints[item.name]
        default = inspect.Parameter.empty if item.default is dataclasses.MISSING else item.default
        option = typer.Option(*item.metadata["names"], help=item.metadata["help"])
        made.append(
            inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None if several else default,
                annotation=Annotated[kind, option],
            )
        )
    return made


def taken(record: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a record's fields, taken out of `values`."""
    held = {item.name: values.pop(item.name) for item in dataclasses.fields(record) if item.name in values}
    return {
        name: tuple(value) if isinstance(value, list) else () if value is None and several else value
        for name, value in held.items()
        for several in [record.__dataclass_fields__[name].default == ()]
    }


def context(flags: RunFlags) -> "Context":
    """The recipe with all that it names, loaded and checked. RecipeError on any fault of it."""
    from pipeline.context import load_context
    from pipeline.filter.rules import check_rules
    from pipeline.run.contract import Start

    start = Start(isinstance(flags, StageFlags) and flags.force, sys.argv, str(flags.recipe))
    loaded = load_context(flags.recipe, flags.runs, start, list(flags.override))
    with inside(str(flags.recipe)):
        check_rules(loaded.recipe.filter.rules)
    return loaded


def run_stage(name: str, loaded: "Context", *flags: Any) -> None:
    """Run a stage of the recipe. One that it has no section for is passed over, as in make all."""
    if BY_NAME[name] not in loaded.stages:
        log.info("%s: not in this recipe", name)
        return
    resolve_name(BY_NAME[name].home)(loaded, *flags)


@app.callback()
def retort() -> None:
    """Distil verified chain-of-thought from a large MoE teacher into a small dense student."""


@command("problems")
def problems(flags: StageFlags, workers: WorkerFlags) -> None:
    """Load, check, dedupe and decontaminate the problems of a recipe."""
    run_stage("problems", context(flags), workers)


@command("generate")
def generate(
    flags: StageFlags, engine: EngineFlags, adopt: AdoptFlags, workers: WorkerFlags, shards: ShardFlags
) -> None:
    """Sample the teacher until enough traces of each problem are correct, within a budget."""
    from teachers.generate import GenerateFlags

    run_stage("generate", context(flags), GenerateFlags(engine, adopt, workers, shards))


@command("judge")
def judge(flags: StageFlags, engine: EngineFlags, adopt: AdoptFlags, workers: WorkerFlags) -> None:
    """Ask the recipe's judge where verifiers cannot tell, and hold it to canaries."""
    from pipeline.judging.stage import JudgeFlags

    run_stage("judge", context(flags), JudgeFlags(engine, adopt, workers))


def weigher_later(loaded: "Context") -> "Weigh":
    """The model of a preference that needs one; torch only then."""
    from students.likelihood import weigher

    return weigher(loaded)


@command("filter")
def filter_(flags: StageFlags, workers: WorkerFlags) -> None:
    """Keep the traces that every rule lets pass, drop the others for a stated reason, select examples."""
    run_stage("filter", context(flags), workers, weigher_later)


@command("train")
def train(flags: StageFlags, training: TrainFlags) -> None:
    """Fine-tune the student of a recipe on its examples, after a preflight."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, when it is killed, leaves its processes
        die_with_parent(os.getppid())
    if training.tracker != "none":
        telemetry.wake(training.tracker, os.environ)
    run_stage("train", context(flags), launched(training, dict(os.environ)))


@command("polish")
def polish(flags: StageFlags, training: TrainFlags, engine: EngineFlags) -> None:
    """Distil the trained student on its own samples, where the recipe has the section."""
    if training.tracker != "none":
        telemetry.wake(training.tracker, os.environ)
    run_stage("polish", context(flags), launched(training, dict(os.environ)), engine)


@command("eval")
def eval_(
    flags: StageFlags,
    engines: SamplingFlags,
    models: ModelFlags,
    adopt: AdoptFlags,
    workers: WorkerFlags,
    shards: ShardFlags,
) -> None:
    """Measure base, student and teacher on the same questions, with intervals."""
    from eval.stage import EvalFlags

    run_stage("eval", context(flags), EvalFlags(in_this_process(engines), models, adopt, workers, shards))


def compare_later(first: Path, second: Path) -> "Comparison":
    """The second run against the first; what it imports takes longer than a report that is up to date."""
    from eval.compare import compared

    return compared(first, second)


@command("report")
def report(
    flags: StageFlags,
    against: Annotated[
        str | None, typer.Option(help="Another run, of which this one is an ablation.")
    ] = None,
) -> None:
    """Write report.html, report.md and the model card; print the path of the page."""
    run_stage("report", context(flags), compare_later, against)


@command("plan")
def plan(
    flags: RunFlags,
    engine: EngineFlags,
    workers: WorkerFlags,
    pilot: Annotated[int | None, typer.Option(help="Sample this many problems for real first.")] = None,
    assume: Annotated[
        list[str] | None, typer.Option(help="name=value: problems, devices, price, memory, bandwidth, ...")
    ] = None,
) -> None:
    """Print what a run will cost before anything is bought, with every assumption; --pilot measures."""
    from pipeline.plan.command import assumed_from, run
    from teachers.generate import GenerateFlags
    from teachers.pilot import run_pilot

    assumed, loaded = assumed_from(assume or []), context(flags)
    if pilot is not None:
        run_pilot(loaded, pilot, GenerateFlags(engine, AdoptFlags(), workers))
    run(loaded, assumed)


@command("preflight")
def preflight(flags: RunFlags) -> None:
    """Show what the student would be trained on, and check template, mask, tokens and weights."""
    from students.check import run

    run(context(flags))


@command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help="A .jsonl file of rows {gold, response}.")],
    workers: WorkerFlags,
    verifier: Annotated[str, typer.Option(help="For rows that name none.")] = "math",
    deadline: Annotated[float, typer.Option(help="Seconds for one row.")] = 5.0,
    out: Annotated[Path | None, typer.Option(help="Where the rows go; else to stdout.")] = None,
) -> None:
    """Verify the rows of a file; with a column `correct`, audit the verifier itself."""
    from pipeline.verify.command import run_verify

    run_verify(file, verifier, workers.num_workers, deadline, out)


@command("sandbox")
def sandbox(
    check: Annotated[bool, typer.Option("--check", help="Say what this machine offers.")] = False,
) -> None:
    """Where programs of the verifier `code` run: which sandbox this machine can give them, and its limits."""
    from pipeline.verify.sandbox import report

    if not check:
        raise RecipeError("sandbox: say what to do; there is --check")
    print(report())


@command("audit")
def audit(
    flags: RunFlags,
    workers: WorkerFlags,
    sample: Annotated[int, typer.Option(help="Verdicts to ask a second opinion on.")] = 400,
) -> None:
    """Put a sample of a run's verdicts to other layers; print the disagreements and error rates."""
    from pipeline.verify.audit import audit_run

    print(audit_run(context(flags), sample, workers.num_workers))


@command("funnel")
def funnel(
    flags: RunFlags,
    show: Annotated[str | None, typer.Option(help="A reason or a rule: print five examples of it.")] = None,
) -> None:
    """Show how many traces each rule dropped, by source and by difficulty, or examples of a reason."""
    from pipeline.filter.funnel import show_funnel

    show_funnel(context(flags), show)


@command("compare")
def compare(
    first: Annotated[str, typer.Argument(help="A finished run: its name, or its directory.")],
    second: Annotated[str, typer.Argument(help="The run to set against it.")],
    runs: Annotated[Path, typer.Option(help="The directory that holds both runs.")] = Path("runs"),
    model: Annotated[str, typer.Option(help="Which model of both runs.")] = "student",
) -> None:
    """Compare two finished runs question by question, and check that they were given equal budgets."""
    from eval.compare import compare as compare_runs
    from pipeline.report.against import named_run

    print(compare_runs(named_run(runs, first), named_run(runs, second), model))


@command("ablate")
def ablate(
    flags: RunFlags,
    drop_rule: Annotated[str | None, typer.Option(help="Leave this rule out.")] = None,
    select: Annotated[
        str | None, typer.Option(help="Prefer shortest, first, random, likely or surprising.")
    ] = None,
    keep_unsolved: Annotated[
        bool, typer.Option("--keep-unsolved", help="Keep one wrong trace of each problem that none solves.")
    ] = False,
) -> None:
    """Write a sibling recipe that differs in one field (--set: one of filter or train) and shares the run's
    traces; prints its path."""
    from pipeline.report.ablate import ablate as write

    kept = "keep_one" if keep_unsolved else None
    asked = [
        ("drop-rule", drop_rule),
        ("select", select),
        ("keep-unsolved", kept),
        *(("set", pair) for pair in flags.override),
    ]
    changes = [(kind, value) for kind, value in asked if value is not None]
    print(write(context(dataclasses.replace(flags, override=())), flags.recipe, changes))


@command("variants")
def variants(
    flags: RunFlags, run: Annotated[bool, typer.Option("--run", help="Run them all, one by one.")] = False
) -> None:
    """Write a sibling recipe for every combination of the values (--set KEY=VALUE,VALUE); print their paths.
    With --run run them: what is equal is made once, and the board of their scores is printed."""
    from pipeline.report.board import show_board
    from pipeline.report.variants import axes_of, by_command_line, run_variants, write_variants

    parent = context(dataclasses.replace(flags, override=()))
    written = write_variants(parent, flags.recipe, flags.override)
    for variant in written:
        print(variant.path)
    if run:
        try:
            run_variants(parent, written, axes_of(flags.override), by_command_line(flags.runs))
        finally:
            show_board(flags.runs, [variant.context.recipe.name for variant in written])


@command("board")
def board(
    names: Annotated[list[str] | None, typer.Argument(help="Runs by name; else all of them.")] = None,
    runs: Annotated[Path, typer.Option(help="The directory that holds the runs.")] = Path("runs"),
) -> None:
    """Set all runs side by side: scores with intervals, what differs, tokens, cost; writes board.html."""
    from pipeline.report.board import show_board

    show_board(runs, names or [])


@command("export")
def export(
    flags: RunFlags,
    layout: Annotated[Literal["trl", "sharegpt", "alpaca"], typer.Option("--format", help="Whose layout.")],
) -> None:
    """Write the examples in the layout of another trainer; prints the path."""
    from pipeline.filter.exports import export as write

    print(write(context(flags), layout))


@command("look")
def look(
    file: Annotated[str | None, typer.Argument(help="A file, a glob or a directory of rows.")] = None,
) -> None:
    """Show what a file of rows holds, and the source that would read it; without one, the presets."""
    from pipeline.problems.look import look as text_of

    print(text_of(file))


@command("import-traces")
def import_traces(
    flags: StageFlags,
    workers: WorkerFlags,
    file: Annotated[Path, typer.Option(help="A file of traces, a directory or a glob.")],
    layout: Annotated[str, typer.Option(help="A layout of teachers/layouts.py.")] = "columns",
    columns: Annotated[
        str, typer.Option(help="Of question, response, tokens; or thinking=a,response=b, ...")
    ] = "question,response",
    tags: Annotated[str | None, typer.Option(help="Of the file's thinking: a name, or OPEN,CLOSE.")] = None,
    first_turn: Annotated[
        bool, typer.Option("--first-turn", help="Cut chats after the first answer.")
    ] = False,
) -> None:
    """Take traces that exist already in place of generate; the later stages run on them."""
    from teachers.import_traces import Imported, run
    from teachers.layouts import Columns, tags_named

    held = Columns.from_flag(columns, first_turn)
    run(context(flags), Imported(file, layout, held, tags_named(tags) if tags else None), workers)


@command("launch")
def launch(
    kind: Annotated[Literal["slurm", "sky", "slurm-train"], typer.Argument(help="Which scheduler.")],
    flags: RunFlags,
    stage: Annotated[
        Literal["generate", "eval"], typer.Option(help="Whose shards; eval with slurm alone.")
    ] = "generate",
    shards: Annotated[int, typer.Option(help="Parts of the stage, each a job.")] = 16,
    nodes: Annotated[int, typer.Option(help="Nodes of one training.")] = 2,
    gpus: Annotated[int | None, typer.Option(help="GPUs a node; else what the teacher's card needs.")] = None,
) -> None:
    """Print a launch file for many machines with the recipe's name and these sizes in it."""
    from pipeline.launch import launch_file

    at_least_one(shards=shards, nodes=nodes, gpus=gpus)
    print(launch_file(kind, context(flags), flags, (shards, nodes), gpus, stage), end="")


@command("cards")
def cards() -> None:
    """List the models that cards describe: parameters, memory of the weights, licence."""
    from pipeline.recipe.card_list import card_list

    print(card_list(), end="")


@command("serve-teacher")
def serve_teacher(
    engine: SamplingFlags,
    teacher: Annotated[
        str, typer.Option(help="A card of teachers/cards/, or the path of yours.")
    ] = "embedded-moe",
    port: Annotated[int, typer.Option(help="The port on loopback.")] = 8000,
    replicas: Annotated[int, typer.Option(help="Servers, on this port and the next ones.")] = 1,
) -> None:
    """Serve a teacher on loopback with vllm serve and the settings of its card, until Ctrl-C."""
    from teachers.serve import run

    at_least_one(replicas=replicas)
    run(teacher, port, in_this_process(engine), replicas)


@command("serve-student")
def serve_student(
    flags: RunFlags,
    engine: SamplingFlags,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Serve the finished student with `vllm serve`."""
    from students.serve import run

    run(context(flags), host, port, in_this_process(engine))


@command("chat")
def chat(
    flags: RunFlags, device: Annotated[Device, typer.Option(help="Where the student runs.")] = "auto"
) -> None:
    """Talk to the finished student in this terminal; its thinking is dimmed."""
    held = context(flags)
    log.info("chat: loading the student of %s and what it runs on", held.recipe.name)
    from students.chat import run

    run(held, device)


@command("card")
def card(
    model: Annotated[str, typer.Option(help="A directory that save_pretrained wrote, or a hub id.")],
    kind: Annotated[Literal["teacher", "student"], typer.Option(help="Which card to write.")] = "student",
    revision: Annotated[str | None, typer.Option(help="Of a model on the hub.")] = None,
) -> None:
    """Print a card of a model, with all that its files say: save it, and name its path in a recipe."""
    from pipeline.recipe.cards import card_text

    print(card_text(kind, model, revision), end="")


@command("schema")
def schema(
    section: Annotated[str | None, typer.Argument(help="recipe, a section of it, a card or prompt.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The JSON Schema, which editors read.")] = False,
) -> None:
    """Print every key of recipes, cards and prompt files, with its type, default and meaning."""
    from pipeline.recipe.described import json_schema, listing

    print(json_schema(section) if as_json else listing(section), end="")


@command("publish")
def publish(
    flags: RunFlags,
    model_repo: Annotated[str | None, typer.Option(help="owner/name of the model on the hub.")] = None,
    data_repo: Annotated[str | None, typer.Option(help="owner/name of the data set on the hub.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the cards, contact nobody.")] = False,
) -> None:
    """Put a finished run on the hub as a model and a data set."""
    from pipeline.report.publish import run

    run(context(flags), model_repo, data_repo, dry_run)


def main() -> None:
    """Run the command line; a PipelineError becomes one `error: ...` on stderr and an exit code."""
    telemetry.quiet(os.environ)
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that one launcher started
    logging.basicConfig(
        level=logging.INFO if is_first else logging.ERROR, format="%(message)s", stream=sys.stderr
    )
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        advice = no_descriptor(error) or write_fault(error, Path(error.filename or "."))
        if not advice:
            raise
        print(f"error: {advice}", file=sys.stderr)
        sys.exit(1)
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
        sys.stdout.flush()
        # an interrupt inside exec(), as while a library defines its dataclasses, would make Python's own exit
        # end by the signal; all that is to be closed is closed by now
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
