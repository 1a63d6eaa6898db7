"""What a run will cost, before anything is bought: per stage, with each assumption beside its figure.

Reads the recipe, its cards, the number of rows of its local files and, where they are there, problems'
manifest and a pilot's forecast. Writes nothing; --pilot 50 samples that many problems first (teachers.pilot).

    python -m pipeline plan --recipe recipes/demo.yaml --assume devices=16
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.context import Context
from pipeline.errors import RecipeError
from pipeline.plan.estimate import (
    BYTES_TRAINED,
    FLOPS_TRAINED,
    STEP_MS,
    Assumed,
    Layout,
    cache_bytes_per_token,
    expected_tries,
    kept_per_problem,
    layout_for,
    size_of,
    solved_share,
    training_hours,
    weights_gib,
)
from pipeline.plan.forecast import read_forecast
from pipeline.recipe.cards import ModelSize, TaskCard
from pipeline.recipe.rule_entry import rule_name
from pipeline.recipe.schema import CardTask, HubSource, ProceduralSource, Recipe, Task, source_name, task_name
from pipeline.recipe.strict_yaml import nearest
from pipeline.rows import count_rows

HOUR = 3600.0


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


def assumed_from(pairs: list[str]) -> Assumed:
    """The assumptions of --assume name=value. RecipeError on an unknown name and on a value out of range."""
    known = {item.name: item for item in fields(Assumed)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in known:
            raise RecipeError(f"--assume {pair}: unknown name; {nearest(name, list(known))}")
        try:
            values[name] = int(text) if known[name].type is int else float(text)
        except ValueError:
            raise RecipeError(f"--assume {pair}: expected a number after '=', found '{text}'") from None
        low, high = known[name].metadata["bounds"]
        if not low <= values[name] <= high:  # nor is NaN
            raise RecipeError(f"--assume {pair}: out of range, expected {low:g} to {high:g}")
    return Assumed(**values)


def run(context: Context, assumed: Assumed) -> None:
    """Print the plan on stdout."""
    for part in plan_parts(context, assumed):
        print(part.title)
        for line in part.lines:
            print(f"  {line.name:<22} {line.value:>26}   {line.source}")
    sys.stdout.flush()


def plan_parts(context: Context, assumed: Assumed) -> list[Part]:
    """A part for each stage that costs something, and their total."""
    recipe = context.recipe
    num_problems, source = count_problems(context, assumed.problems)
    outlook = outlook_of(recipe, num_problems, assumed, read_forecast(context.directory("generate")))
    teacher, where = size_of(context.teacher_card)
    layout = layout_for(teacher, outlook.tokens_per_trace + assumed.prompt_tokens, assumed)
    rate = outlook.measured.get("tokens_per_second") or layout.tokens_per_second
    parts = [
        Part("problems", [Line("problems", f"{num_problems:,.0f}", source)]),
        generate_part(recipe, outlook, assumed),
        teacher_part(teacher, where, layout, rate, outlook, assumed),
        train_part(recipe, outlook, *size_of(context.student_card), assumed),
        eval_part(context, outlook, rate / layout.tokens_per_second, assumed),
    ]
    hours = sum(part.hours for part in parts)
    note = "teacher, train and eval; the other stages need no device"
    return [*parts, priced("total", [], hours, note, assumed)]


def priced(title: str, lines: list[Line], hours: float, note: str, assumed: Assumed) -> Part:
    """A part that takes devices: its lines, then the hours and the money."""
    money = f"{hours * assumed.devices * assumed.price:,.2f}"
    price = f"{assumed.devices} devices x {assumed.price:g} a device-hour (price)"
    return Part(title, [*lines, Line("hours", f"{hours:,.2f}", note), Line("money", money, price)], hours)


def count_problems(context: Context, stated: int) -> tuple[float, str]:
    """How many problems there are, or will be at most. RecipeError where a source of the hub does not say."""
    if stated:
        return stated, "stated (--assume problems)"
    manifest = context.manifest("problems")
    if manifest is not None:
        return manifest.counts.kept, "the finished problems stage"
    total, unknown = 0, []
    for source in context.recipe.problems.sources:
        if isinstance(source, ProceduralSource):
            total += source.size
        elif isinstance(source, HubSource):
            total += source.limit or 0
            unknown += [source_name(source)] if source.limit is None else []
        else:
            rows = count_rows(Path(source.path))
            total += min(rows, source.limit or rows)
    if unknown:
        raise RecipeError(
            f"problems.sources: {', '.join(unknown)}: a source of the hub without a `limit:` does not say "
            f"how many problems it holds. Run: make problems RECIPE={context.start.recipe} (it needs no "
            "device), or state how many there are in all with --assume problems=N"
        )
    return total, "sizes in the recipe and rows of its files, before any is dropped"


def outlook_of(recipe: Recipe, num_problems: float, assumed: Assumed, measured: dict[str, Any]) -> Outlook:
    """The pilot's figures where there was one, else what the assumptions give."""
    samples = recipe.generate.samples
    rate = measured.get("pass_rate", assumed.pass_rate)
    tries = measured.get("tries_per_problem", expected_tries(rate, samples))
    tokens = measured.get("tokens_per_trace", assumed.tokens_share * recipe.generate.sampling.max_tokens)
    solved = measured.get("solved_share", solved_share(rate, samples))
    per_problem = recipe.filter.select.per_problem
    if "correct" not in map(rule_name, recipe.filter.rules):
        examples = min(tries, per_problem)
    elif measured:
        examples = min(rate * tries, per_problem)
    else:
        examples = kept_per_problem(rate, samples, per_problem)
    more = min(samples.max - tries, (1 - solved) * ((samples.cap or samples.max) - samples.max))
    return Outlook(
        num_problems=num_problems,
        pass_rate=rate,
        tries=tries,
        tokens_per_trace=tokens,
        solved=num_problems * solved,
        examples=num_problems * examples,
        output_tokens=num_problems * measured["output_tokens"] / measured["problems"]
        if measured
        else num_problems * tries * tokens,
        redistributed=num_problems * more,
        measured=measured,
    )


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


