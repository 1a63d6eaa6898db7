"""One replica of `--engine ray` against one behind Ray Serve LLM: output tokens a second of the same loop, in one run.

    make setup EXTRAS=ray && python -m tests.bench.bench_ray_serve [--problems 250] [--rounds 3] [--environments .bench]

Both have the same vLLM with the same arguments, one thread for it, and the same requests; Ray Serve LLM gets them
from `--engine server`, over HTTP, in an environment of its own that adds tests/bench/peers/serve.lock to the
installed lock. Starts count for neither. Prints JSON: tokens a second of each, medians over the rounds, and how
many times the served one's --engine ray has.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.flags import EngineFlags
from pipeline.sampling import start_engine
from pipeline.sampling.engines.vllm import engine_arguments
from tests.bench.bench_generate import CONCURRENCY, loop_rate, make_job, make_problems, show, stay_quiet
from tests.bench.bench_peers import ENVIRONMENTS, SETTINGS, environment

PORT = 8131
ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
SERVER = Path(__file__).parent / "peers" / "serve_model.py"
OURS = ("revision", "tokenizer_revision", "use_tqdm_on_load")  # which it sets by itself


@contextmanager
def served(job: Any, folder: Path) -> Iterator[str]:
    """The URL of Ray Serve LLM with the model of a job."""
    arguments = engine_arguments(job.model, EngineFlags(concurrency=CONCURRENCY, kv_cache_gib=1))
    model = arguments.pop("model")
    given = {name: value for name, value in arguments.items() if value is not None and name not in OURS}
    asked = {"port": PORT, "name": job.model.name, "model": model, "arguments": given}
    command = [str(environment("serve", folder)), str(SERVER), json.dumps(asked)]
    said = folder / "serve.log"
    with (
        said.open("wb") as log,
        subprocess.Popen(
            command,
            env=os.environ | SETTINGS | ONE_THREAD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        if not any(line.strip() == "ready" for line in server.stdout):
            raise SystemExit(
                f"Ray Serve LLM did not start ({said}); on busy cores it gives its own actors up"
            )
        try:
            yield f"http://127.0.0.1:{PORT}/v1"
        finally:
            server.stdin.close()
            server.stdout.read()


async def rates_of(job: Any, problems: list[Any], flags: EngineFlags, rounds: int) -> list[float]:
    async with start_engine(job.model, flags) as engine:
        await engine.ready()
        await loop_rate(job, problems[:32], engine, None)
        return [await loop_rate(job, problems, engine, None) for _ in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    given = parser.parse_args()
    stay_quiet()
    job, problems = make_job(), make_problems(given.problems)
    with served(job, given.environments) as url:
        flags = EngineFlags(engine="server", urls=(url,), concurrency=CONCURRENCY)
        behind = asyncio.run(rates_of(job, problems, flags, given.rounds))
    flags = EngineFlags(engine="ray", replicas=1, concurrency=CONCURRENCY, kv_cache_gib=1)
    ours = asyncio.run(rates_of(job, problems, flags, given.rounds))
    show("Ray Serve LLM", behind)
    show("--engine ray", ours)
    serve_rate, ray_rate = statistics.median(behind), statistics.median(ours)
    print(
        json.dumps(
            {
                "serve": round(serve_rate),
                "ray": round(ray_rate),
                "ratio": round(ray_rate / serve_rate, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
