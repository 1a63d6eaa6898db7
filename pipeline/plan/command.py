"""What a run will cost, before anything is bought: per stage, with each assumption beside its figure.

Reads the recipe, its cards, the number of rows of its local files and, where they are there, problems'
manifest and a pilot's forecast. Writes nothing; --pilot 50 samples that many problems first (teachers.pilot).

    python -m pipeline plan --recipe recipes/demo.yaml --assume devices=16
"""

import math
import sys
from dataclasses import dataclass, fields, replace
from typing import Any

from pipeline.context import Context
from pipeline.errors import RecipeError
from pipeline.flags import TrainFlags
from pipeline.plan.estimate import (
    FLOPS_SCORED,
    FLOPS_TRAINED,
    MIN_SEQUENCES,
    ROW_US,
    STEP_MS,
    Assumed,
    Layout,
    cache_bytes_per_token,
    cache_copies,
    digits,
    expected_tries,
    kept_per_problem,
    kv_bytes,
    layout_for,
    replicate,
    row_hours,
    scoring_hours,
    size_of,
    solved_share,
    training_hours,
    weights_gib,
)
from pipeline.plan.forecast import read_forecast
from pipeline.plan.memory import least_change, load_of, need, polish_need, sharers_of
from pipeline.recipe.cards import ModelSize, TaskCard
from pipeline.recipe.rule_entry import rule_name
from pipeline.recipe.schema import Polish, Recipe, Train
from pipeline.recipe.sources import (
    CardTask,
    HubSource,
    ProceduralSource,
    RowSource,
    Task,
    source_name,
    source_names,
    task_name,
)
from pipeline.recipe.strict_yaml import nearest
from pipeline.rows import count_rows
from pipeline.run.provenance import hardware
from pipeline.verify.canaries import num_canaries
from pipeline.verify.table import DEFERRED