def teacher_part(
    size: ModelSize, where: str, layout: Layout, rate: float, outlook: Outlook, assumed: Assumed
) -> Part:
    """Memory, parallel layout, hours and money of generate at `rate` tokens a second."""
    tokens = outlook.output_tokens + outlook.redistributed * outlook.tokens_per_trace
    speed = f"{assumed.bandwidth:,.0f} GB/s a device (bandwidth), half of it reached, {STEP_MS:g} ms a step"
    if outlook.measured.get("tokens_per_second"):
        speed = "the pilot's; a full run is faster where the pilot did not fill the engine"
    cache = f"{cache_bytes_per_token(size) / 1024:,.1f} KiB"
    note = f"{assumed.devices} devices of {assumed.memory:g} GiB (devices, memory), 0.9 of it used"
    lines = [
        Line("weights", f"{weights_gib(size):,.2f} GiB", where),
        Line("cache a token", cache, "layers x keys and values, 16 bits each"),
        Line("layout", f"{layout.replicas} x TP {layout.tensor_parallel}", note),
        Line("sequences a replica", f"{layout.sequences:,}", "as the cache allows, at most concurrency"),
        Line("output tokens a second", f"{rate:,.0f}", speed),
    ]
    note = "output tokens / rate, without the engine's start"
    return priced("teacher", lines, tokens / rate / HOUR, note, assumed)


def train_part(recipe: Recipe, outlook: Outlook, size: ModelSize, where: str, assumed: Assumed) -> Part:
    """Examples and tokens that the student sees, at most: filter's rules are not foreseen."""
    train, select = recipe.train, recipe.filter.select
    examples = outlook.examples
    trained = examples * outlook.tokens_per_trace
    note = f"examples x tokens a trace x {train.epochs:g} epochs"
    if select.max_tokens is not None and select.max_tokens < trained:
        examples *= select.max_tokens / trained
        trained, note = select.max_tokens, f"select.max_tokens x {train.epochs:g} epochs"
    read = (trained + examples * assumed.prompt_tokens) * train.epochs
    hours = training_hours(size, read, train.method, assumed)
    memory = size.parameters * BYTES_TRAINED[train.method] / 2**30
    held = f"{BYTES_TRAINED[train.method]:g} bytes for each of {size.parameters:,.0f} parameters"
    speed = f"{FLOPS_TRAINED[train.method]} FLOPs a parameter and token; {assumed.tflops:g} TFLOPS a device"
    undropped = "a problem at most, none dropped but by the rule correct"
    lines = [
        Line("examples", f"{examples:,.0f}", f"{select.per_problem} {undropped}"),
        Line("tokens seen", f"{trained * train.epochs:,.0f}", note),
        Line("memory of the student", f"{memory:,.2f} GiB", f"{held} ({where}), before activations"),
    ]
    note = f"{speed}, {assumed.mfu:g} of it reached (tflops, mfu)"
    return priced("train", lines, hours, note, assumed)


def eval_part(context: Context, outlook: Outlook, pace: float, assumed: Assumed) -> Part:
    """Samples and hours of every model that eval compares, and what is not counted.

    `pace`: how many times the modelled rate of the teacher a pilot reached; 1 where there was none.
    """
    evaluation = context.recipe.eval
    samples, uncounted = 0, []
    for task in evaluation.tasks:
        card = context.task_card(task)
        questions = count_questions(task, card)
        uncounted += [task_name(task)] if questions is None else []
        samples += (questions or 0) * (evaluation.samples or (card.k if card else 1))
    tokens = min(outlook.tokens_per_trace, context.recipe.eval_sampling.max_tokens)
    lines, hours = [], 0.0
    for name in evaluation.models:
        size, source = size_of(context.card(name)[1])
        rate = layout_for(size, tokens + assumed.prompt_tokens, assumed).tokens_per_second * pace
        taken = samples * tokens / rate / HOUR
        hours += taken
        note = f"{taken:,.2f} hours at {rate:,.0f} tokens a second; {source}"
        lines.append(Line(f"samples of {name}", f"{samples:,}", note))
    if pace != 1:
        note = "the pilot's tokens a second over those of the layout; taken for every model"
        lines.append(Line("pace", f"{pace:,.4g}", note))
    if uncounted:
        note = "of unstated size, not counted; give their cards a `size:`"
        lines.append(Line("other tasks", ", ".join(uncounted), note))
    if evaluation.forced_budgets:
        note = "answers that are sampled anew after so many tokens of thinking, not counted"
        lines.append(Line("forced budgets", ", ".join(map(str, evaluation.forced_budgets)), note))
    note = "all models as long as the teacher, assumed"
    lines.append(Line("output tokens", f"{samples * len(evaluation.models) * tokens:,.0f}", note))
    return priced("eval", lines, hours, "one model after another, without the engines' starts", assumed)


def count_questions(task: Task, card: TaskCard | None) -> int | None:
    """Questions of an eval task: what the recipe says, else the rows of its file, else its card's size."""
    if isinstance(task, ProceduralSource):
        return task.size
    size = task.size if isinstance(task, CardTask) else task.limit
    if size is not None:
        return size
    if task.path is not None:
        return count_rows(Path(task.path))
    return card.size if card else None
