"""The generate stage: sample the teacher until enough traces of each problem are correct, within a budget.

Reads runs/<name>/problems. Writes traces-*.jsonl, verdicts.jsonl, failures.jsonl and tries.jsonl (how hard
each problem was) to runs/<name>/generate. A run that was killed goes on where it was.

    python -m pipeline generate --recipe recipes/demo.yaml
    python -m pipeline generate --recipe recipes/demo.yaml --shard 3/16   # and so on, 0/16 to 15/16
    python -m pipeline generate --recipe recipes/demo.yaml --merge        # when all have finished
"""

import asyncio
import hashlib
import logging
from collections.abc import Collection, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import AdoptFlags, EngineFlags, ShardFlags, WorkerFlags
from pipeline.plan.forecast import against_fact, read_forecast
from pipeline.problems.sources import verifiers_in_use
from pipeline.recipe.cards import is_ours
from pipeline.records import Problem, ProblemFile
from pipeline.run.contract import Counts, Manifest, Plan, StageRun, begin, check_outputs
from pipeline.run.revisions import pinned, revisions_note, same_revision
from pipeline.sampling import Job, Options, Store, Tally, adopted, collect, start_engine
from pipeline.sampling.progress import Progress
from pipeline.sampling.shards import (
    Chosen,
    Shard,
    bought_before,
    parse_shard,
    refuse_redistribution,
    shard_plan,
)
from pipeline.sampling.spending import refuse_failures, save_spent, spent, usage_of
from pipeline.verify import VerifierPool
from teachers.tries import write_tries

log = logging.getLogger(__name__)

STAGE_VERSION = 2


@dataclass(frozen=True, slots=True)
class GenerateFlags:
    """How generate runs, not which samples are taken."""

    engine: EngineFlags = field(default_factory=EngineFlags)
    adopt: AdoptFlags = field(default_factory=AdoptFlags)
    workers: WorkerFlags = field(default_factory=WorkerFlags)
    shards: ShardFlags = field(default_factory=ShardFlags)


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known before anything is bought: of the whole stage, or of one shard."""

    context: Context
    plan: Plan
    job: Job
    problems: Iterable[Problem]
    num_problems: int
    directory: Path
    shard: Shard | None = None


def run(context: Context, flags: GenerateFlags | None = None) -> None:
    """Run or resume the stage, or a shard of it. StageError above `max_failure_rate`, with all that was
    finished saved."""
    flags = flags or GenerateFlags()
    prepared = prepare(context)
    if flags.shards.merge:
        from teachers.merge import merge

        return merge(prepared)
    if flags.shards.shard:
        prepared = part_of(prepared, parse_shard(flags.shards.shard))
    stage = begin(prepared.directory, prepared.plan, context.start)
    if stage is None:
        return
    with stage, Store(stage.directory) as store:
        check_outputs(context.directory("problems"), ["problems.jsonl"])
        tally, notes = asyncio.run(sample(prepared, prepared.problems, store, stage, flags))
        refuse_failures("generate", tally, context.recipe.generate.max_failure_rate, store)
        finish(stage, prepared, store, tally, notes)


def prepare(context: Context) -> Prepared:
    """Plan, job and problems of the recipe. StageError where the problems stage has not finished."""
    manifest = context.require("problems", "generate")
    problems: Iterable[Problem] = ProblemFile(context.directory("problems") / "problems.jsonl")
    number, share = manifest.outputs["problems.jsonl"].rows or 0, context.recipe.generate.share
    if share < 1:
        problems = chosen = Chosen(problems, partial(is_asked, share=share, seed=context.recipe.seed))
        number = len(chosen)
        if not number:
            raise StageError(
                f"generate.share: {share:g} of {manifest.counts.kept:,} problems draws none to ask the "
                "teacher about. Raise it"
            )
    plan, job = plan_of(context, manifest), job_of(context)
    return Prepared(context, plan, job, problems, number, context.directory("generate"))


def is_asked(problem_id: str, share: float, seed: int) -> bool:
    """Whether the teacher is asked about a problem; a larger share asks about all of a smaller one."""
    digest = hashlib.sha256(f"{seed}/asked/{problem_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def part_of(whole: Prepared, shard: Shard) -> Prepared:
    """The same for one shard. RecipeError where the budget of a problem depends on what others took."""
    refuse_redistribution(whole.job.samples)
    problems = Chosen(whole.problems, shard.holds)
    return replace(
        whole,
        plan=shard_plan(whole.plan, shard),
        problems=problems,
        num_problems=len(problems),
        directory=shard.directory(whole.directory),
        shard=shard,
    )


def plan_of(context: Context, problems: Manifest) -> Plan:
    """All that decides which traces there are: teacher, prompt, sampling, budget, verifiers, problems."""
    recipe = context.recipe
    # neither a word about the licence nor how many failures are too many changes a trace
    left_out = {"teacher", "prompt", "accept_licence", "max_failure_rate", "seed"}
    config = {
        **recipe.generate.model_dump(exclude=left_out, exclude_defaults=True),
        "teacher": context.teacher.identity,
        "prompt": context.prompt.identity,
        "verifiers": verifiers_in_use(recipe.problems),
    }
    inputs = {"problems": problems.digest(["problems.jsonl"])}
    return Plan("generate", STAGE_VERSION, config, inputs, recipe.generate_seed)


def job_of(context: Context) -> Job:
    """What generate samples. RecipeError where samples would all be alike, or the licence is not accepted."""
    section = context.recipe.generate
    voted = [source for source in context.recipe.problems.sources if getattr(source, "majority", None)]
    if section.sampling.temperature == 0 and voted:
        raise RecipeError(
            "generate.sampling.temperature: 0 makes all samples of a problem the same text, and a source has "
            "a `majority`, which would be of one answer; set temperature above 0"
        )
    if section.sampling.temperature == 0 and section.samples.max > 1:
        raise RecipeError(
            "generate.sampling.temperature: 0 makes all samples of a problem the same text, and samples.max "
            f"is {section.samples.max}; set temperature above 0, or samples: {{keep: 1, max: 1}}"
        )
    check_licence(context)
    return Job(
        context.teacher,
        context.prompt,
        section.sampling,
        section.samples,
        context.recipe.generate_seed,
        section.keep_tokens,
        top_logprobs=section.top_logprobs,
    )


def check_licence(context: Context) -> None:
    """RecipeError where the licence restricts training on what the teacher wrote, or nobody has read whether
    it does, and the recipe does not accept it. A warning for the users' own models, whose licence they know.
    """
    section, card, name = context.recipe.generate, context.teacher_card, context.teacher_name
    if card.training_on_outputs == "allowed" or section.accept_licence == card.licence:
        return
    if card.training_on_outputs == "restricted":
        found = f"the licence of {name} ({card.licence}) restricts training on its outputs"
    elif is_ours(section.teacher):
        found = (
            f"whether the licence of {name} ({card.licence}) allows training on its outputs is not known: "
            "nobody has read it for this card"
        )
    else:
        log.warning(
            "generate.teacher: the card of %s does not say whether its licence (%s) allows training on its "
            "outputs; read it before the student is passed on",
            name,
            card.licence,
        )
        return
    raise RecipeError(
        f"generate.teacher: {found}. Read it; to go on, set generate.accept_licence: {card.licence}"
    )


async def sample(
    prepared: Prepared, problems: Iterable[Problem], store: Store, stage: StageRun, flags: GenerateFlags
) -> tuple[Tally, dict[str, Any]]:
    """Engine, verifiers and loop together, for all problems or some; the tally and the engine's notes."""
    context, job = prepared.context, prepared.job
    model = job.model if flags.engine.engine == "server" else pinned(context.run, job.model)
    folders = bought_before(context.directory("generate"), stage, prepared.shard)
    for name in flags.adopt.adopt:
        folder = context.stage_named("--adopt", name, "generate")
        same_revision(model, context.run, folder.parent)
        folders.append(folder)
    with ExitStack() as stack:
        sources = tuple(stack.enter_context(closing(source)) for source in adopted(folders, job))
        pool = stack.enter_context(VerifierPool(workers=flags.workers.num_workers))
        num_problems = len(problems) if isinstance(problems, list) else prepared.num_problems
        watcher = Progress(num_problems, save_spent(stage))
        options = Options(flags.engine.concurrency, sources, watcher)
        async with start_engine(model, flags.engine) as engine:
            tally = await collect(job, problems, engine, store, pool, options)
        return tally, {**engine.notes, **revisions_note([(job.model, model)])}


