"""A process to be killed: collects against a scripted teacher as the generate stage does.

python -m tests.collect_child URL DIRECTORY NUM_PROBLEMS CONCURRENCY

It waits for a line `go` on stdin before it opens the store, so that the next child can start meanwhile.
"""

import asyncio
import logging
import sys
from pathlib import Path

from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel, Tags
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Samples, Sampling
from pipeline.records import Problem, problem_id
from pipeline.sampling import Job, Options, Store, collect, start_engine
from pipeline.verify import VerifierPool

MODEL = SampledModel(
    "scripted", "scripted", None, "bfloat16", None, 1000, Tags(), identity={"model": "scripted"}
)
JOB = Job(MODEL, PROMPTS["plain"], Sampling(temperature=1.0, max_tokens=100), Samples(keep=2, max=6), 0)


def make_problems(count: int, behaviour: str = "") -> list[Problem]:
    """Sums whose answers are compared as text; `behaviour` in [brackets] is for the scripted teacher."""
    texts = [f"What is {i} + {7 * i % 97}? {behaviour}".strip() for i in range(count)]
    golds = [str(i + 7 * i % 97) for i in range(count)]
    return [
        Problem(problem_id(text), text, gold, "text", "test", "none")
        for text, gold in zip(texts, golds, strict=True)
    ]


async def main(url: str, directory: str, num_problems: int, concurrency: int) -> None:
    flags = EngineFlags(engine="server", urls=(url,), concurrency=concurrency)
    problems = make_problems(num_problems)
    with VerifierPool(workers=1) as pool:
        wait_for_go()
        with Store(Path(directory), max_shard_bytes=100_000) as store:
            async with start_engine(MODEL, flags) as engine:
                print(await collect(JOB, problems, engine, store, pool, Options(concurrency)))


def wait_for_go() -> None:
    """Return when the parent says `go`; end where it has gone without a word."""
    if sys.stdin.readline().strip() != "go":
        sys.exit("never told to go")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
