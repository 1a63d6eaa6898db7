"""How long a resume takes and how much it holds when the store has a million traces.

    python -m tests.bench.bench_resume [--traces 1000000]

Prints JSON {"write_seconds", "traces", "first_launch_seconds", "first_launch_cpu_seconds", "peak_mb"}; the
bound of the design is a start in under 10 s and under 500 MB.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import EngineError
from pipeline.recipe.cards import SampledModel, Tags
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Samples, Sampling
from pipeline.records import Problem, Trace, Verdict
from pipeline.sampling import Job, Store, collect, request_fingerprint
from pipeline.verify import VerifierPool
from pipeline.verify.basis import basis_of, tags_digest

MODEL = SampledModel("none", "none", None, "bfloat16", None, 1000, Tags(), identity={"model": "none"})
SAMPLES = 4
JOB = Job(MODEL, PROMPTS["plain"], Sampling(temperature=1.0, max_tokens=100), Samples(keep=2, max=SAMPLES), 0)


@dataclass(frozen=True, slots=True)
class Numbered:
    """Problems made anew at each iteration, as a problems.jsonl is read; the last one has no traces."""

    count: int

    def __iter__(self) -> Iterator[Problem]:
        for i in range(self.count):
            yield Problem(f"{i * 2654435761 % 2**64:016x}", f"What is {i} + 1?", str(i + 1), "text", "", "")


class FirstLaunch:
    """An engine that notes when it is first asked, and answers nothing."""

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self.asked_at = self.cpu_at = 0.0

    async def ready(self) -> None:
        self.asked_at = time.perf_counter()
        self.cpu_at = time.process_time()
        raise EngineError("as far as this goes")

    async def prompts(self) -> None:
        return None


def write_store(directory: Path, traces: int) -> float:
    request, tags, start = request_fingerprint(JOB), tags_digest(MODEL.tags), time.perf_counter()
    text = "so " * 200 + "\n</think>\n\n\\boxed{1}"
    with Store(directory) as store:
        store.load(request, tags)
        for problem in Numbered(traces // SAMPLES):
            basis = basis_of(problem, tags)
            for sample in range(SAMPLES):
                store.add_trace(Trace(problem.id, sample, 1, request, text, "stop", 9, 300, "none"))
                status = "correct" if sample > 1 else "wrong"
                store.add_verdict(
                    Verdict(problem.id, sample, status, basis, "equal", "1", "string", "text", "1", 0.001)
                )
    return time.perf_counter() - start


async def resume(directory: Path, traces: int) -> dict[str, float]:
    """Load the store, pass over all that is done, and reach the first sample that is not."""
    engine, start, cpu = FirstLaunch(), time.perf_counter(), time.process_time()
    with VerifierPool(workers=1) as pool, Store(directory) as store:
        with contextlib.suppress(EngineError):
            await collect(JOB, Numbered(traces // SAMPLES + 1), engine, store, pool)
        held = store.keys.num_traces
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "traces": held,
        "first_launch_seconds": engine.asked_at - start,
        "first_launch_cpu_seconds": engine.cpu_at - cpu,
        "peak_mb": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path)
    flags = parser.parse_args()
    if flags.directory:  # the child: its memory is the resume's alone
        print(json.dumps(asyncio.run(resume(flags.directory, flags.traces))))
        return
    with tempfile.TemporaryDirectory() as directory:
        written = write_store(Path(directory), flags.traces)
        command = [sys.executable, "-m", "tests.bench.bench_resume", "--directory", directory]
        child = subprocess.run(
            [*command, "--traces", str(flags.traces)], capture_output=True, text=True, check=True
        )
    figures = {"write_seconds": written, **json.loads(child.stdout.splitlines()[-1])}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
