"""The eval stage: base, student and teacher on the same questions, k samples each, with intervals.

Reads the eval tasks of the recipe, train's checkpoint, and for contamination problems.jsonl and kept.jsonl.
Writes runs/<name>/eval/: <task>.problems.jsonl (the questions), <task>.<model>.samples-*.jsonl with verdicts
and failures beside them, and results.json.

    python -m pipeline eval --recipe recipes/demo.yaml
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.flags import EvalFlags, names_by_model, urls_by_model
from eval.models import check_model, check_template, compared_models
from pipeline.cards import SampledModel, task_card
from pipeline.errors import RecipeError, StageError
from pipeline.recipe import CardTask, ProceduralSource, Recipe, Sampling
from pipeline.records import to_json
from pipeline.revisions import resolved_revisions, unpinned_tasks
from pipeline.rows import require_file
from pipeline.sampling import EngineFlags
from pipeline.stage import Context, Plan, StageRun, begin, check_outputs, hash_file, inputs_of, require
from pipeline.tasks import task_name, task_names
from pipeline.verify.table import VERSIONS

if TYPE_CHECKING:
    from eval.asking import Asked

log = logging.getLogger(__name__)

STAGE_VERSION = 2


def run(
    context: Context,
    engine: EngineFlags | None = None,
    urls: Sequence[str] = (),
    served_names: Sequence[str] = (),
) -> None:
    """Run the stage, or say that it is up to date. `urls` are `model=http://...` of served models,
    `served_names` are `model=name` of those that the server calls otherwise."""
    recipe, train = context.recipe, context.directory("train")
    inputs: dict[str, str] = {}
    if "student" in recipe.eval.compare:
        before = {name: context.directory(name) for name in ("problems", "filter", "train")}
        inputs = inputs_of(
            {name: require(path, "eval", context.start.recipe) for name, path in before.items()}
        )
    models = compared_models(recipe, train)
    flags = flags_of(recipe, engine or EngineFlags(), urls_by_model(urls, models), served_names)
    revisions = resolved_revisions(context, unpinned_tasks(recipe))
    stage = begin(context.directory("eval"), plan_of(recipe, models, inputs, revisions), context.start)
    if stage is None:
        return
    with stage:
        if "student" in models:
            check_template(train, models["student"])
            check_outputs(context.directory("problems"), ["problems.jsonl"])
            check_outputs(context.directory("filter"), ["kept.jsonl"])
        for name, model in models.items():
            check_model(name, model, sampling_of(recipe).max_tokens)
        measure(stage, recipe, models, load_tasks(recipe, revisions, stage.directory), flags)


def flags_of(
    recipe: Recipe, engine: EngineFlags, urls: dict[str, tuple[str, ...]], served_names: Sequence[str]
) -> EvalFlags:
    """How the models run. RecipeError where a served one would have to be stopped inside its thinking."""
    if urls and recipe.eval.forced_budgets:
        raise RecipeError(
            f"--url {next(iter(urls))}=...: eval.forced_budgets is set, and a served chat cannot be "
            "continued inside its thinking. Leave out the --url, so that the model runs in this process, or "
            "the budgets"
        )
    return EvalFlags(engine, urls, names_by_model(served_names, urls))


def sampling_of(recipe: Recipe) -> Sampling:
    return recipe.eval.sampling or recipe.generate.sampling


def plan_of(
    recipe: Recipe, models: dict[str, SampledModel], inputs: dict[str, str], revisions: dict[str, str]
) -> Plan:
    """All that decides results.json; local task files by their content."""
    task_names(recipe.eval.tasks)
    asked = {task_name(task): task for task in recipe.eval.tasks if isinstance(task, CardTask)}
    cards = {name: task_card(task.task).identity for name, task in asked.items()}
    config = {
        "eval": recipe.eval.model_dump(),
        "prompt": recipe.eval.prompt or recipe.generate.prompt,
        "sampling": sampling_of(recipe).model_dump(),
        "models": {name: model.identity for name, model in models.items()},
        "task_cards": cards,
        "revisions": revisions,
        "verifiers": VERSIONS,
    }
    paths = [task.path for task in recipe.eval.tasks if not isinstance(task, ProceduralSource)]
    held = {path: hash_file(require_file(Path(path))) for path in paths if path is not None}
    return Plan("eval", STAGE_VERSION, config, {**inputs, **held}, recipe.seed)


def load_tasks(recipe: Recipe, revisions: dict[str, str], directory: Path) -> "list[Asked]":
    """The questions of every task, written down beside the samples."""
    from eval.asking import Asked
    from pipeline.tasks import task_problems

    tasks = []
    for task in recipe.eval.tasks:
        hub = task_card(task.task).hub if isinstance(task, CardTask) else None
        loaded = task_problems(task, recipe.seed, revisions.get(hub) if hub else None)
        card = loaded.card
        if not loaded.problems:
            raise StageError(f"eval task {loaded.name}: holds no question; nothing can be measured on it")
        prompt = recipe.eval.prompt or (card and card.prompt) or recipe.generate.prompt
        k = recipe.eval.samples or (card.k if card else 1)
        tasks.append(Asked(loaded.name, loaded.problems, prompt, k))
        path = directory / f"{loaded.name}.problems.jsonl"
        path.write_text("".join(to_json(problem) + "\n" for problem in loaded.problems), encoding="utf-8")
    return tasks


def measure(
    stage: StageRun,
    recipe: Recipe,
    models: dict[str, SampledModel],
    tasks: "list[Asked]",
    flags: EvalFlags,
) -> None:
    """Sample, score, write results.json and the manifest."""
    from eval.asking import Asking, ask_all
    from eval.scoring import RESULTS, counts_of, overlaps, read_all, results_of

    asking = Asking(stage.directory, sampling_of(recipe), recipe.seed, tuple(recipe.eval.forced_budgets))
    usage = asyncio.run(ask_all(asking, models, tasks, flags))
    measured = read_all(asking, list(models), tasks)
    counts = counts_of(measured, recipe.generate.max_failure_rate, stage.directory)
    seen = overlaps(tasks, stage.directory.parent) if "student" in models else None
    results = results_of(stage.plan, measured, tasks, seen)
    results["models"] = {
        name: asking.loaded(model, flags.of(name)).identity for name, model in models.items()
    }
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    (stage.directory / RESULTS).write_text(text + "\n", encoding="utf-8")
    for name in models:
        tokens = (int(held[name].tokens.sum()) for held in measured.answers.values())
        usage[name]["output_tokens"] = sum(tokens)
    keys = ("engine_seconds", "prompt_tokens", "output_tokens")
    totals = {key: round(sum(entry[key] for entry in usage.values()), 2) for key in keys}
    stage.finish(counts, {**measured.outputs, RESULTS: None}, usage={**totals, "models": usage})
    log_scores(results)


def log_scores(results: dict[str, Any]) -> None:
    """One line a task and model on stderr: pass@1 with its interval."""
    for task, entry in results["tasks"].items():
        for name in results["models"]:
            low, high = entry[name]["ci95"]
            log.info("%s %s: pass@1 %.3f [%.3f, %.3f]", task, name, entry[name]["pass@1"], low, high)
