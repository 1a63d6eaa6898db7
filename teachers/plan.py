"""What a run will cost, before anything is bought: per stage, with each assumption beside its figure.

Reads the recipe, its cards and, where they are finished, problems' manifest and a pilot's forecast. Writes
nothing, except with --pilot: that samples N problems for real and keeps their traces.

    python -m pipeline plan --recipe recipes/demo.yaml --pilot 50
"""

import sys
from dataclasses import dataclass, fields
from typing import Any

from pipeline.cards import teacher_card
from pipeline.errors import RecipeError
from pipeline.recipe import FileSource, ProceduralSource, Recipe
from pipeline.stage import Context, read_manifest
from pipeline.strict_yaml import nearest
from teachers.estimate import (
    Devices,
    cache_bytes_per_token,
    expected_tries,
    layout_for,
    size_of,
    solved_share,
    weights_gib,
)
from teachers.forecast import read_forecast
from teachers.generate import GenerateFlags

HOUR = 3600.0
PILOT_RATE = "the pilot's; a full run is faster where the pilot did not fill the engine"


@dataclass(frozen=True, slots=True)
class Assumed:
    """What is assumed where nothing has been measured (`--assume name=value`); a pilot knows two."""

    pass_rate: float = 0.6
    tokens_share: float = 0.4  # of max_tokens
    prompt_tokens: int = 200
    devices: int = 8
    memory: float = 80.0  # GiB of a device
    bandwidth: float = 3350.0  # GB/s of a device's memory
    price: float = 2.5  # money for a device-hour
    concurrency: int = 256  # sequences at a time of a replica
    problems: int = 0  # 0: as the problems stage or the recipe says


BOUNDS = {
    "pass_rate": (0, 1),
    "tokens_share": (0, 1),
    "prompt_tokens": (0, 1e7),
    "devices": (1, 1e6),
    "memory": (1e-3, 1e5),
    "bandwidth": (1e-3, 1e6),
    "price": (0, 1e6),
    "concurrency": (8, 1e6),  # fewer sequences at a time than 8 are no layout, see estimate.layout_for
    "problems": (0, 1e12),
}


