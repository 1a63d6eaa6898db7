"""Put the finished shards of generate together: the one result, as if one process had sampled it.

Reads runs/<name>/generate/shards/*-of-<n>/. Traces are linked, not copied, where the file system can link;
verdicts and failures are written one shard after another. Nothing of the shards is changed.

    python -m pipeline generate --recipe recipes/demo.yaml --merge
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import StageError
from pipeline.run.contract import Manifest, begin, check_outputs, difference, read_manifest
from pipeline.sampling import Store, Tally
from pipeline.sampling.job import requests_of
from pipeline.sampling.shards import Shard, shards_in
from pipeline.sampling.spending import refuse_failures
from pipeline.verify.basis import tags_digest
from teachers.generate import Prepared, finish, shard_plan

log = logging.getLogger(__name__)

MAX_NAMED = 8  # of the shards that are missing


def merge(prepared: Prepared) -> None:
    """Finish generate from its shards. StageError while one is missing, unfinished or of another plan."""
    context, job = prepared.context, prepared.job
    whole = read_manifest(prepared.directory)
    if whole is None or whole.fingerprint != prepared.plan.fingerprint or context.start.force:
        shards = finished_shards(prepared)
    else:
        shards = {}  # begin() says that it is up to date
    # what an unsharded attempt bought lies aside then: each shard has adopted what it wanted of it
    stage = begin(prepared.directory, prepared.plan, context.start, anew=True)
    if stage is None:
        return
    with stage, Store(stage.directory) as store:
        for shard in shards:
            check_outputs(shard.directory(prepared.directory))
        parts = [Store(shard.directory(prepared.directory)) for shard in shards]
        traces = [path for part in parts for path in part.shards()]
        for number, path in enumerate(traces):
            link(path, store.shard_path(number))
        join((part.verdicts_path for part in parts), store.verdicts_path)
        join((part.failures_path for part in parts), store.failures_path)
        # reads every line: a key that stands twice, or of another request, ends it here
        store.load(requests_of(job).values(), tags_digest(job.model.tags))
        tally = tally_of(shards.values())
        refuse_failures("generate", tally, context.recipe.generate.max_failure_rate, store)
        notes = {str(shard): manifest.notes for shard, manifest in shards.items()}
        finish(stage, prepared, store, tally, {"shards": notes})


def finished_shards(prepared: Prepared) -> dict[Shard, Manifest]:
    """The manifests of all shards of the one number of shards that is complete."""
    begun = shards_in(prepared.directory)
    if not begun:
        raise StageError(
            f"{prepared.directory}: no shard was begun. Run: python -m pipeline generate --recipe "
            f"{prepared.context.start.recipe} --shard 0/N, and so on to N-1/N"
        )
    faults: dict[int, str] = {}
    for of in sorted({shard.of for shard in begun}):
        shards = [Shard(of, number) for number in range(of)]
        held = {shard: read_manifest(shard.directory(prepared.directory)) for shard in shards}
        fault = fault_of(prepared, held, set(begun))
        if not fault:
            return {shard: manifest for shard, manifest in held.items() if manifest is not None}
        faults[of] = fault
    raise StageError(
        f"{prepared.directory}: cannot be merged. "
        + " ".join(f"Of {of} shards {faults[of]}." for of in faults)
    )


def fault_of(prepared: Prepared, held: dict[Shard, Manifest | None], begun: set[Shard]) -> str:
    """Why these shards are not the whole; empty where they are."""
    missing = [shard for shard in held if shard not in begun]
    open_ones = [shard for shard, manifest in held.items() if manifest is None and shard in begun]
    for shards, state in ((missing, "not begun"), (open_ones, "not finished")):
        if shards:
            names = ", ".join(map(str, shards[:MAX_NAMED])) + (", ..." if len(shards) > MAX_NAMED else "")
            first = shards[0]
            return (
                f"{len(shards)} {'is' if len(shards) == 1 else 'are'} {state} ({names}); run: python -m "
                f"pipeline generate --recipe {prepared.context.start.recipe} --shard {first}"
            )
    for shard, manifest in held.items():
        plan = shard_plan(prepared.plan, shard)
        if manifest is not None and manifest.fingerprint != plan.fingerprint:
            known = {name: getattr(manifest, name) for name in plan.identity()}
            lines = "\n  ".join(difference(known, plan.identity()))
            return (
                f"{shard} ({shard.directory(prepared.directory)}) is of another plan; what differs:\n  "
                f"{lines}\nRun that shard again with --force, or merge with the recipe that it was made with"
            )
    return ""


def tally_of(manifests: Iterable[Manifest]) -> Tally:
    """What all shards did, as if one process had: their engines' seconds add up."""
    tally = Tally(first_launch=0.0)
    for manifest in manifests:
        usage = manifest.usage
        tally.found += usage.found or 0
        tally.adopted += usage.adopted or 0
        tally.sampled += usage.sampled or 0
        tally.adopted_tokens += (usage.output_tokens or 0) - (usage.sampled_output_tokens or 0)
        tally.last_trace += usage.engine_seconds or 0.0
        tally.failed += Counter(manifest.counts.failed)
    return tally


def link(path: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def join(paths: Iterable[Path], target: Path) -> None:
    """All files that there are, one after another, as one."""
    with target.open("wb") as file:
        for path in paths:
            if path.exists():
                with path.open("rb") as part:
                    shutil.copyfileobj(part, file)
