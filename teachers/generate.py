"""The generate stage: sample the teacher until enough traces of each problem are correct, within a budget.

Reads runs/<name>/problems. Writes traces-*.jsonl, verdicts.jsonl, failures.jsonl and tries.jsonl (how hard
each problem was) to runs/<name>/generate. A run that was killed goes on where it was.

    python -m pipeline generate --recipe recipes/demo.yaml
"""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from pipeline.context import Context
from pipeline.errors import RecipeError
from pipeline.flags import AdoptFlags, EngineFlags, WorkerFlags
from pipeline.plan.forecast import against_fact, read_forecast
from pipeline.problems.sources import verifiers_in_use
from pipeline.records import Problem, ProblemFile
from pipeline.run.contract import Counts, Manifest, Plan, StageRun, begin, check_outputs
from pipeline.run.revisions import pinned, same_revision
from pipeline.sampling import Job, Options, Store, Tally, adopted, collect, start_engine
from pipeline.sampling.progress import Progress
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known before anything is bought."""

    context: Context
    plan: Plan
    job: Job
    problems: ProblemFile
    num_problems: int


def run(context: Context, flags: GenerateFlags | None = None) -> None:
    """Run or resume the stage. StageError above `max_failure_rate`, with all that was finished saved."""
    prepared = prepare(context)
    stage = begin(context.directory("generate"), prepared.plan, context.start)
    if stage is None:
        return
    with stage, Store(stage.directory) as store:
        check_outputs(context.directory("problems"), ["problems.jsonl"])
        tally, notes = asyncio.run(
            sample(prepared, prepared.problems, store, stage, flags or GenerateFlags())
        )
        refuse_failures("generate", tally, context.recipe.generate.max_failure_rate, store)
        finish(stage, prepared, store, tally, notes)


def prepare(context: Context) -> Prepared:
    """Plan, job and problems of the recipe. StageError where the problems stage has not finished."""
    manifest = context.require("problems", "generate")
    return Prepared(
        context,
        plan_of(context, manifest),
        job_of(context),
        ProblemFile(context.directory("problems") / "problems.jsonl"),
        manifest.outputs["problems.jsonl"].rows or 0,
    )


def plan_of(context: Context, problems: Manifest) -> Plan:
    """All that decides which traces there are: teacher, prompt, sampling, budget, verifiers, problems."""
    recipe = context.recipe
    # neither a word about the licence nor how many failures are too many changes a trace
    left_out = {"teacher", "prompt", "accept_licence", "max_failure_rate"}
    config = {
        **recipe.generate.model_dump(exclude=left_out, exclude_defaults=True),
        "teacher": context.teacher.identity,
        "prompt": context.prompt.user,
        "verifiers": verifiers_in_use(recipe.problems),
    }
    inputs = {"problems": problems.digest(["problems.jsonl"])}
    return Plan("generate", STAGE_VERSION, config, inputs, recipe.seed)


def job_of(context: Context) -> Job:
    """What generate samples. RecipeError where samples would all be alike, or the licence is not accepted."""
    section, card = context.recipe.generate, context.teacher_card
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
    if card.training_on_outputs == "restricted" and section.accept_licence != card.licence:
        raise RecipeError(
            f"generate.teacher: the licence of {section.teacher} ({card.licence}) restricts training on its "
            f"outputs. Read it; to go on, set generate.accept_licence: {card.licence}"
        )
    return Job(
        context.teacher,
        context.prompt,
        section.sampling,
        section.samples,
        context.recipe.seed,
        section.keep_tokens,
    )


async def sample(
    prepared: Prepared, problems: Iterable[Problem], store: Store, stage: StageRun, flags: GenerateFlags
) -> tuple[Tally, dict[str, Any]]:
    """Engine, verifiers and loop together, for all problems or some; the tally and the engine's notes."""
    context, job = prepared.context, prepared.job
    model = job.model if flags.engine.engine == "server" else pinned(context.run, job.model)
    folders = list(stage.aside)
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
        return tally, engine.notes


def finish(stage: StageRun, prepared: Prepared, store: Store, tally: Tally, notes: dict[str, Any]) -> None:
    """Write tries.jsonl and the manifest, with the forecast of a pilot set against the fact."""
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
    )
    log.info(
        "generate: %d of %d problems solved, %d to be decided later, %d traces (%d adopted) in %s",
        summary["solved"], summary["problems"], summary.get("undecided", 0), num_traces, tally.adopted,
        stage.directory,
    )  # fmt: skip
