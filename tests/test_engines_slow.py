"""The real engines and what may happen to them: kills, deaths, interrupts, and servers that go away."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.cards import sampled_teacher
from pipeline.recipe import ProceduralSource, Samples, Sampling
from pipeline.records import Problem, to_json
from pipeline.sampling import EngineFlags, Job, Options, Store, Tally, collect, start_engine
from pipeline.sampling.processes import kill, with_children
from pipeline.sources import load_source
from pipeline.verify import VerifierPool
from tests.collect_child import wait_for_go
from tests.test_kills import Growth, start_child, tell_to_go, wait_for_lines, whole_lines
from tests.test_sampling import keys_in

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
COUNT = 400
FLAGS = EngineFlags(concurrency=64, kv_cache_gib=1)
CONFIG = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 3}


def make_job(keep: int, most: int) -> Job:
    sampling = Sampling(temperature=1.0, max_tokens=384)
    return Job(sampled_teacher("embedded-moe"), "boxed", sampling, Samples(keep=keep, max=most), 0)


def make_problems(count: int) -> list[Problem]:
    source = ProceduralSource(reasoning_gym="chain_sum", size=count, config=CONFIG)
    return list(load_source(source, 0))


async def collect_here(directory: Path, count: int) -> None:
    """Make an engine ready, wait to be told, then collect 2 samples each of `count` problems."""
    job = make_job(2, 2)
    async with start_engine(job.model, FLAGS) as engine:
        await engine.ready()
        await asyncio.to_thread(wait_for_go)
        with VerifierPool(workers=1) as pool, Store(directory) as store:
            await collect(job, make_problems(count), engine, store, pool, Options(64))


@pytest.fixture
def collectors(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Five processes with vLLM in each, which start side by side; none opens the store before its turn."""
    children = [start_child("tests.test_engines_slow", tmp_path, COUNT) for _ in range(5)]
    try:
        yield children
    finally:
        for child in children:
            kill(with_children(child.pid))
            child.communicate()


def wait_for_end(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_kill_9_and_an_interrupt_of_the_real_engine_lose_nothing_and_leave_nothing(
    collectors: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    growth, before = Growth(tmp_path), set()
    *stopped, last = collectors
    for wanted, child in zip((100, 250, 400, 550), stopped, strict=True):
        tell_to_go(child)
        wait_for_lines(child, growth, wanted, seconds=240)
        processes = with_children(child.pid)
        assert len(processes) > 2, "engine core and verifiers are processes of their own"
        child.send_signal(signal.SIGINT if child is stopped[-1] else signal.SIGKILL)
        _, errors = child.communicate(timeout=60)
        assert child.returncode != 0
        assert wait_for_end(processes, 20) == []
        now = whole_lines(tmp_path)
        assert before <= now
        before = now
    assert "launching nothing more" in errors
    assert all(path.read_bytes().endswith(b"}\n") for path in tmp_path.glob("traces-*.jsonl"))
    tell_to_go(last)
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    found = keys_in(tmp_path)
    assert set(found) == {(problem.id, i) for problem in make_problems(COUNT) for i in range(2)}
    assert set(found.values()) == {1}
    assert before <= whole_lines(tmp_path)


def test_a_dead_engine_is_started_again_and_nothing_is_lost(tmp_path: Path) -> None:
    async def collection() -> tuple[Tally, int]:
        job, problems, growth = make_job(2, 2), make_problems(300), Growth(tmp_path)
        with VerifierPool(workers=1) as pool, Store(tmp_path) as store:
            async with start_engine(job.model, FLAGS) as engine:

                async def murder() -> None:
                    while growth.num_lines() < 100:
                        await asyncio.sleep(0.02)
                    core = [p for p in with_children(os.getpid()) if "EngineCore" in " ".join(p.cmdline())]
                    kill(core or with_children(os.getpid())[:1])

                crime = asyncio.create_task(murder())
                tally = await collect(job, problems, engine, store, pool, Options(64))
                await crime
                return tally, engine.notes["restarts"]

    tally, restarts = asyncio.run(collection())
    assert restarts == 1
    assert tally.sampled == 600
    assert set(keys_in(tmp_path).values()) == {1}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[list[tuple[int, "subprocess.Popen[bytes]"]]]:
    """Two `serve-teacher` processes with the embedded teacher, and their ports."""
    started = []
    for port in (free_port(), free_port()):
        command = [sys.executable, "-m", "pipeline", "serve-teacher", "--port", str(port)]
        log = (tmp_path / f"server-{port}.log").open("wb")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        started.append((port, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)))
    try:
        for port, server in started:
            wait_until_served(port, server, tmp_path / f"server-{port}.log")
        yield started
    finally:
        for _, server in started:
            kill(with_children(server.pid))
            server.wait()


def wait_until_served(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(log.read_text()[-2000:])


def test_one_of_two_vllm_servers_is_killed_in_mid_run(
    replicas: list[tuple[int, "subprocess.Popen[bytes]"]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    urls = tuple(f"http://127.0.0.1:{port}/v1" for port, _ in replicas)
    job, problems, directory = make_job(2, 2), make_problems(300), tmp_path / "store"
    growth = Growth(directory)

    async def collection() -> tuple[Tally, dict[str, dict[str, int]]]:
        flags = EngineFlags("server", urls=urls, concurrency=64)
        with VerifierPool(workers=1) as pool, Store(directory) as store:
            async with start_engine(job.model, flags) as engine:

                async def murder() -> None:
                    while growth.num_lines() < 100:
                        await asyncio.sleep(0.02)
                    kill(with_children(replicas[0][1].pid))

                crime = asyncio.create_task(murder())
                tally = await collect(job, problems, engine, store, pool, Options(64))
                await crime
        assert engine.notes["prompts_compared"]
        return tally, engine.notes["servers"]

    tally, servers = asyncio.run(collection())
    assert servers[urls[0]]["down"] == 1
    assert servers[urls[1]]["answered"] > servers[urls[0]]["answered"] > 0
    assert f"{urls[0]} is down" in caplog.text
    assert not tally.failed
    found = keys_in(directory)
    assert set(found) == {(problem.id, i) for problem in problems for i in range(2)}
    assert set(found.values()) == {1}
    traces = list(Store(directory).traces())
    assert sum(trace.finish_reason == "stop" and bool(trace.thinking) for trace in traces) > 400
    assert to_json(traces[0])


if __name__ == "__main__":
    asyncio.run(collect_here(Path(sys.argv[1]), int(sys.argv[2])))