HOUR = 3600.0
# of vLLM beside its weights: logits of what it scores (SCORING_BYTES of students/scoring.py), a cache, CUDA
VLLM_GIB = 6.0
ELSEWHERE = "serve it on other devices (make serve-teacher there, polish --engine server --url here)"
SAMPLER_TOKENS = 2**17  # of a batch on a GPU: BATCH_TOKENS of students/sampler.py, which needs torch


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of the plan and where it comes from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Part:
    """The lines of one stage, and the hours that its devices spend on it."""

    title: str
    lines: list[Line]
    hours: float = 0.0
    money: float = 0.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What generate will come to: assumed, or forecast by a pilot (`measured` says of how many problems).

    `examples`: traces that select can take, at most. `redistributed`: traces beyond those of `tries` that
    `redistribute: true` adds, at most. `later`: traces that a judge or a majority decides, by which of them.
    """

    num_problems: float
    pass_rate: float
    tries: float
    tokens_per_trace: float
    solved: float
    examples: float
    output_tokens: float
    redistributed: float
    later: dict[str, float]
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
    """Print the plan on stdout: what this machine has, the bill, and all that --assume can set."""
    for part in [machine_part(), *plan_parts(context, assumed), assumed_part(assumed)]:
        print(part.title)
        for line in part.lines:
            print(f"  {line.name:<22} {line.value:>26}   {line.source}")
    sys.stdout.flush()


def machine_part() -> Part:
    """What was found here. The bill is for the devices that are assumed, wherever they are."""
    found = hardware()
    gpus = [gpu.rpartition(",") for gpu in found["gpus"]]  # name and memory, as nvidia-smi prints them
    lines = [
        Line("cores", str(found["cores"]), str(found["processor"])),
        Line("memory", f"{found['memory_gib']:,.1f} GiB", "of this machine; a container may be given less"),
        *(Line("GPU", memory.strip(), name) for name, _, memory in gpus),
    ]
    return Part("this machine", lines if gpus else [*lines, Line("GPUs", "none", "nvidia-smi names none")])


def assumed_part(assumed: Assumed) -> Part:
    lines = []
    for item in fields(Assumed):
        low, high = item.metadata["bounds"]
        note = f"{item.metadata['said']} ({low:g} to {high:g})"
        lines.append(Line(item.name, f"{getattr(assumed, item.name):,g}", note))
    return Part("assumed, where nothing better is known: --assume name=value", lines)


def plan_parts(context: Context, assumed: Assumed) -> list[Part]:
    """A part for each stage that costs something, and their total."""
    recipe = context.recipe
    num_problems, source = count_problems(context, assumed.problems)
    later = decided_later(context)
    forecast = read_forecast(context.directory("generate"))
    num_asked = num_problems * recipe.generate.share
    asked = [Line("asked", f"{num_asked:,.0f}", f"{recipe.generate.share:g} of them (generate.share)")]
    asked = asked if recipe.generate.share < 1 else []
    outlook = outlook_of(recipe, num_asked, assumed, forecast, later)
    teacher, where = size_of(context.teacher_card)
    value_bytes = kv_bytes(context.teacher_card)
    tokens = outlook.tokens_per_trace + assumed.prompt_tokens
    layout = layout_for(teacher, tokens, assumed, value_bytes, "the teacher")
    rate = outlook.measured.get("tokens_per_second") or layout.tokens_per_second
    parts = [
        Part("problems", [Line("problems", f"{num_problems:,.0f}", source), *asked]),
        generate_part(recipe, outlook, assumed),
        teacher_part(teacher, where, layout, rate, outlook, assumed, value_bytes),
        train_part(context, outlook, *size_of(context.student_card), assumed),
        eval_part(context, outlook, rate / layout.tokens_per_second, assumed),
    ]
    if recipe.polish is not None:
        parts.insert(4, polish_part(context, outlook, assumed))
    if recipe.judge is not None:
        parts.insert(3, judge_part(context, outlook, assumed))
    parts.append(
        rows_part({"problems": num_problems, "filter": outlook.traces + outlook.redistributed}, assumed)
    )
    hours = sum(part.hours for part in parts)
    names = ["teacher", *(["judge"] if recipe.judge else []), "train", *(["polish"] if recipe.polish else [])]
    note = f"{', '.join(names)} and eval; the other stages need no device"
    total = priced("total", [], hours, note, assumed)
    if recipe.polish is not None:  # its hours are of one device
        money = sum(part.money for part in parts)
        lines = [total.lines[0], Line("money", digits(money), "of the parts above; polish takes one device")]
        total = Part("total", lines, hours, money)
    return [*parts, total]


def priced(title: str, lines: list[Line], hours: float, note: str, assumed: Assumed) -> Part:
    """A part that takes devices: its lines, then the hours and the money."""
    money = hours * assumed.devices * assumed.price
    devices = "1 device" if assumed.devices == 1 else f"{assumed.devices} devices"
    price = f"{devices} x {assumed.price:g} a device-hour (price)"
    lines = [*lines, Line("hours", digits(hours), note), Line("money", digits(money), price)]
    return Part(title, lines, hours, money)


def count_problems(context: Context, stated: int) -> tuple[float, str]:
    """How many problems there are, or will be at most. RecipeError where a source of the hub does not say."""
    if stated:
        return stated, "stated (--assume problems)"
    manifest = context.manifest("problems")
    if manifest is not None:
        return manifest.counts.kept, "the finished problems stage"
    unknown = [
        source_name(source)
        for source in context.recipe.problems.sources
        if isinstance(source, HubSource) and source.limit is None
    ]
    if unknown:
        raise RecipeError(
            f"problems.sources: {', '.join(unknown)}: a source of the hub without a `limit:` does not say "
            f"how many problems it holds. Run: make problems RECIPE={context.start.recipe} (it needs no "
            "device), or state how many there are in all with --assume problems=N"
        )
    total = sum(source_sizes(context).values())
    return total, "sizes in the recipe and rows of its files, before any is dropped"


def source_sizes(context: Context) -> dict[str, int]:
    """Problems by the name of their source, as the recipe and its files say; 0 where neither does."""
    sources = context.recipe.problems.sources
    sizes = {}
    for name, source in zip(source_names(sources), sources, strict=True):
        if isinstance(source, ProceduralSource):
            sizes[name] = source.size
        elif isinstance(source, HubSource):
            sizes[name] = source.limit or 0
        else:
            rows = count_rows(source.path)
            sizes[name] = min(rows, source.limit or rows)
    return sizes


def decided_later(context: Context) -> dict[str, tuple[float, float]]:
    """Of the problems that are decided after sampling, by verifier (judge, majority): their share of all, and
    the samples of each, which are all taken.

    By the finished problems stage; else a source's rows are taken to be all of that kind.
    """
    manifest, samples = context.manifest("problems"), context.recipe.generate.samples
    names = source_names(context.recipe.problems.sources)
    sizes = source_sizes(context) if manifest is None else manifest.notes.get("kept_by_source", {})
    found: dict[str, tuple[float, float]] = {}
    total = sum(sizes.values())
    for name, source in zip(names, context.recipe.problems.sources, strict=True):
        if not isinstance(source, RowSource) or not total:
            continue
        verifier, size = source.verifier, sizes.get(name, 0)
        tries = float(samples.keep if verifier == "none" else samples.max)
        if source.majority is not None:
            verifier, tries = "majority", float(source.majority.of)
            size = size if manifest is None else manifest.notes.get("without_gold", {}).get(name, 0)
        if verifier in DEFERRED and size:
            share, before = found.get(verifier, (0.0, 0.0))
            mean = (share * before + size / total * tries) / (share + size / total)
            found[verifier] = share + size / total, mean
    return found


def outlook_of(
    recipe: Recipe,
    num_problems: float,
    assumed: Assumed,
    measured: dict[str, Any],
    later: dict[str, tuple[float, float]],
) -> Outlook:
    """The pilot's figures where there was one, else what the assumptions give."""
    samples = recipe.generate.samples
    rate = measured.get("pass_rate", assumed.pass_rate)
    at_once = 1 - sum(share for share, _ in later.values())
    tries = at_once * expected_tries(rate, samples) + sum(share * each for share, each in later.values())
    tries = measured.get("tries_per_problem", tries)
    tokens = measured.get("tokens_per_trace", assumed.tokens_share * recipe.generate.sampling.max_tokens)
    solved = measured.get("solved_share", at_once * solved_share(rate, samples))
    per_problem = recipe.filter.select.per_problem
    if "correct" not in map(rule_name, recipe.filter.rules):
        examples = min(tries, per_problem)
    elif measured:
        examples = min(rate * tries, per_problem)
    else:
        examples = at_once * kept_per_problem(rate, samples, per_problem)
        # of those that are decided later all samples are there to select from
        examples += sum(share * min(rate * each, per_problem) for share, each in later.values())
    if recipe.filter.select.unsolved != "drop":  # a wrong trace of each of those
        examples += 1 - solved
    more = min(max(samples.max - tries, 0), (1 - solved) * ((samples.cap or samples.max) - samples.max))
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
        later={verifier: num_problems * share * each for verifier, (share, each) in later.items()},
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
        Line("tries a problem", digits(outlook.tries), budget),
        Line("problems solved", f"{outlook.solved:,.0f}", budget),
        Line("traces", f"{outlook.traces:,.0f}", "problems x tries"),
        *(
            Line(f"traces for the {verifier}", f"{traces:,.0f}", "of these, decided later: all samples taken")
            for verifier, traces in outlook.later.items()
        ),
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
    lines.append(Line("prompt tokens", f"{prompts:,.0f}", note))
    if (price := recipe.report.price) is not None:
        output = outlook.output_tokens + outlook.redistributed * outlook.tokens_per_trace
        money = f"{digits(price.of(prompts, output))} {price.currency}"
        lines.append(Line("price of the tokens", money, f"{price} of prompt and of output (report.price)"))
    return Part("generate", lines)


