"""Revisions on the hub that a recipe or a card leaves null: resolved at the first run, then enforced.

Reads and writes runs/<name>/revisions.json, {data set or models/<model>: commit}. None is ever invented:
without a network and without that file the run stops and says so.
"""

import dataclasses
import json
import logging
from pathlib import Path

from pipeline.cards import SampledModel, task_card
from pipeline.errors import RecipeError, StageError
from pipeline.recipe import CardTask, HubSource, Recipe
from pipeline.stage import Context

log = logging.getLogger(__name__)
MODELS = "models/"


def resolved_revisions(context: Context, wanted: set[str]) -> dict[str, str]:
    """Data set -> commit, for the hub data sets in `wanted`."""
    if not wanted:
        return {}
    path = context.runs / context.recipe.name / "revisions.json"
    known = read_revisions(path)
    missing = sorted(wanted - known.keys())
    if missing:
        known |= {name: latest_commit(name) for name in missing}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        log.info("resolved %s; enforced from now on by %s", ", ".join(missing), path)
    return {name: known[name] for name in sorted(wanted)}


def pinned(context: Context, model: SampledModel) -> SampledModel:
    """`model` with the commit that stands for its card's null revision; a local directory needs none."""
    if model.revision is not None or Path(model.model).is_dir():
        return model
    name = f"{MODELS}{model.model}"
    commit = resolved_revisions(context, {name})[name]
    return dataclasses.replace(model, revision=commit, identity={**model.identity, "revision": commit})


def unpinned_sources(recipe: Recipe) -> set[str]:
    """The hub data sets of sources and tasks that neither the recipe nor their task card pins."""
    sources = {s.hub for s in recipe.problems.sources if isinstance(s, HubSource) and s.revision is None}
    return sources | unpinned_tasks(recipe)


def unpinned_tasks(recipe: Recipe) -> set[str]:
    names = set()
    for task in recipe.eval.tasks:
        if isinstance(task, CardTask) and task.path is None:
            card = task_card(task.task)
            if card.hub and card.revision is None:
                names.add(card.hub)
    return names


def unpinned_mix(recipe: Recipe) -> set[str]:
    return {entry.hub for entry in recipe.filter.mix if entry.hub is not None and entry.revision is None}


def read_revisions(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StageError(f"{path}: cannot be read as JSON ({error}); remove it to resolve again") from None


def latest_commit(name: str) -> str:
    """The commit that the hub's main branch of a data set (or of models/<model>) points to now.

    RecipeError where the hub cannot be asked, or the name is none of the hub's (a ValueError of its library).
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        is_model = name.startswith(MODELS)
        hub = HfApi()
        found = hub.model_info(name.removeprefix(MODELS)) if is_model else hub.dataset_info(name)
        commit = found.sha
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"hub: {name}: its revision is null and cannot be resolved ({said}). State a `revision`, or give "
            "a local copy with `path:`"
        ) from None
    if commit is None:
        raise RecipeError(f"hub: {name}: the hub names no commit for it; state a `revision`")
    return commit
