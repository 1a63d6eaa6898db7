"""Two replicas on a Ray cluster against one: output tokens a second of the same loop, taking turns in one run.

    make setup EXTRAS=ray && python -m tests.bench.bench_ray [--problems 250] [--rounds 3]

The cluster is one of this machine alone, with a core for each replica, to which all its processes are held; the
loop and its store run wherever there is room. While one is measured the other one rests. Prints JSON: tokens a
second of one and of two, medians over the rounds, and their ratio. Wants two cores that nobody else uses.
"""

import argparse
import asyncio
import json
import os
import statistics
from typing import Any

import psutil

from pipeline.flags import EngineFlags
from pipeline.sampling import start_engine
from pipeline.sampling.engines.processes import with_children
from tests.bench.bench_generate import loop_rate, make_job, make_problems, show, stay_quiet

FLAGS = EngineFlags(engine="ray", replicas=2, concurrency=256, kv_cache_gib=1)


def hold_to_cores() -> None:
    """Each replica with all its processes and threads on a core of its own."""
    below = psutil.Process().children(recursive=True)
    workers = [process for process in below if "ray::Worker" in " ".join(process.cmdline())]
    cores = sorted(os.sched_getaffinity(0))
    assert len(workers) == 2 <= len(cores), "two replicas want two cores"
    for worker, core in zip(workers, cores[-2:], strict=True):
        for process in with_children(worker.pid):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, {core})


async def measure(num_problems: int, rounds: int) -> tuple[list[float], list[float]]:
    """Rates of one replica and of two."""
    job, problems = make_job(), make_problems(num_problems)
    rates: tuple[list[float], list[float]] = ([], [])
    async with start_engine(job.model, FLAGS) as started:
        engine: Any = started
        await engine.ready()
        first, second = engine._replicas.all
        while first.down or second.down:
            await asyncio.sleep(0.1)
        hold_to_cores()
        await loop_rate(job, problems[:32], engine, None)
        for number in range(rounds):
            resting = (first, second)[number % 2]
            resting.down = True
            rates[0].append(await loop_rate(job, problems, engine, None))
            resting.down = False
            rates[1].append(await loop_rate(job, problems, engine, None))
        assert not any(replica.counts["down"] for replica in engine._replicas.all)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    stay_quiet()
    one, two = asyncio.run(measure(flags.problems, flags.rounds))
    for name, rates in {"one replica": one, "two replicas": two}.items():
        show(name, rates)
    one_rate, two_rate = statistics.median(one), statistics.median(two)
    figures = {"one": round(one_rate), "two": round(two_rate), "ratio": round(two_rate / one_rate, 3)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
