"""The eval stage: base, student and teacher on the same questions, k samples each, with intervals.

Reads the eval tasks of the recipe, the student's checkpoint, and for contamination training problems and kept
traces. Writes runs/<name>/eval/: <task>.problems.jsonl (the questions), <task>.<model>.samples-*.jsonl with
verdicts and failures beside them, and results.json.

    python -m pipeline eval --recipe recipes/demo.yaml
    python -m pipeline eval --recipe recipes/demo.yaml --shard 3/16   # samples alone, 0/16 to 15/16
    python -m pipeline eval --recipe recipes/demo.yaml --merge        # judge and scores, when all are done
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from eval.asking import Asked, Asking, Spent, ask_all
from eval.flags import EvalFlags
from eval.judged import hold_to_bounds, judge_samples
from eval.models import Compared, check_model, check_student, compared_models, loaded
from pipeline.context import Context
from pipeline.judging.asking import identity_of
from pipeline.problems.sources import verifiers_of
from pipeline.problems.stage import load_tasks as load_questions
from pipeline.recipe.cards import SampledModel, TaskCard
from pipeline.recipe.sources import ProceduralSource, task_name
from pipeline.records import write_lines
from pipeline.report.results import RESULTS, Results, write_results
from pipeline.rows import digest_of_all
from pipeline.run.contract import Manifest, Plan, StageRun, Usage, begin, check_outputs
from pipeline.run.revisions import at_revision, resolved, revisions_note, same_revision, unpinned_tasks
from pipeline.sampling.merging import Merge, begin_merge, merge_store
from pipeline.sampling.shards import Shard, bought_before, parse_shard, shard_plan
from pipeline.verify.table import versions_of

log = logging.getLogger(__name__)

STAGE_VERSION = 3


@dataclass(frozen=True, slots=True)
class Begun:
    """All that is known before anything is asked: of the whole stage, or of one shard."""

    context: Context
    stage: StageRun
    asking: Asking
    models: list[Compared]
    tasks: list[Asked]
    flags: EvalFlags


def run(context: Context, flags: EvalFlags | None = None) -> None:
    """Run the stage or a shard of it, put its shards together, or say that it is up to date."""
    flags, recipe, whole = flags or EvalFlags(), context.recipe, context.directory("eval")
    inputs = inputs_of(context)
    models = compared_models(context)
    flags.check(models, recipe.eval.forced_budgets, judge=recipe.judge is not None)
    task_revisions = resolved(context.run, unpinned_tasks(recipe, context.cards))
    plan = plan_of(context, models, inputs, task_revisions)
    shard = parse_shard(flags.shards.shard) if flags.shards.shard else None
    merge = begin_merge(whole, plan, context.start) if flags.shards.merge else None
    if flags.shards.merge:
        stage = merge.stage if merge is not None else None
    elif shard is not None:
        stage = begin(shard.directory(whole), shard_plan(plan, shard), context.start)
    else:
        stage = begin(whole, plan, context.start)
    if stage is None:
        if shard is None:
            hold_to_bounds(context, whole)
        return
    with stage:
        check(context, models)
        compared = [
            Compared(
                name,
                model,
                at_revision(model, merge.revisions) if merge else loaded(context.run, model, flags.of(name)),
                flags.of(name),
            )
            for name, model in models.items()
        ]
        sources = [*bought_before(whole, stage, shard), *adopted_evals(context, compared, flags.adopt.adopt)]
        forced = tuple(recipe.eval.forced_budgets)
        asking = Asking(stage.directory, recipe.eval_sampling, recipe.seed, forced, tuple(sources))
        tasks = load_tasks(context, task_revisions, shard)
        begun = Begun(context, stage, asking, compared, tasks, flags)
        if merge is not None:
            score(begun, merge_samples(begun, merge), merge.manifests)
            return
        spent = asyncio.run(ask_all(asking, compared, tasks, flags.workers.num_workers))
        if shard is not None:
            finish_shard(begun, spent)
        else:
            score(begun, spent)


def inputs_of(context: Context) -> dict[str, str]:
    """What the student was made of, for contamination; its checkpoint stands among the models."""
    trained = trained_in(context)
    if not trained:
        return {}
    problems, kept, *_ = (context.require(name, "eval") for name in ("problems", "filter", *trained))
    return {"problems": problems.digest(["problems.jsonl"]), "filter": kept.digest(["kept.jsonl"])}


def trained_in(context: Context) -> list[str]:
    """The stages that trained one of the models compared, in their order."""
    stages = {stage for name, stage in context.student_stages.items() if name in context.recipe.eval.compare}
    return [stage.name for stage in context.stages if stage.name in stages]


def plan_of(
    context: Context, models: dict[str, SampledModel], inputs: dict[str, str], revisions: dict[str, str]
) -> Plan:
    """All that decides results.json: the names that it uses, what is asked how often, and of whom.

    A local task file is known by its content, wherever it stands.
    """
    recipe = context.recipe
    asked = {task_name(task): (task, context.task_card(task)) for task in recipe.eval.tasks}
    needing = {"judge", *(recipe.judge.second_opinion if recipe.judge else [])}
    config: dict[str, Any] = {
        "tasks": [
            {**task.model_dump(exclude_defaults=True, exclude={"path", "prompt"}), "name": name}
            for name, (task, _) in asked.items()
        ],
        "task_cards": {name: card.identity for name, (_, card) in asked.items() if card},
        "revisions": revisions,
        "samples": {name: samples_of(context, card) for name, (_, card) in asked.items()},
        "prompts": {name: context.eval_prompt(task).identity for name, (task, _) in asked.items()},
        "sampling": recipe.eval_sampling.model_dump(exclude_defaults=True),
        "models": {name: model.identity for name, model in models.items()},
        "verifiers": versions_of(
            name for task, card in asked.values() for name in verifiers_of(card or task)
        ),
    }
    if recipe.judge is not None and not needing.isdisjoint(config["verifiers"]):
        config["judge"] = identity_of(context)
    if recipe.eval.forced_budgets:
        config["forced_budgets"] = recipe.eval.forced_budgets
        config["closed_by"] = {name: model.tags.model_dump() for name, model in models.items()}
    files = {
        f"task {name}": digest_of_all(task.path)
        for name, (task, _) in asked.items()
        if not isinstance(task, ProceduralSource) and task.path
    }
    return Plan("eval", STAGE_VERSION, config, {**inputs, **files}, recipe.seed)


def samples_of(context: Context, card: TaskCard | None) -> int:
    return context.recipe.eval.samples or (card.k if card else 1)


def check(context: Context, models: dict[str, SampledModel]) -> None:
    """The faults that can be told before anything is asked or written."""
    trained = trained_in(context)
    for stage in trained:
        check_student(context, stage)
    if trained:
        check_outputs(context.directory("problems"), ["problems.jsonl"])
        check_outputs(context.directory("filter"), ["kept.jsonl"])
    for name, model in models.items():
        check_model(name, model, context.recipe.eval_sampling.max_tokens)


def adopted_evals(context: Context, models: Sequence[Compared], names: Sequence[str]) -> list[Path]:
    """The eval directories of the runs that --adopt names. RecipeError where a model had another revision."""
    folders = [context.stage_named("--adopt", name, "eval", needed=False) for name in names]
    for theirs in folders:
        for model in models:
            same_revision(model.loaded, context.run, theirs.parent)
        if not theirs.is_dir():
            log.info("eval: %s holds no samples to adopt", theirs)
    return folders


def load_tasks(context: Context, revisions: dict[str, str], shard: Shard | None = None) -> list[Asked]:
    """The questions of every task, and how they are asked; of a shard its own, and no task without any."""
    named = {task_name(task): task for task in context.recipe.eval.tasks}
    tasks = [
        Asked(
            task.name,
            task.problems,
            context.eval_prompt(named[task.name]),
            samples_of(context, task.card),
            task.card.version if task.card else None,
        )
        for task in load_questions(context, revisions)
    ]
    if shard is None:
        return tasks
    parts = [replace(task, problems=[p for p in task.problems if shard.holds(p.id)]) for task in tasks]
    return [part for part in parts if part.problems]


def finish_shard(begun: Begun, spent: dict[str, Spent]) -> None:
    """The manifest of a shard, which makes samples alone: judge and scores look at all questions."""
    from eval.results import counts_of, read_all  # numpy and scipy, 0.4 s

    stage, models = begun.stage, begun.models
    measured = read_all(begun.asking, [model.name for model in models], begun.tasks)
    counts = counts_of(measured, 1.0, stage.directory)  # the limit is one for all shards together: merge's
    notes = revisions_note((model.model, model.loaded) for model in models)
    stage.finish(counts, measured.outputs, usage=usage_of(spent), notes=notes)
    log.info("eval, %s: %d samples of %d", stage.directory.name, counts.kept, counts.num_in)


def merge_samples(begun: Begun, merge: Merge) -> dict[str, Spent]:
    """The samples of all shards as those of one process; what each model took in all of them."""
    for _, job, store in begun.asking.stores(begun.models, begun.tasks):
        with store:
            merge_store(merge.stores(store.prefix), store, job)
    spent = {model.name: Spent() for model in begun.models}
    for shard, manifest in merge.shards.items():
        for name, took in manifest.usage.models.items():
            spent[name].add(str(shard), msgspec.convert(took, Spent))
    return spent


def score(begun: Begun, spent: dict[str, Spent], shards: Collection[Manifest] = ()) -> None:
    """Judge and score all samples, write results.json and the manifest."""
    from eval.results import counts_of, overlaps, read_all, results_of  # numpy and scipy, 0.4 s

    context, stage, asking = begun.context, begun.stage, begun.asking
    models, tasks, recipe = begun.models, begun.tasks, begun.context.recipe
    judged = judge_samples(context, asking, models, tasks, begun.flags)
    if judged is not None:
        spent["judge"] = judged.spent
    questions: dict[str, int | None] = {}
    for task in tasks:  # only now: a fault before anything was bought leaves nothing behind
        path = stage.directory / f"{task.name}.problems.jsonl"
        questions[path.name] = write_lines(path, task.problems)
    names = [model.name for model in models]
    measured = read_all(asking, names, tasks)
    counts = counts_of(measured, recipe.generate.max_failure_rate, stage.directory)
    seen = overlaps(context, tasks) if trained_in(context) else None
    identities = {model.name: model.loaded.identity for model in models}
    results = results_of(asking, identities, measured, tasks, seen)
    if judged is not None:
        results = msgspec.structs.replace(results, judge=judged.facts)
    write_results(stage.directory / RESULTS, results)
    outputs = {**questions, **measured.outputs, **(judged.outputs if judged else {}), RESULTS: None}
    notes = revisions_note((model.model, model.loaded) for model in models)
    stage.finish(counts, outputs, usage=usage_of(spent), notes=notes, shards=shards)
    log_scores(results)


def usage_of(spent: dict[str, Spent]) -> Usage:
    """Sums over the models, and the figures of each."""
    each = spent.values()
    return Usage(
        engine_seconds=round(sum(model.engine_seconds for model in each), 2),
        prompt_tokens=total([model.prompt_tokens for model in each]),
        output_tokens=total([model.output_tokens for model in each]),
        sampled=sum(model.sampled for model in each),
        adopted=sum(model.adopted for model in each),
        found=sum(model.found for model in each),
        models={name: asdict(model) for name, model in spent.items()},
    )


def total(counts: list[int | None]) -> int | None:
    """Their sum; None where one is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def log_scores(results: Results) -> None:
    """One line a task and model on stderr: pass@1 with its interval."""
    for task, entry in results.tasks.items():
        for name, score in entry.models.items():
            log.info("%s %s: pass@1 %.3f [%.3f, %.3f]", task, name, score.pass_at_1, *score.ci95)
