"""The lines of a plan: each figure with its assumption beside it, stage by stage, and what they add up to.

Pure: everything that is known comes in as an `Outlook` and `Assumed` (see teachers.plan).
"""

from dataclasses import dataclass
from typing import Any

from pipeline.cards import ModelSize
from pipeline.recipe import Recipe
from teachers.assumed import Assumed
from teachers.estimate import (
    BYTES_TRAINED,
    FLOPS_TRAINED,
    STEP_MS,
    Layout,
    cache_bytes_per_token,
    layout_for,
    training_hours,
    weights_gib,
)

HOUR = 3600.0
PILOT_RATE = "the pilot's; a full run is faster where the pilot did not fill the engine"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of the plan and where it comes from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Part:
    """The lines of one stage and the hours that all devices spend on it."""

    title: str
    lines: list[Line]
    hours: float = 0.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What generate will come to: assumed, or forecast by a pilot (`measured` says of how many problems).

    `examples`: traces that select can take, at most. `redistributed`: traces beyond those of `tries` that
    `redistribute: true` adds, at most.
    """

    num_problems: float
    pass_rate: float
    tries: float
    tokens_per_trace: float
    solved: float
    examples: float
    output_tokens: float
    redistributed: float
    measured: dict[str, Any]

    @property
    def traces(self) -> float:
        return self.num_problems * self.tries


@dataclass(frozen=True, slots=True)
class Asking:
    """What eval asks of one model: questions x samples over all tasks, the model's size and its source."""

    model: str
    samples: int
    size: ModelSize
    source: str


def generate_part(recipe: Recipe, outlook: Outlook, assumed: Assumed) -> Part:
    samples, measured = recipe.generate.samples, outlook.measured
    pilot = f"pilot of {measured['pilot_problems']} problems" if measured else ""
    budget = pilot or f"keep {samples.keep}, max {samples.max}, at that pass rate"
    share = f"{assumed.tokens_share:g} of max_tokens, assumed (tokens_share)"
    prompts = (outlook.traces + outlook.redistributed) * assumed.prompt_tokens
    lines = [
        Line("pass rate of a sample", f"{outlook.pass_rate:.1%}", pilot or "assumed (pass_rate)"),
        Line("tries a problem", f"{outlook.tries:.2f}", budget),
        Line("problems solved", f"{outlook.solved:,.0f}", budget),
        Line("traces", f"{outlook.traces:,.0f}", "problems x tries"),
        Line("output tokens a trace", f"{outlook.tokens_per_trace:,.0f}", pilot or share),
        Line("output tokens", f"{outlook.output_tokens:,.0f}", pilot or "traces x tokens a trace"),
    ]
    if measured:
        scale = outlook.num_problems / measured["problems"]  # not 1 where --assume problems says so
        low, high = (scale * measured[f"output_tokens_{end}"] for end in ("low", "high"))
        lines.append(Line("95% interval of them", f"{low:,.0f} to {high:,.0f}", pilot))
    if samples.redistribute:
        more = f"up to {samples.cap} samples for unsolved problems from the saved budget; in the hours below"
        lines.append(Line("redistributed traces", f"{outlook.redistributed:,.0f} at most", more))
    note = f"{assumed.prompt_tokens} a request, assumed (prompt_tokens)"
    return Part("generate", [*lines, Line("prompt tokens", f"{prompts:,.0f}", note)])


def teacher_part(size: ModelSize, where: str, outlook: Outlook, assumed: Assumed) -> Part:
    """Memory, parallel layout, hours and money of generate."""
    devices, layout = assumed.all_devices, teacher_layout(size, outlook, assumed)
    measured = outlook.measured.get("tokens_per_second")
    rate = measured or layout.tokens_per_second
    tokens = outlook.output_tokens + outlook.redistributed * outlook.tokens_per_trace
    hours = tokens / rate / HOUR
    bandwidth = (
        f"{devices.bandwidth_gb_s:,.0f} GB/s a device (bandwidth), half of it reached, {STEP_MS:g} ms a step"
    )
    cache = f"{cache_bytes_per_token(size) / 1024:,.1f} KiB"
    note = f"{devices.count} devices of {devices.memory_gib:g} GiB (devices, memory), 0.9 of it used"
    lines = [
        Line("weights", f"{weights_gib(size):,.2f} GiB", where),
        Line("cache a token", cache, "layers x keys and values, 16 bits each"),
        Line("layout", f"{layout.replicas} x TP {layout.tensor_parallel}", note),
        Line("sequences a replica", f"{layout.sequences:,}", "as the cache allows, at most concurrency"),
        Line("output tokens a second", f"{rate:,.0f}", PILOT_RATE if measured else bandwidth),
        Line("hours", f"{hours:,.2f}", "output tokens / rate, without the engine's start"),
        money_line(hours, assumed),
    ]
    return Part("teacher", lines, hours)


