"""The eval stage: base, student and teacher on the same questions, k samples each, with intervals.

Reads the eval tasks of the recipe and train's checkpoint. Writes runs/<name>/eval/: <task>.problems.jsonl
(the questions), <task>.<model>.samples-*.jsonl with verdicts and failures beside them, and results.json.
Every model gets the same prompt style, sampling and token budget, and is started once.

    python -m pipeline eval --recipe recipes/demo.yaml
"""

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.models import check_model, check_template, compared_models
from pipeline.cards import SampledModel, task_card
from pipeline.errors import RecipeError, StageError
from pipeline.recipe import CardTask, ProceduralSource, Recipe, Samples, Sampling
from pipeline.records import Problem, to_json
from pipeline.sampling import EngineFlags, Job, Options, Store, collect, start_engine
from pipeline.stage import Context, Counts, Plan, StageRun, begin, hash_file, inputs_of, require
from pipeline.tasks import task_names
from pipeline.verify.table import VERSIONS

if TYPE_CHECKING:
    from eval.samples import Answers

log = logging.getLogger(__name__)

STAGE_VERSION = 1
POOLED = "all"


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One task as it is put to every model: its questions, and how they are asked."""

    name: str
    problems: list[Problem]
    prompt: str
    k: int
    card: dict[str, Any] | None


def run(context: Context, flags: EngineFlags | None = None, workers: int = 2) -> None:
    """Run the stage, or say that it is up to date. `workers` verify answers while an engine samples."""
    recipe, train = context.recipe, context.directory("train")
    inputs: dict[str, str] = {}
    if "student" in recipe.eval.compare:
        inputs = inputs_of({"train": require(train, "eval", context.start.recipe)})
    models = compared_models(recipe, train)
    stage = begin(context.directory("eval"), eval_plan(recipe, models, inputs), context.start)
    if stage is None:
        return
    with stage:
        if "student" in models:
            check_template(train)
        for name, model in models.items():
            check_model(name, model, sampling_of(recipe).max_tokens)
        tasks = load_tasks(recipe, stage.directory)
        usage = asyncio.run(sample_all(stage, models, tasks, flags or EngineFlags(), workers))
        finish(stage, recipe, models, tasks, usage)


def sampling_of(recipe: Recipe) -> Sampling:
    return recipe.eval.sampling or recipe.generate.sampling


def eval_plan(recipe: Recipe, models: dict[str, SampledModel], inputs: dict[str, str]) -> Plan:
    """All that decides results.json; local task files by their content."""
    names = task_names(recipe.eval.tasks)
    if POOLED in names:
        raise RecipeError(f"eval.tasks: a task cannot be called '{POOLED}', which is the pool of all tasks")
    cards = {t.task: task_card(t.task).model_dump() for t in recipe.eval.tasks if isinstance(t, CardTask)}
    config = {
        "eval": recipe.eval.model_dump(),
        "prompt": recipe.eval.prompt or recipe.generate.prompt,
        "sampling": sampling_of(recipe).model_dump(),
        "models": {name: model.identity for name, model in models.items()},
        "task_cards": cards,
        "verifiers": VERSIONS,
    }
    paths = [task.path for task in recipe.eval.tasks if not isinstance(task, ProceduralSource)]
    files = [Path(path) for path in paths if path is not None]
    held = {path.name: hash_file(path) if path.is_file() else "missing" for path in files}
    return Plan("eval", STAGE_VERSION, config, {**inputs, **held}, recipe.seed)


def load_tasks(recipe: Recipe, directory: Path) -> list[Asked]:
    """The questions of every task, written down beside the samples."""
    from pipeline.tasks import task_problems

    tasks = []
    for task in recipe.eval.tasks:
        loaded = task_problems(task, recipe.seed)
        card = loaded.card
        if not loaded.problems:
            raise StageError(f"eval task {loaded.name}: holds no question; nothing can be measured on it")
        prompt = recipe.eval.prompt or (card and card.prompt) or recipe.generate.prompt
        k = recipe.eval.samples or (card.k if card else 1)
        tasks.append(Asked(loaded.name, loaded.problems, prompt, k, card.model_dump() if card else None))
        path = directory / f"{loaded.name}.problems.jsonl"
        path.write_text("".join(to_json(problem) + "\n" for problem in loaded.problems), encoding="utf-8")
    return tasks


async def sample_all(
    stage: StageRun, models: dict[str, SampledModel], tasks: Sequence[Asked], flags: EngineFlags, workers: int
) -> dict[str, Any]:
    """Sample every model on every task; usage by model. One engine start a model at most."""
    from pipeline.verify import VerifierPool

    usage: dict[str, Any] = {}
    with VerifierPool(workers=workers) as pool:
        for name, model in models.items():
            jobs = [job_of(stage, model, task) for task in tasks]
            own = dataclasses.replace(flags, urls=urls_of(name, flags.urls))
            work = list(zip(tasks, jobs, strict=True))
            usage[name] = await sample_model(stage.directory, name, work, own, pool)
    return usage


def job_of(stage: StageRun, model: SampledModel, task: Asked) -> Job:
    sampling = Sampling(**stage.plan.config["sampling"])
    return Job(model, task.prompt, sampling, Samples(keep=task.k, max=task.k), stage.plan.seed)


def urls_of(name: str, urls: tuple[str, ...]) -> tuple[str, ...]:
    """The URLs that serve one model: `student=http://...` names the model, a bare URL serves every one."""
    named = [url.partition("=") for url in urls]
    return tuple(
        rest if equals and "://" not in head else head + equals + rest
        for head, equals, rest in named
        if "://" in head or head == name
    )


async def sample_model(
    directory: Path, name: str, work: Sequence[tuple[Asked, Job]], flags: EngineFlags, pool: Any
) -> dict[str, Any]:
    """Take what is missing of every task; the engine starts with the first sample that must be taken."""
    begun, sampled = time.monotonic(), 0.0
    async with start_engine(work[0][1].model, flags) as engine:
        for task, job in work:
            log.info("eval: %s on %s (%d questions x %d)", name, task.name, len(task.problems), task.k)
            with store_of(directory, task.name, name) as store:
                options = Options(concurrency=flags.concurrency)
                tally = await collect(job, task.problems, engine, store, pool, options)
            sampled += tally.engine_seconds
    return {"engine_seconds": round(sampled, 2), "seconds": round(time.monotonic() - begun, 2)}


def store_of(directory: Path, task: str, model: str) -> Store:
    return Store(directory, f"{task}.{model}.samples")


def finish(
    stage: StageRun,
    recipe: Recipe,
    models: dict[str, SampledModel],
    tasks: Sequence[Asked],
    usage: dict[str, Any],
) -> None:
    """Score what was sampled, write results.json and the manifest."""
    from eval.samples import read_answers

    answers: dict[str, dict[str, Answers]] = {}
    outputs: dict[str, int | None] = {}
    for task in tasks:
        answers[task.name] = {}
        outputs[f"{task.name}.problems.jsonl"] = len(task.problems)
        for name in models:
            with store_of(stage.directory, task.name, name) as store:
                answers[task.name][name] = read_answers(store, task.problems, task.k)
                outputs.update(store.outputs())
    counts = counts_of(answers, recipe.generate.max_failure_rate, stage.directory)
    for name in models:
        tokens = sum(int(held[name].tokens.sum()) for held in answers.values())
        usage[name]["output_tokens"] = tokens
    results = results_of(stage, models, tasks, answers)
    path = stage.directory / "results.json"
    path.write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    outputs["results.json"] = None
    total = {
        key: round(sum(entry[key] for entry in usage.values()), 2)
        for key in ("output_tokens", "engine_seconds")
    }
    stage.finish(counts, outputs, usage={**total, "models": usage})
    log_scores(results)


def counts_of(answers: dict[str, dict[str, "Answers"]], max_failure_rate: float, directory: Path) -> Counts:
    """Samples wanted, taken, and failed for good; StageError where too many failed."""
    wanted = sum(held.finish.size for task in answers.values() for held in task.values())
    failed = sum(int((held.finish == "failed").sum()) for task in answers.values() for held in task.values())
    if failed > max_failure_rate * wanted:
        raise StageError(
            f"{directory}: {failed:,} of {wanted:,} samples failed, more than generate.max_failure_rate "
            f"({max_failure_rate:.1%}); *.failures.jsonl there say why. Run eval again: it takes just those"
        )
    return Counts(wanted, wanted - failed, failed={"request": failed} if failed else {})


def results_of(
    stage: StageRun,
    models: dict[str, SampledModel],
    tasks: Sequence[Asked],
    answers: dict[str, dict[str, "Answers"]],
) -> dict[str, Any]:
    from eval.results import adjust, score_task
    from eval.samples import joined
    from pipeline.provenance import library_versions

    config, seed = stage.plan.config, stage.plan.seed
    limit = config["sampling"]["max_tokens"]
    entries = {task.name: score_task(answers[task.name], limit, seed) for task in tasks}
    adjust(entries)
    if len({task.k for task in tasks}) == 1:
        pooled = {name: joined([answers[task.name][name] for task in tasks]) for name in models}
        entries[POOLED] = score_task(pooled, limit, seed)
    return {
        "tasks": entries,
        "models": {name: model.identity for name, model in models.items()},
        "sampling": config["sampling"],
        "prompt": {task.name: task.prompt for task in tasks},
        "verifier": {
            name: VERSIONS[name] for name in sorted({p.verifier for task in tasks for p in task.problems})
        },
        "versions": library_versions(),
    }


def log_scores(results: dict[str, Any]) -> None:
    """One line a task and model on stderr: pass@1 with its interval."""
    for task, entry in results["tasks"].items():
        for name in results["models"]:
            low, high = entry[name]["ci95"]
            log.info("%s %s: pass@1 %.3f [%.3f, %.3f]", task, name, entry[name]["pass@1"], low, high)
