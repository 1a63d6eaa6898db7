"""The generate stage: sample the teacher until enough traces of each problem are correct, within a budget.

Reads runs/<name>/problems. Writes traces-*.jsonl, verdicts.jsonl, failures.jsonl and tries.jsonl (how hard
each problem was) to runs/<name>/generate. A run that was killed goes on where it was.

    python -m pipeline generate --recipe recipes/demo.yaml
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cards import SampledModel, sampled_teacher, teacher_card
from pipeline.errors import RecipeError, StageError
from pipeline.recipe import Recipe
from pipeline.records import Problem, from_json
from pipeline.render import PROMPTS
from pipeline.revisions import pinned, same_revision
from pipeline.sampling import EngineFlags, Job, Options, Store, Tally, collect, start_engine
from pipeline.sampling.adopt import AdoptedRun
from pipeline.sampling.progress import Progress
from pipeline.stage import Context, Counts, Plan, StageRun, begin, inputs_of, require
from pipeline.verify import VERSIONS, VerifierPool
from teachers.forecast import against_fact, read_forecast
from teachers.tries import write_tries

log = logging.getLogger(__name__)

STAGE_VERSION = 1


@dataclass(frozen=True, slots=True)
class GenerateFlags:
    """How generate runs, not which samples are taken. `adopt` are runs to take traces from."""

    engine: EngineFlags = field(default_factory=EngineFlags)
    adopt: tuple[str, ...] = ()
    verifier_workers: int = 2


@dataclass(frozen=True, slots=True)
class ProblemFile:
    """The problems of a finished problems stage, streamed anew at each iteration."""

    path: Path

    def __iter__(self) -> Iterator[Problem]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                yield from_json(Problem, line)


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known before anything is bought."""

    plan: Plan
    job: Job
    problems: ProblemFile
    num_problems: int


def run(context: Context, flags: GenerateFlags | None = None) -> None:
    """Run or resume the stage. StageError above `max_failure_rate`, with all that was finished saved."""
    flags = flags or GenerateFlags()
    prepared = prepare(context)
    stage = begin(context.directory("generate"), prepared.plan, context.start)
    if stage is None:
        return
    with stage, Store(stage.directory) as store:
        work = Work(stage, context.runs, flags, prepared.num_problems)
        tally, notes = asyncio.run(sample(prepared.job, prepared.problems, store, work))
        refuse_failures(tally, context.recipe.generate.max_failure_rate, stage.directory)
        close_books(stage, prepared, store, tally, notes)


def prepare(context: Context) -> Prepared:
    """Plan, job and problems of the recipe. StageError where the problems stage has not finished."""
    source = context.directory("problems")
    manifest = require(source, "generate", context.start.recipe)
    model = sampled_teacher(context.recipe.generate.teacher)
    return Prepared(
        plan_of(context.recipe, model, manifest),
        job_of(context.recipe, model),
        ProblemFile(source / "problems.jsonl"),
        manifest["outputs"]["problems.jsonl"]["rows"],
    )


def plan_of(recipe: Recipe, model: SampledModel, problems: dict[str, Any]) -> Plan:
    """All that decides which traces there are: teacher, prompt, sampling, budget, verifiers, problems."""
    section = recipe.generate
    config = {
        **section.model_dump(),
        "teacher_identity": model.identity,
        "prompt_text": PROMPTS[section.prompt],
        "verifiers": VERSIONS,
    }
    return Plan("generate", STAGE_VERSION, config, inputs_of({"problems": problems}), recipe.seed)


def job_of(recipe: Recipe, model: SampledModel) -> Job:
    """What generate samples. RecipeError where samples would all be alike, or the licence is not accepted."""
    section = recipe.generate
    if section.sampling.temperature == 0 and section.samples.max > 1:
        raise RecipeError(
            "generate.sampling.temperature: 0 makes all samples of a problem the same text, and samples.max "
            f"is {section.samples.max}; set temperature above 0, or samples: {{keep: 1, max: 1}}"
        )
    card = teacher_card(section.teacher)
    if card.training_on_outputs == "restricted" and section.accept_licence != card.licence:
        raise RecipeError(
            f"generate.teacher: the licence of {section.teacher} ({card.licence}) restricts training on its "
            f"outputs. Read it; to go on, set generate.accept_licence: {card.licence}"
        )
    return Job(model, section.prompt, section.sampling, section.samples, recipe.seed)


@dataclass(frozen=True, slots=True)
class Work:
    stage: StageRun
    runs: Path
    flags: GenerateFlags
    num_problems: int