def teacher_part(
    size: ModelSize,
    where: str,
    layout: Layout,
    rate: float,
    outlook: Outlook,
    assumed: Assumed,
    value_bytes: int,
) -> Part:
    """Memory, parallel layout, hours and money of generate at `rate` tokens a second."""
    tokens = outlook.output_tokens + outlook.redistributed * outlook.tokens_per_trace
    speed = f"{assumed.bandwidth:,.0f} GB/s a device (bandwidth), half of it reached, {STEP_MS:g} ms a step"
    if outlook.measured.get("tokens_per_second"):
        speed = "the pilot's; a full run is faster where the pilot did not fill the engine"
    cache = f"{cache_bytes_per_token(size, value_bytes) / 1024:,.1f} KiB"
    note = f"{assumed.devices} devices of {assumed.memory:g} GiB (devices, memory), 0.9 of it used"
    lines = [
        Line("weights", f"{digits(weights_gib(size))} GiB", where),
        Line("cache a token", cache, cache_note(size, layout.tensor_parallel, value_bytes)),
        Line("layout", f"{layout.replicas} x TP {layout.tensor_parallel}", note),
        Line("sequences a replica", f"{layout.sequences:,}", "as the cache allows, at most concurrency"),
        Line("output tokens a second", f"{rate:,.0f}", speed),
    ]
    note = "output tokens / rate, without the engine's start"
    return priced("teacher", lines, tokens / rate / HOUR, note, assumed)


