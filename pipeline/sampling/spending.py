"""What a stage that samples has spent in all of its processes, and when too many requests failed."""

import json
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import StageError
from pipeline.run.contract import StageRun, Usage
from pipeline.sampling.loop import Tally
from pipeline.sampling.store import Failure, Store

LAST_BYTES = 64 * 2**10  # more than a failure has


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


def refuse_failures(stage: str, tally: Tally, limit: float, store: Store) -> None:
    """StageError where more than `limit` of the requests failed; everything is saved by then."""
    num_failed = sum(tally.failed.values())
    num_traces = tally.found + tally.adopted + tally.sampled
    if num_failed > limit * (num_traces + num_failed):
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in tally.failed.most_common())
        raise StageError(
            f"{stage}: {num_failed:,} of {num_traces + num_failed:,} requests failed ({kinds}), more than "
            f"generate.max_failure_rate {limit:g} allows. {last_words(store.failures_path)}. All "
            f"{num_traces:,} finished traces are saved in {store.directory}, each failure is in "
            f"{store.failures_path.name}. Repair the cause and run the same command again: it asks only for "
            "what is missing"
        )


def last_words(failures: Path) -> str:
    """The last failure of a file, in the server's own words."""
    with failures.open("rb") as file:
        file.seek(max(failures.stat().st_size - LAST_BYTES, 0))
        line = file.read().rstrip(b"\n").rpartition(b"\n")[2]
    failure = Failure(**json.loads(line))
    return f"The last one, {failure.kind}: {failure.detail or 'without a word'}"


def usage_of(spent: dict[str, float], found: int, store: Store, correct: int) -> Usage:
    """Tokens of all traces in the store, and what all processes of the stage had the engine make of them.

    `found` is what the last process had no need to sample. A kill takes the last second of engine time. No
    tokens are stated where a server has not counted those of a trace.
    """
    keys = store.keys
    sampled_tokens = keys.output_tokens - int(spent["adopted_tokens"])
    seconds = spent["engine_seconds"]
    if keys.uncounted:  # a sum without them would be taken for the whole
        return Usage(
            sampled=keys.num_traces - int(spent["adopted"]),
            adopted=int(spent["adopted"]),
            found=found,
            engine_seconds=round(seconds, 2),
        )
    return Usage(
        prompt_tokens=keys.prompt_tokens,
        output_tokens=keys.output_tokens,
        sampled=keys.num_traces - int(spent["adopted"]),
        adopted=int(spent["adopted"]),
        found=found,
        sampled_output_tokens=sampled_tokens,
        engine_seconds=round(seconds, 2),
        tokens_per_second=round(sampled_tokens / seconds, 1) if seconds else None,
        tokens_per_kept=round(keys.output_tokens / correct, 1) if correct else None,
    )