async def sample(
    job: Job, problems: Iterable[Problem], store: Store, work: Work
) -> tuple[Tally, dict[str, Any]]:
    """Engine, verifiers and loop together; the tally and what the engine has to note."""
    model, run_directory = job.model, work.stage.directory.parent
    if work.flags.engine.engine == "vllm":
        model = pinned(run_directory, model)
    folders = [work.stage.aside] if work.stage.aside else []
    for name in work.flags.adopt:
        same_revision(model, run_directory, work.runs / name)
        folders.append(adopted_directory(work.runs, name))
    with ExitStack() as stack:
        pool = stack.enter_context(VerifierPool(workers=work.flags.verifier_workers))
        sources = tuple(stack.enter_context(closing(AdoptedRun(folder, job))) for folder in folders)
        watcher = Progress(work.num_problems, save_spent(work.stage))
        options = Options(work.flags.engine.concurrency, sources, watcher)
        async with start_engine(model, work.flags.engine) as engine:
            tally = await collect(job, problems, engine, store, pool, options)
        return tally, engine.notes


def save_spent(stage: StageRun) -> Callable[[Tally], None]:
    """Keeps what this process and the ones before it have spent, for the next one should this be killed."""
    before = stage.carried
    return lambda tally: stage.carry(spent(before, tally))


def spent(before: dict[str, float], tally: Tally) -> dict[str, float]:
    """What a stage has spent in all its processes; which traces were bought, the store knows by itself."""
    now = {
        "engine_seconds": tally.engine_seconds,
        "adopted": tally.adopted,
        "adopted_tokens": tally.adopted_tokens,
    }
    return {name: round(before.get(name, 0) + value, 3) for name, value in now.items()}


def adopted_directory(runs: Path, name: str) -> Path:
    """The generate directory of the run that `--adopt` names. RecipeError where there is none."""
    directory = runs / name / "generate"
    if not directory.is_dir():
        known = sorted(path.parent.name for path in runs.glob("*/generate"))
        raise RecipeError(
            f"--adopt {name}: {directory} does not exist; runs with traces: {', '.join(known) or 'none'}"
        )
    return directory


def refuse_failures(tally: Tally, limit: float, directory: Path) -> None:
    """StageError where more than `limit` of the requests failed; everything is saved by then."""
    num_failed = sum(tally.failed.values())
    num_traces = tally.found + tally.adopted + tally.sampled
    if num_failed > limit * (num_traces + num_failed):
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in tally.failed.most_common())
        raise StageError(
            f"generate: {num_failed:,} of {num_traces + num_failed:,} requests failed ({kinds}), more than "
            f"generate.max_failure_rate {limit:g} allows. All {num_traces:,} finished traces are saved in "
            f"{directory}, each failure is in failures.jsonl. Repair the cause and run the same command "
            "again: it asks only for what is missing"
        )


def close_books(
    stage: StageRun, prepared: Prepared, store: Store, tally: Tally, notes: dict[str, Any]
) -> None:
    """Write tries.jsonl and the manifest, with the forecast of a pilot set against the fact."""
    summary = write_tries(stage.directory / "tries.jsonl", prepared.problems, store, prepared.job.samples)
    outputs = {**store.outputs(), "tries.jsonl": summary["problems"]}
    num_traces = sum(rows for name, rows in outputs.items() if name.startswith("traces-"))
    num_failed = sum(tally.failed.values())
    usage = usage_of(spent(stage.carried, tally), tally.found, store, summary["correct"])
    fact = {
        "output_tokens": usage["output_tokens"],
        "pass_rate": round(summary["correct"] / max(summary["tries"], 1), 4),
        "solved_share": round(summary["solved"] / max(summary["problems"], 1), 4),
        "tries_per_problem": round(summary["tries"] / max(summary["problems"], 1), 3),
        "tokens_per_trace": round(usage["output_tokens"] / max(num_traces, 1), 1),
        "tokens_per_second": usage["tokens_per_second"],
    }
    stage.finish(
        Counts(num_in=num_traces + num_failed, kept=num_traces, failed=dict(tally.failed)),
        dict(outputs),
        usage=usage,
        notes={**summary, **notes, "forecast": against_fact(read_forecast(stage.directory), fact)},
    )
    log.info(
        "generate: %d of %d problems solved, %d traces (%d adopted) in %s",
        summary["solved"], summary["problems"], num_traces, tally.adopted, stage.directory,
    )  # fmt: skip


def usage_of(spent: dict[str, float], found: int, store: Store, correct: int) -> dict[str, Any]:
    """Tokens of all traces in the store, and what all processes of the stage had the engine make of them.

    `found` is what the last process had no need to sample. A kill takes the last second of engine time.
    """
    keys = store.keys
    sampled_tokens = keys.output_tokens - int(spent["adopted_tokens"])
    seconds = spent["engine_seconds"]
    return {
        "prompt_tokens": keys.prompt_tokens,
        "output_tokens": keys.output_tokens,
        "sampled": keys.num_traces - int(spent["adopted"]),
        "adopted": int(spent["adopted"]),
        "found": found,
        "sampled_output_tokens": sampled_tokens,
        "engine_seconds": round(seconds, 2),
        "tokens_per_second": round(sampled_tokens / seconds, 1) if seconds else None,
        "tokens_per_kept": round(keys.output_tokens / correct, 1) if correct else None,
    }