def cache_note(size: ModelSize, parallel: int, value_bytes: int) -> str:
    """What the cache of a token is made of, and how often a replica holds it."""
    note = f"layers x keys and values, {'1 byte' if value_bytes == 1 else f'{value_bytes} bytes'} each"
    copies = cache_copies(size, parallel)
    if copies == 1:
        return note
    heads = "1 head" if size.kv_heads == 1 else f"{size.kv_heads} heads"
    return f"{note}; held {copies:g} times, as {heads} for KV cannot be spread over {parallel} devices"


def judge_part(context: Context, outlook: Outlook, assumed: Assumed) -> Part:
    """Cases, tokens, hours and money of the judge on traces; what eval asks it is not counted."""
    section = context.recipe.judge
    assert section is not None
    own = outlook.later.get("judge", 0.0)
    others = outlook.traces - sum(outlook.later.values())
    doubtful = assumed.unverifiable_share * others if section.second_opinion else 0.0
    hidden = num_canaries(round(own + doubtful), section.canaries)
    cases, tokens = own + doubtful + hidden, min(assumed.judge_tokens, section.max_tokens)
    prompt = 3 * assumed.prompt_tokens  # its own, and a question with an answer
    card = context.judge_card
    size, where = size_of(card)
    layout = layout_for(size, tokens + prompt, assumed, kv_bytes(card), "the judge")
    share = f"{assumed.unverifiable_share:.0%} of the other traces, assumed (unverifiable_share)"
    hiding = f"{section.canaries:.0%} of its work, and five of each kind at least"
    reply = f"{tokens:,.0f} a case, assumed (judge_tokens); one that thinks needs more"
    lines = [
        Line("its own traces", f"{own:,.0f}", "all samples of problems whose verifier is judge"),
        Line("second opinions", f"{doubtful:,.0f}", share if section.second_opinion else "none asked for"),
        Line("canaries", f"{hidden:,}", hiding),
        Line("output tokens", f"{cases * tokens:,.0f}", reply),
        Line("prompt tokens", f"{cases * prompt:,.0f}", f"{prompt} a case, three times prompt_tokens"),
        Line("output tokens a second", f"{layout.tokens_per_second:,.0f}", where),
    ]
    if (said := context.judge_restriction) is not None:
        lines.append(Line("training on outputs", card.training_on_outputs, said))
    note = "at most: equal answers to a question are one case. Its work in eval is not counted"
    return priced("judge", lines, cases * tokens / layout.tokens_per_second / HOUR, note, assumed)


