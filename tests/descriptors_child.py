"""A process that may open few files, and collects: how it ends.

    python -m tests.descriptors_child URL DIRECTORY LIMIT

The limit is set when server, store and pool are there, so it strikes at the connections or at the workers.
"""

import asyncio
import resource
import sys
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.flags import EngineFlags
from pipeline.sampling import Options, Store, collect, start_engine
from pipeline.verify import VerifierPool
from tests.collect_child import JOB, MODEL, make_problems

CONCURRENCY = 64


async def main(url: str, directory: str, limit: int) -> None:
    flags = EngineFlags(engine="server", urls=(url,), concurrency=CONCURRENCY, outage_seconds=5.0)
    with VerifierPool(workers=2) as pool, Store(Path(directory)) as store:
        async with start_engine(MODEL, flags) as engine:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            tally = await collect(JOB, make_problems(100), engine, store, pool, Options(CONCURRENCY))
            print("solved", tally.solved, "given up", tally.given_up)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    except PipelineError as error:
        sys.exit(f"error: {error}")
