"""The revision of a teacher whose card leaves it null: resolved at the first run, enforced from then on.

Reads and writes runs/<name>/revisions.json, {model or data set: commit}. Nothing is resolved for a directory
of this machine, whose content is hashed, nor for servers, which hold what they were started with.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path

from pipeline.cards import SampledModel
from pipeline.errors import RecipeError
from pipeline.revisions import read_revisions

log = logging.getLogger(__name__)

REVISIONS = "revisions.json"


def pinned(model: SampledModel, run: Path) -> SampledModel:
    """`model` at the revision of this run. RecipeError where none is known and none can be resolved."""
    if model.revision is not None or Path(model.model).is_dir():
        return model
    path = run / REVISIONS
    known = read_revisions(path)
    if model.model not in known:
        known[model.model] = latest_commit(model.model)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        log.info("%s is at %s; enforced from now on by %s", model.model, known[model.model], path)
    return replace(model, revision=known[model.model])


def latest_commit(model: str) -> str:
    """The commit that the hub's main branch of a model points to now; without a network, the cached one."""
    import httpx2
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        commit = HfApi().model_info(model).sha
        reason = "the hub names no commit"
    except HFValidationError as error:
        raise RecipeError(
            f"{model}: the model of its card is no hub id ({error}) and no directory here; mend `model` in "
            "the card"
        ) from None
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError, OSError, ValueError) as error:
        commit, reason = None, " ".join(str(error).split())[:200]
    if commit is None:
        cached = try_to_load_from_cache(model, "config.json")
        commit = Path(cached).parent.name if isinstance(cached, str) else None
    if commit is None:
        raise RecipeError(
            f"{model}: its card's revision is null and cannot be resolved ({reason}). State a `revision` "
            "in the card, download the model first, or use servers with --engine server"
        )
    return commit


def same_revision(model: SampledModel, ours: Path, theirs: Path) -> None:
    """RecipeError where another run, whose traces are to be adopted, had another revision of the model."""
    here, there = (read_revisions(run / REVISIONS).get(model.model) for run in (ours, theirs))
    if here is not None and there is not None and here != there:
        raise RecipeError(
            f"--adopt {theirs.name}: its traces are of {model.model} at {there}, this run is at {here}; "
            "traces of two revisions are never mixed"
        )