def finish(
    stage: StageRun,
    prepared: Prepared,
    store: Store,
    tally: Tally,
    notes: dict[str, Any],
    shards: Collection[Manifest] = (),
) -> None:
    """Write tries.jsonl and the manifest, with the forecast of a pilot set against the fact. `shards` are
    what it was put together of."""
    summary = write_tries(stage.directory / "tries.jsonl", prepared.problems, store, prepared.job.samples)
    outputs = {**store.outputs(), "tries.jsonl": summary["problems"]}
    num_traces = sum(rows for name, rows in outputs.items() if name.startswith("traces-"))
    num_failed = sum(tally.failed.values())
    usage = usage_of(spent(stage.carried, tally), tally.found, store, summary["correct"])
    fact = {
        "output_tokens": usage.output_tokens,
        "pass_rate": round(summary["correct"] / max(summary["tries"], 1), 4),
        "solved_share": round(summary["solved"] / max(summary["problems"], 1), 4),
        "tries_per_problem": round(summary["tries"] / max(summary["problems"], 1), 3),
        "tokens_per_trace": round(store.keys.output_tokens / max(num_traces, 1), 1),
        "tokens_per_second": usage.tokens_per_second,
    }
    stage.finish(
        Counts(num_in=num_traces + num_failed, kept=num_traces, failed=dict(tally.failed)),
        dict(outputs),
        usage=usage,
        notes={**summary, **notes, "forecast": against_fact(read_forecast(stage.directory), fact)},
        shards=shards,
    )
    log.info(
        "generate%s: %d of %d problems solved, %d to be decided later, %d traces (%d adopted) in %s",
        f", shard {prepared.shard}" if prepared.shard else "", summary["solved"], summary["problems"],
        summary.get("undecided", 0), num_traces, tally.adopted,
        stage.directory,
    )  # fmt: skip