def teacher_layout(size: ModelSize, outlook: Outlook, assumed: Assumed) -> Layout:
    length = outlook.tokens_per_trace + assumed.prompt_tokens
    return layout_for(size, assumed.all_devices, length, assumed.concurrency)


def pace_of(size: ModelSize, outlook: Outlook, assumed: Assumed) -> float:
    """How many times the modelled rate of the teacher a pilot reached; 1 where there was none."""
    measured = outlook.measured.get("tokens_per_second")
    return measured / teacher_layout(size, outlook, assumed).tokens_per_second if measured else 1.0


def train_part(recipe: Recipe, outlook: Outlook, size: ModelSize, where: str, assumed: Assumed) -> Part:
    """Examples and tokens that the student sees, at most: filter's rules are not foreseen."""
    train, devices, select = recipe.train, assumed.all_devices, recipe.filter.select
    examples = outlook.examples
    trained = examples * outlook.tokens_per_trace
    note = f"examples x tokens a trace x {train.epochs:g} epochs"
    if select.max_tokens is not None and select.max_tokens < trained:
        examples *= select.max_tokens / trained
        trained, note = select.max_tokens, f"select.max_tokens x {train.epochs:g} epochs"
    read = (trained + examples * assumed.prompt_tokens) * train.epochs
    hours = training_hours(size, read, train.method, devices)
    memory = size.parameters * BYTES_TRAINED[train.method] / 2**30
    held = f"{BYTES_TRAINED[train.method]:g} bytes for each of {size.parameters:,.0f} parameters"
    speed = f"{FLOPS_TRAINED[train.method]} FLOPs a parameter and token; {devices.tflops:g} TFLOPS a device"
    lines = [
        Line(
            "examples",
            f"{examples:,.0f}",
            f"{select.per_problem} a problem at most, none dropped but by the rule correct",
        ),
        Line("tokens seen", f"{trained * train.epochs:,.0f}", note),
        Line("memory of the student", f"{memory:,.2f} GiB", f"{held} ({where}), before activations"),
        Line("hours", f"{hours:,.2f}", f"{speed}, {devices.utilisation:g} of it reached (tflops, mfu)"),
        money_line(hours, assumed),
    ]
    return Part("train", lines, hours)


def eval_part(
    askings: list[Asking], uncounted: list[Line], tokens: float, pace: float, assumed: Assumed
) -> Part:
    """Samples and hours of every model; `tokens` of a sample, `uncounted` what is not in the figures.

    `pace`: how many times its modelled rate a model reaches, see pace_of.
    """
    lines, hours = [], 0.0
    for asking in askings:
        length = tokens + assumed.prompt_tokens
        layout = layout_for(asking.size, assumed.all_devices, length, assumed.concurrency)
        rate = layout.tokens_per_second * pace
        taken = asking.samples * tokens / rate / HOUR
        hours += taken
        note = f"{taken:,.2f} hours at {rate:,.0f} tokens a second; {asking.source}"
        lines.append(Line(f"samples of {asking.model}", f"{asking.samples:,}", note))
    if pace != 1:
        note = "the pilot's tokens a second over those of the layout; taken for every model"
        lines.append(Line("pace", f"{pace:,.4g}", note))
    total = sum(asking.samples for asking in askings) * tokens
    return Part(
        "eval",
        [
            *lines,
            *uncounted,
            Line("output tokens", f"{total:,.0f}", "all models as long as the teacher, assumed"),
            Line("hours", f"{hours:,.2f}", "one model after another, without the engines' starts"),
            money_line(hours, assumed),
        ],
        hours,
    )


def total_part(parts: list[Part], assumed: Assumed) -> Part:
    """What all of it comes to."""
    hours = sum(part.hours for part in parts)
    line = Line("hours", f"{hours:,.2f}", "teacher, train and eval; the other stages need no device")
    return Part("total", [line, money_line(hours, assumed)], hours)


def money_line(hours: float, assumed: Assumed) -> Line:
    note = f"{assumed.devices} devices x {assumed.price:g} a device-hour (price)"
    return Line("money", f"{hours * assumed.devices * assumed.price:,.2f}", note)