def assumed_from(pairs: list[str]) -> Assumed:
    """The assumptions of `--assume name=value`. RecipeError on an unknown name or what is no number."""
    known = {item.name: item.type for item in fields(Assumed)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in known:
            raise RecipeError(f"--assume {pair}: unknown name; {nearest(name, list(known))}")
        try:
            values[name] = int(text) if known[name] is int else float(text)
        except ValueError:
            raise RecipeError(f"--assume {pair}: expected a number after '=', found '{text}'") from None
        low, high = BOUNDS[name]
        if not low <= values[name] <= high:  # nor is NaN
            raise RecipeError(f"--assume {pair}: out of range, expected {low:g} to {high:g}")
    return Assumed(**values)


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of the plan and where it comes from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """What generate will come to: assumed, or forecast by a pilot (`measured` says of how many problems)."""

    num_problems: float
    pass_rate: float
    tries: float
    tokens_per_trace: float
    solved: float
    output_tokens: float
    measured: dict[str, Any]

    @property
    def traces(self) -> float:
        return self.num_problems * self.tries


def run(context: Context, assumed: Assumed, pilot: int | None, flags: GenerateFlags) -> None:
    """Print the plan on stdout; with `pilot` after sampling that many problems."""
    if pilot is not None:
        from teachers.pilot import run_pilot

        run_pilot(context, pilot, flags)
    for title, lines in plan_lines(context, assumed):
        print(title)
        for line in lines:
            print(f"  {line.name:<22} {line.value:>26}   {line.source}")
    sys.stdout.flush()


def plan_lines(context: Context, assumed: Assumed) -> list[tuple[str, list[Line]]]:
    """A title and its lines for each stage that costs something."""
    recipe = context.recipe
    num_problems, source = count_problems(context, assumed.problems)
    outlook = outlook_of(recipe, num_problems, assumed, read_forecast(context.directory("generate")))
    return [
        ("problems", [Line("problems", f"{num_problems:,.0f}", source)]),
        ("generate", generate_lines(recipe, outlook, assumed)),
        ("teacher", teacher_lines(recipe, outlook, assumed)),
        ("train", train_lines(recipe, outlook)),
        ("eval", eval_lines(recipe, outlook)),
    ]


def count_problems(context: Context, stated: int) -> tuple[float, str]:
    """How many problems there are, or will be at most."""
    if stated:
        return stated, "stated (--assume problems)"
    manifest = read_manifest(context.directory("problems"))
    if manifest is not None:
        return manifest["outputs"]["problems.jsonl"]["rows"], "the finished problems stage"
    sizes = [
        source.size if isinstance(source, ProceduralSource) else source.limit
        for source in context.recipe.problems.sources
    ]
    unknown = sum(size is None for size in sizes)
    note = "sizes in the recipe, before any is dropped"
    note += f"; {unknown} sources have no limit, say how many with --assume problems=" if unknown else ""
    return sum(size for size in sizes if size is not None), note


def outlook_of(recipe: Recipe, num_problems: float, assumed: Assumed, measured: dict[str, Any]) -> Outlook:
    """The pilot's figures where there was one, else what the assumptions give."""
    samples = recipe.generate.samples
    rate = measured.get("pass_rate", assumed.pass_rate)
    tries = measured.get("tries_per_problem", expected_tries(rate, samples))
    tokens = measured.get("tokens_per_trace", assumed.tokens_share * recipe.generate.sampling.max_tokens)
    return Outlook(
        num_problems=num_problems,
        pass_rate=rate,
        tries=tries,
        tokens_per_trace=tokens,
        solved=num_problems * measured.get("solved_share", solved_share(rate, samples)),
        output_tokens=num_problems * measured["output_tokens"] / measured["problems"]
        if measured
        else num_problems * tries * tokens,
        measured=measured,
    )


def generate_lines(recipe: Recipe, outlook: Outlook, assumed: Assumed) -> list[Line]:
    samples, measured = recipe.generate.samples, outlook.measured
    pilot = f"pilot of {measured['pilot_problems']} problems" if measured else ""
    budget = pilot or f"keep {samples.keep}, max {samples.max}, at that pass rate"
    share = f"{assumed.tokens_share:g} of max_tokens, assumed (tokens_share)"
    prompts = outlook.traces * assumed.prompt_tokens
    lines = [
        Line("pass rate of a sample", f"{outlook.pass_rate:.1%}", pilot or "assumed (pass_rate)"),
        Line("tries a problem", f"{outlook.tries:.2f}", budget),
        Line("problems solved", f"{outlook.solved:,.0f}", budget),
        Line("traces", f"{outlook.traces:,.0f}", "problems x tries"),
        Line("output tokens a trace", f"{outlook.tokens_per_trace:,.0f}", pilot or share),
        Line("output tokens", f"{outlook.output_tokens:,.0f}", pilot or "traces x tokens a trace"),
        Line(
            "prompt tokens",
            f"{prompts:,.0f}",
            f"{assumed.prompt_tokens} a request, assumed (prompt_tokens)",
        ),
    ]
    if measured:
        scale = outlook.num_problems / measured["problems"]  # not 1 where --assume problems says so
        low, high = (scale * measured[f"output_tokens_{end}"] for end in ("low", "high"))
        interval = f"{low:,.0f} to {high:,.0f}"
        lines.append(Line("95% interval of them", interval, pilot))
    return lines


def teacher_lines(recipe: Recipe, outlook: Outlook, assumed: Assumed) -> list[Line]:
    """Memory, parallel layout, hours and money."""
    size, where = size_of(teacher_card(recipe.generate.teacher))
    devices = Devices(assumed.devices, assumed.memory, assumed.bandwidth, assumed.price)
    layout = layout_for(size, devices, outlook.tokens_per_trace + assumed.prompt_tokens, assumed.concurrency)
    measured = outlook.measured.get("tokens_per_second")
    rate = measured or layout.tokens_per_second
    hours = outlook.output_tokens / rate / HOUR
    bandwidth = f"{devices.bandwidth_gb_s:,.0f} GB/s a device (bandwidth), half of it reached"
    cache = f"{cache_bytes_per_token(size) / 1024:,.1f} KiB"
    return [
        Line("weights", f"{weights_gib(size):,.2f} GiB", where),
        Line("cache a token", cache, "layers x keys and values, 16 bits each"),
        Line(
            "layout",
            f"{layout.replicas} x TP {layout.tensor_parallel}",
            f"{devices.count} devices of {devices.memory_gib:g} GiB (devices, memory), 0.9 of it used",
        ),
        Line("sequences a replica", f"{layout.sequences:,}", "as the cache allows, at most concurrency"),
        Line("output tokens a second", f"{rate:,.0f}", PILOT_RATE if measured else bandwidth),
        Line("hours", f"{hours:,.2f}", "output tokens / rate, without the engine's start"),
        Line(
            "money",
            f"{hours * devices.count * devices.price:,.2f}",
            f"{devices.count} devices x {devices.price:g} a device-hour (price)",
        ),
    ]


def train_lines(recipe: Recipe, outlook: Outlook) -> list[Line]:
    """Examples and tokens that the student sees, at most: filter's rules are not foreseen."""
    per_problem = min(recipe.filter.select.per_problem, recipe.generate.samples.keep)
    examples = outlook.solved * per_problem
    tokens = examples * outlook.tokens_per_trace * recipe.train.epochs
    return [
        Line("examples", f"{examples:,.0f}", f"{per_problem} a solved problem, none dropped by another rule"),
        Line("tokens seen", f"{tokens:,.0f}", f"examples x tokens a trace x {recipe.train.epochs:g} epochs"),
    ]


def eval_lines(recipe: Recipe, outlook: Outlook) -> list[Line]:
    sizes = [task.size for task in recipe.eval.tasks if not isinstance(task, FileSource)]
    known = sum(size for size in sizes if size is not None)
    unknown = len(recipe.eval.tasks) - sum(size is not None for size in sizes)
    samples = known * (recipe.eval.samples or 1) * len(recipe.eval.compare)
    note = f"{known:,} questions x {recipe.eval.samples or 1} samples x {len(recipe.eval.compare)} models"
    note += f"; {unknown} tasks of unstated size are not counted" if unknown else ""
    tokens = f"{samples * outlook.tokens_per_trace:,.0f}"
    return [
        Line("samples", f"{samples:,}", note),
        Line("output tokens", tokens, "all models as long as the teacher, assumed"),
    ]
