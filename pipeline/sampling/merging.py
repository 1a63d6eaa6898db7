"""Put the finished shards of a stage together: the one result, as if one process had sampled it.

Reads <stage>/shards/*-of-<n>/, for every stage that samples. Traces are linked, not copied, where the file
system can link; verdicts and failures are written one shard after another. Nothing of the shards is changed.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StageError
from pipeline.run.contract import (
    Manifest,
    Plan,
    StageRun,
    Start,
    begin,
    check_outputs,
    difference,
    read_manifest,
)
from pipeline.run.revisions import one_revision
from pipeline.sampling.job import Job, requests_of
from pipeline.sampling.shards import Shard, shard_plan, shards_in
from pipeline.sampling.store import Store
from pipeline.verify.basis import tags_digest

MAX_NAMED = 8  # of the shards that are missing


@dataclass(frozen=True, slots=True)
class Merge:
    """A stage that is being put together of `shards`, and the commits that their models were loaded at."""

    stage: StageRun
    shards: dict[Shard, Manifest]
    revisions: dict[str, str]

    def stores(self, prefix: str) -> list[Store]:
        whole = self.stage.directory
        return [Store(shard.directory(whole), prefix) for shard in self.shards]

    @property
    def manifests(self) -> list[Manifest]:
        return list(self.shards.values())


def begin_merge(directory: Path, plan: Plan, start: Start) -> Merge | None:
    """Take the directory of a stage for the union of its shards; None where it is up to date.

    StageError while a shard is missing, unfinished, changed since or of another plan, or where two had a
    model at two revisions.
    """
    whole = read_manifest(directory)
    up_to_date = whole is not None and whole.fingerprint == plan.fingerprint and not start.force
    shards = {} if up_to_date else finished_shards(directory, plan, start)
    for shard in shards:
        check_outputs(shard.directory(directory))
    noted = {
        str(shard.directory(directory)): manifest.notes.get("revisions", {})
        for shard, manifest in shards.items()
    }
    revisions = one_revision(directory.parent, noted)
    # what an unsharded attempt bought lies aside then: each shard has adopted what it wanted of it
    stage = begin(directory, plan, start, anew=True)
    return None if stage is None else Merge(stage, shards, revisions)


def merge_store(parts: Iterable[Store], store: Store, job: Job) -> None:
    """Fill an empty store with all that `parts` hold, and read it: a key that stands twice, or of another
    request, is a StageError."""
    held = list(parts)
    for number, path in enumerate(path for part in held for path in part.shards()):
        link(path, store.shard_path(number))
    join((part.verdicts_path for part in held), store.verdicts_path)
    join((part.failures_path for part in held), store.failures_path)
    store.load(requests_of(job).values(), tags_digest(job.model.tags))


def finished_shards(directory: Path, plan: Plan, start: Start) -> dict[Shard, Manifest]:
    """The manifests of all shards of the one number of shards that is complete."""
    begun = shards_in(directory)
    command = f"python -m pipeline {plan.stage} --recipe {start.recipe} --shard"
    if not begun:
        raise StageError(f"{directory}: no shard was begun. Run: {command} 0/N, and so on to N-1/N")
    faults: dict[int, str] = {}
    for of in sorted({shard.of for shard in begun}):
        shards = [Shard(of, number) for number in range(of)]
        held = {shard: read_manifest(shard.directory(directory)) for shard in shards}
        fault = missing_in(held, set(begun), command) or foreign_in(held, directory, plan)
        if not fault:
            return {shard: manifest for shard, manifest in held.items() if manifest is not None}
        faults[of] = fault
    raise StageError(
        f"{directory}: cannot be merged. " + " ".join(f"Of {of} shards {faults[of]}." for of in faults)
    )


def missing_in(held: Mapping[Shard, Manifest | None], begun: set[Shard], command: str) -> str:
    """Which of the shards are not there or not finished; empty where all are."""
    missing = [shard for shard in held if shard not in begun]
    open_ones = [shard for shard, manifest in held.items() if manifest is None and shard in begun]
    for shards, state in ((missing, "not begun"), (open_ones, "not finished")):
        if shards:
            names = ", ".join(map(str, shards[:MAX_NAMED])) + (", ..." if len(shards) > MAX_NAMED else "")
            verb = "is" if len(shards) == 1 else "are"
            return f"{len(shards)} {verb} {state} ({names}); run: {command} {shards[0]}"
    return ""


def foreign_in(held: Mapping[Shard, Manifest | None], directory: Path, plan: Plan) -> str:
    """How the first shard of another plan differs; empty where none is."""
    for shard, manifest in held.items():
        wanted = shard_plan(plan, shard)
        if manifest is not None and manifest.fingerprint != wanted.fingerprint:
            known = {name: getattr(manifest, name) for name in wanted.identity()}
            lines = "\n  ".join(difference(known, wanted.identity()))
            return (
                f"{shard} ({shard.directory(directory)}) is of another plan; what differs:\n  "
                f"{lines}\nRun that shard again with --force, or merge with the recipe that it was made with"
            )
    return ""


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