def train_part(context: Context, outlook: Outlook, size: ModelSize, where: str, assumed: Assumed) -> Part:
    """Examples and tokens that the student sees, at most: filter's rules are not foreseen."""
    train, select = context.recipe.train, context.recipe.filter.select
    examples = outlook.examples
    trained = examples * outlook.tokens_per_trace
    note = f"examples x tokens a trace x {train.epochs:g} epochs"
    if select.max_tokens is not None and select.max_tokens < trained:
        examples *= select.max_tokens / trained
        trained, note = select.max_tokens, f"select.max_tokens x {train.epochs:g} epochs"
    read = (trained + examples * assumed.prompt_tokens) * train.epochs
    hours = training_hours(size, read, train.method, assumed)
    speed = f"{FLOPS_TRAINED[train.method]} FLOPs a parameter and token; {assumed.tflops:g} TFLOPS a device"
    undropped = "a problem at most, none dropped but by the rule correct"
    lines = [
        Line("examples", f"{examples:,.0f}", f"{select.per_problem} {undropped}"),
        Line("tokens seen", f"{trained * train.epochs:,.0f}", note),
        *memory_lines(train, size, where, assumed),
    ]
    if train.max_length > (positions := context.student_card.max_positions):
        refused = f"train refuses it: the student has {positions:,} positions, as its card says"
        lines.append(Line("train.max_length", f"{train.max_length:,}", refused))
    note = f"{speed}, {assumed.mfu:g} of it reached (tflops, mfu)"
    return priced("train", lines, hours, note, assumed)


