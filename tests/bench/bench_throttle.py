"""What refusals cost: traces a second from a server that refuses some requests, over one that refuses none.

    python -m tests.bench.bench_throttle [--problems 1500] [--concurrency 64]

A scripted teacher in a process of its own answers in 0.4 s on average. Prints JSON: traces/s without a refusal,
and of each kind of refusal the rate over that one, the requests for each trace, and how often the limit was cut.
`all_429` refuses everything for 10 s: the number of requests shows that the engine lets it rest.
"""

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.flags import EngineFlags
from pipeline.recipe.schema import Samples
from pipeline.sampling import Options, Store, Tally, collect, start_engine
from tests.collect_child import JOB, MODEL, make_problems
from tests.served import scripted_server

DELAY_SECONDS = 0.4
REFUSALS = [
    "good", "refuse_503_1", "refuse_503_5", "refuse_429_1", "refuse_429_5", "refuse_429_5_after_1",
    "refuse_503_5_after_1", "refuse_429_20",
]  # fmt: skip


async def collect_from(
    url: str, num_problems: int, concurrency: int, directory: Path
) -> tuple[Tally, dict[str, Any]]:
    job = replace(JOB, samples=Samples(keep=1, max=1))
    flags = EngineFlags(engine="server", urls=(url,), concurrency=concurrency)
    with Store(directory) as store:
        async with start_engine(MODEL, flags) as engine:
            problems = make_problems(num_problems)
            tally = await collect(job, problems, engine, store, None, Options(concurrency))
    return tally, next(iter(engine.notes["servers"].values()))


def measure(behaviour: str, num_problems: int, concurrency: int) -> dict[str, float]:
    with scripted_server(DELAY_SECONDS, behaviour) as url, tempfile.TemporaryDirectory() as directory:
        tally, server = asyncio.run(collect_from(url, num_problems, concurrency, Path(directory)))
    return {
        "traces_per_second": round(tally.sampled / tally.engine_seconds, 1),
        "requests_per_trace": round(server["requests"] / tally.sampled, 3),
        "cuts": server.get("slowed_down", 0),
        "failed": sum(tally.failed.values()),
    }


def ask_what_refuses_all(concurrency: int, seconds: float) -> dict[str, float]:
    """How many requests a server gets in so many seconds that refuses every one of them."""

    async def ask(url: str, directory: Path) -> None:
        work = asyncio.create_task(collect_from(url, 4 * concurrency, concurrency, directory))
        await asyncio.wait([work], timeout=seconds)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    with scripted_server(0.0, "refuse_429_100") as url, tempfile.TemporaryDirectory() as directory:
        begun = time.monotonic()
        asyncio.run(ask(url, Path(directory)))
        lasted = time.monotonic() - begun
        num_asked = asyncio.run(seen(url))
    return {"seconds": round(lasted, 1), "requests": num_asked, "concurrency": concurrency}


async def seen(url: str) -> int:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(url.replace("/v1", "/seen")) as response:
        return int(sum((await response.json()).values()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--problems", type=int, default=1500)
    parser.add_argument("--concurrency", type=int, default=64)
    flags = parser.parse_args()
    found: dict[str, Any] = {}
    for behaviour in REFUSALS:
        found[behaviour] = measure(behaviour, flags.problems, flags.concurrency)
        found[behaviour]["over_good"] = round(
            found[behaviour]["traces_per_second"] / found["good"]["traces_per_second"], 2
        )
    found["all_429"] = ask_what_refuses_all(flags.concurrency, 10.0)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
