"""Generate out of its finished shards: the one result, as if one process had sampled it.

Reads runs/<name>/generate/shards/*-of-<n>/ (pipeline.sampling.merging).

    python -m pipeline generate --recipe recipes/demo.yaml --merge
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipeline.run.contract import Manifest
from pipeline.sampling import Store, Tally
from pipeline.sampling.merging import begin_merge, merge_store
from pipeline.sampling.spending import refuse_failures
from teachers.generate import Prepared, finish


def merge(prepared: Prepared) -> None:
    """Finish generate from its shards. StageError while they are not the whole."""
    begun = begin_merge(prepared.directory, prepared.plan, prepared.context.start)
    if begun is None:
        return
    with begun.stage as stage, Store(begun.stage.directory) as store:
        merge_store(begun.stores(store.prefix), store, prepared.job)
        tally = tally_of(begun.manifests)
        refuse_failures("generate", tally, prepared.context.recipe.generate.max_failure_rate, store)
        notes: dict[str, Any] = {str(shard): manifest.notes for shard, manifest in begun.shards.items()}
        notes = {"shards": notes} | ({"revisions": begun.revisions} if begun.revisions else {})
        finish(stage, prepared, store, tally, notes, begun.manifests)


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