def polish_part(context: Context, outlook: Outlook, assumed: Assumed) -> Part:
    """What the student samples, the teacher scores and both take on one device, should every round be run."""
    assumed = replace(assumed, devices=1)  # the stage refuses more
    section = context.recipe.polish
    assert section is not None
    student, teacher = size_of(context.student_card)[0], size_of(context.teacher_card)[0]
    responses = section.rounds * section.problems_per_round * section.samples
    each = min(outlook.tokens_per_trace, section.max_tokens)
    # before the first round, after every so many, and after the last one
    asked = (-(-section.rounds // section.evaluate_every) + 1) * section.held_out
    read = responses * (each + assumed.prompt_tokens)
    longest, tokens = section.max_tokens + assumed.prompt_tokens, each + assumed.prompt_tokens
    rows = min(max(SAMPLER_TOKENS // longest, 1), section.problems_per_round * section.samples)
    # whether it fits
    few = replace(assumed, concurrency=max(rows, MIN_SEQUENCES))
    larger = "a device of more memory (--assume memory=N), for it has one"
    layout_for(student, tokens, few, name="polish's student", way_out=larger)
    rate = replicate(student, tokens, 1, replace(assumed, concurrency=rows)).tokens_per_second
    spent = {
        "sampling": (responses + asked) * each / rate / HOUR,
        "scoring": scoring_hours(teacher, read, assumed),
        "training": training_hours(student, read, section.method, assumed),
    }
    rounds = f"{section.rounds} rounds x {section.problems_per_round} problems x {section.samples}"
    forward = f"{FLOPS_SCORED} FLOPs an active parameter and token of prompt and response"
    notes = {
        "sampling": f"{rate:,.0f} tokens a second: {rows:,} rows a batch, which this sampler does not "
        f"fill up as they end, and {STEP_MS:g} ms a step, which transformers exceeds",
        "scoring": f"{forward}, {assumed.mfu:g} of {assumed.tflops:g} TFLOPS a device reached",
        "training": f"{FLOPS_TRAINED[section.method]} FLOPs a parameter and token",
    }
    lines = [
        Line("responses", f"{responses:,}", rounds),
        Line("sampled tokens", f"{responses * each:,.0f}", "responses x tokens a trace, at most max_tokens"),
        Line("tokens held out", f"{asked * each:,.0f}", f"{section.held_out} problems, at most, each time"),
        Line("scored tokens", f"{responses * each:,.0f}", "those sampled; prompts are read with them"),
        *polish_memory_lines(section, student, teacher, longest, rows * longest, assumed),
        *(Line(f"hours of {name}", f"{taken:,.3f}", notes[name]) for name, taken in spent.items()),
    ]
    return priced("polish", lines, sum(spent.values()), "should every round be run", assumed)


def polish_memory_lines(
    section: Polish, student: ModelSize, teacher: ModelSize, longest: int, sampled: int, assumed: Assumed
) -> list[Line]:
    """What polish takes of its one device, and where the teacher can be. A row has `longest` tokens, a batch
    of the sampler `sampled`."""
    cache = cache_bytes_per_token(student) * sampled
    found = polish_need(student, section, TrainFlags().tokens_per_device, longest, cache)
    if found is None:
        return [Line("memory of the student", "not known", "no widths of a dense model are stated")]
    left, beside = assumed.memory - found.device_gib, weights_gib(teacher)
    smaller = "lower polish.max_tokens" + (", take polish.method: lora" * (section.method == "full"))
    room = f"of a device of {assumed.memory:g} GiB (memory)"
    if left < 0:
        room = f"more than a device of {assumed.memory:g} GiB (memory) has: {smaller}"
    if section.divergence != "sampled":
        where = f"beside the student, as divergence: {section.divergence} asks"
        if beside > left:
            where = f"no room for them beside the student: take polish.divergence: sampled, and {ELSEWHERE}"
    elif beside + VLLM_GIB > left:
        where = f"no room for them beside the student: {ELSEWHERE}, or {smaller}"
    else:
        share = math.floor(100 * left / assumed.memory) / 100
        where = f"{ELSEWHERE}; or run vLLM beside the student: --gpu-memory-share {share:g}"
    parts = f"{found}; at an update, or with the sampler's cache where that takes more"
    return [
        Line("memory of the student", f"{found.device_gib:,.2f} GiB", room),
        Line("of it, in GiB", "", parts),
        Line("weights of the teacher", f"{digits(beside)} GiB", where),
    ]


def memory_lines(train: Train, size: ModelSize, where: str, assumed: Assumed) -> list[Line]:
    """What training takes of one device, by part, and the flags that fit it."""
    load = load_of(train, TrainFlags().tokens_per_device, checkpointing=False)
    flags, fitting = least_change(size, train, load, assumed.memory, sharers_of(size, train))
    found = need(size, fitting or load)
    if found is None:
        return [
            Line("memory of the student", "not known", f"{where} does not state the widths of a dense model")
        ]
    if not flags:
        note = "fits as it is"
    elif fitting is None:
        note = f"does not fit: {flags}"
    else:
        note = f"with {flags}"
    total, room = f"{found.device_gib:,.2f} GiB", f"a device of {assumed.memory:g} GiB (memory)"
    held = f"{found}; {(fitting or load).tokens:,} tokens at a time, {where}"
    return [Line("memory of a device", total, f"{note}; {room}"), Line("of it, in GiB", "", held)]


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
        model = context.card(name)[1]
        size, source = size_of(model)
        layout = layout_for(size, tokens + assumed.prompt_tokens, assumed, kv_bytes(model), name)
        rate = layout.tokens_per_second * pace
        taken = samples * tokens / rate / HOUR
        hours += taken
        note = f"{digits(taken)} hours at {rate:,.0f} tokens a second; {source}"
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


def rows_part(rows: dict[str, float], assumed: Assumed) -> Part:
    """Hours of the stages that take no device, on cores alone: not in the bill."""
    cores = "1 core" if assumed.cores == 1 else f"{assumed.cores:,} cores"
    lines = []
    for stage, count in rows.items():
        own, workers = ROW_US[stage]
        note = f"{count:,.0f} rows x max({own:g}, {workers:g} / cores) microseconds, {cores} (cores)"
        lines.append(Line(f"hours of {stage}", digits(row_hours(stage, count, assumed.cores)), note))
    return Part("without a device", lines)


def count_questions(task: Task, card: TaskCard | None) -> int | None:
    """Questions of an eval task: what the recipe says, else the rows of its file, else its card's size."""
    if isinstance(task, ProceduralSource):
        return task.size
    size = task.size if isinstance(task, CardTask) else task.limit
    if size is not None:
        return size
    if task.path is not None:
        return count_rows(task.path)
    return card.size if card else None
