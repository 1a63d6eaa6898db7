"""Revisions on the hub that a recipe or a card leaves null: resolved at the first run, then enforced.

Reads and writes runs/<name>/revisions.json, {data set or models/<model>: commit}. None is ever invented:
without a network, without that file and without the model in the hub's cache the run stops and says so.
Nothing is resolved for a directory of this machine, whose content is hashed, nor for servers, which hold what
they were started with.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError, StageError, in_one_line
from pipeline.recipe.cards import Cards, SampledModel
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sources import CardTask, HubSource

log = logging.getLogger(__name__)
MODELS = "models/"
REVISIONS = "revisions.json"


def resolved(run: Path, wanted: set[str]) -> dict[str, str]:
    """Name -> commit, from the run's revisions.json, and into it where a name is new."""
    if not wanted:
        return {}
    path = run / REVISIONS
    known = read_revisions(path)
    if missing := sorted(wanted - known.keys()):
        known = enforce(run, {name: latest_commit(name) for name in missing})
        log.info("resolved %s; enforced from now on by %s", ", ".join(missing), path)
    return {name: known[name] for name in sorted(wanted)}


def enforce(run: Path, found: Mapping[str, str]) -> dict[str, str]:
    """Put commits into the run's revisions.json; all that it holds then. What stands there stays."""
    path = run / REVISIONS
    run.mkdir(parents=True, exist_ok=True)
    known = {**found, **read_revisions(path)}  # another process may have resolved a name since
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)
    return known


def pinned(run: Path, model: SampledModel) -> SampledModel:
    """`model` with the commit that stands for its card's null revision; a local directory needs none.

    Teacher, base and whatever else a stage loads: one commit a model in the whole run.
    """
    if model.revision is not None or Path(model.model).is_dir():
        return model
    name = f"{MODELS}{model.model}"
    return at_revision(model, resolved(run, {name}))


def at_revision(model: SampledModel, commits: Mapping[str, str]) -> SampledModel:
    """`model` at the commit that stands for its card's null revision, where `commits` have one."""
    commit = commits.get(f"{MODELS}{model.model}")
    if commit is None or model.revision is not None:
        return model
    return dataclasses.replace(model, revision=commit, identity={**model.identity, "revision": commit})


def revisions_note(pairs: Iterable[tuple[SampledModel, SampledModel]]) -> dict[str, Any]:
    """What a manifest notes of models, each as its card says and as it was loaded: the commits of those whose
    card leaves them open."""
    held = {
        f"{MODELS}{card.model}": loaded.revision
        for card, loaded in pairs
        if card.revision is None and loaded.revision is not None
    }
    return {"revisions": held} if held else {}


def one_revision(run: Path, noted: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The commit of each model in what several processes noted, by their names; enforced in the run from now
    on. StageError where two differ, or one and the run: traces of two revisions are never mixed."""
    path = run / REVISIONS
    known = {name: (commit, str(path)) for name, commit in read_revisions(path).items()}
    found: dict[str, str] = {}
    for who, commits in noted.items():
        for name, commit in commits.items():
            first, where = known.setdefault(name, (commit, who))
            if first != commit:
                raise StageError(
                    f"{who}: was made with {name.removeprefix(MODELS)} at {commit}, and {where} says "
                    f"{first}; traces of two revisions are never mixed. Copy one {REVISIONS} to every "
                    f"machine before the shards start, and make {Path(who).name} again: --shard, --force"
                )
            found[name] = commit
    if found:
        enforce(run, found)
    return found


def known_revision(run: Path, model: str) -> str | None:
    """The commit of a hub model that this run resolved; None where it needed none so far."""
    return read_revisions(run / REVISIONS).get(f"{MODELS}{model}")


def same_revision(model: SampledModel, ours: Path, theirs: Path) -> None:
    """RecipeError where another run, whose traces are to be adopted, had another revision of the model."""
    here, there = model.revision or known_revision(ours, model.model), known_revision(theirs, model.model)
    if here is not None and there is not None and here != there:
        raise RecipeError(
            f"--adopt {theirs.name}: its traces are of {model.model} at {there}, this run is at {here}; "
            "traces of two revisions are never mixed"
        )


def unpinned_sources(recipe: Recipe, cards: Cards) -> set[str]:
    """The hub data sets of sources and tasks that neither the recipe nor their task card pins."""
    sources = {s.hub for s in recipe.problems.sources if isinstance(s, HubSource) and s.revision is None}
    return sources | unpinned_tasks(recipe, cards)


def unpinned_tasks(recipe: Recipe, cards: Cards) -> set[str]:
    named = [t.task for t in recipe.eval.tasks if isinstance(t, CardTask) and t.path is None]
    held = [cards.tasks[name] for name in named]
    return {card.hub for card in held if card.hub and card.revision is None}


def unpinned_mix(recipe: Recipe) -> set[str]:
    return {entry.hub for entry in recipe.filter.mix if entry.hub is not None and entry.revision is None}


def read_revisions(path: Path) -> dict[str, str]:
    """{name: commit}; StageError where the file is damaged. {} where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StageError(f"{path}: cannot be read as JSON ({error}); remove it to resolve again") from None
    if not isinstance(found, dict) or not all(isinstance(commit, str) for commit in found.values()):
        raise StageError(f"{path}: is not a JSON object of names and commits; remove it to resolve again")
    return found


def latest_commit(name: str) -> str:
    """The commit that the hub's main branch of a data set (or of models/<model>) points to now.

    Where the hub cannot be asked, that of the model in the hub's cache, which is what would be loaded.
    RecipeError where there is neither, or the hub cannot have such a name (a ValueError of its library).
    """
    import httpx2
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    is_model, plain = name.startswith(MODELS), name.removeprefix(MODELS)
    commit, said = None, "the hub names no commit for it"
    try:
        hub = HfApi()
        commit = (hub.model_info(plain) if is_model else hub.dataset_info(plain)).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError, OSError, ValueError) as error:
        said = in_one_line(error, 200)
        if is_model and isinstance(error, HFValidationError):
            raise RecipeError(
                f"{plain}: is neither a hub id ({said}) nor a directory here; correct `model` in its card"
            ) from None
    if commit is None and is_model:
        files = (try_to_load_from_cache(plain, file) for file in ("config.json", "tokenizer.json"))
        commit = next((Path(cached).parent.name for cached in files if isinstance(cached, str)), None)
    if commit is not None:
        return commit
    if is_model:
        raise RecipeError(
            f"{plain}: its card's revision is null and cannot be resolved ({said}). State a `revision` in "
            "the card, download the model first, or (a teacher) use servers with --engine server"
        )
    raise RecipeError(
        f"hub: {plain}: its revision is null and cannot be resolved ({said}). State a `revision`, or give "
        "a local copy with `path:`"
    )
