"""A process that asks hostile servers, to be measured: how much memory the server engine takes above its start.

    python -m tests.hostile_child MAX_TOKENS URL...

Prints {"start_mb", "peak_mb", "failed"} as JSON: resident memory before the first request, and at its highest.
"""

import asyncio
import json
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from pipeline.errors import EngineError
from pipeline.flags import EngineFlags
from pipeline.recipe.schema import Samples, Sampling
from pipeline.sampling import Options, Store, Tally, collect, start_engine
from tests.collect_child import JOB, MODEL, make_problems

CONCURRENCY = 256


def resident_mb(name: str) -> float:
    """VmRSS or VmHWM of this process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def ask(url: str, max_tokens: int, directory: Path) -> Tally | str:
    sampling = Sampling(temperature=1.0, max_tokens=max_tokens)
    job = replace(JOB, sampling=sampling, samples=Samples(keep=1, max=1))
    flags = EngineFlags(
        engine="server", urls=(url,), concurrency=CONCURRENCY, request_timeout_seconds=3.0, outage_seconds=3.0
    )
    with Store(directory) as store:
        async with start_engine(MODEL, flags) as engine:
            return await collect(job, make_problems(CONCURRENCY), engine, store, None, Options(CONCURRENCY))


def main(max_tokens: int, urls: list[str]) -> None:
    start, failed = resident_mb("VmRSS"), {}
    for url in urls:
        with tempfile.TemporaryDirectory() as directory:
            try:
                tally = asyncio.run(ask(url, max_tokens, Path(directory)))
                failed[url] = dict(tally.failed)
            except EngineError as error:
                failed[url] = str(error)
    print(json.dumps({"start_mb": start, "peak_mb": resident_mb("VmHWM"), "failed": failed}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
