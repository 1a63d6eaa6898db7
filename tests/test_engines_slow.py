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
from tests.test_kills import num_lines, whole_lines
from tests.test_sampling import keys_in

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 3}


def make_job(keep: int, most: int) -> Job:
    sampling = Sampling(temperature=1.0, max_tokens=384)
    return Job(sampled_teacher("embedded-moe"), "boxed", sampling, Samples(keep=keep, max=most), 0)


def make_problems(count: int) -> list[Problem]:
    source = ProceduralSource(reasoning_gym="chain_sum", size=count, config=CONFIG)
    return list(load_source(source, 0))


def start_child(directory: Path, count: int) -> subprocess.Popen[str]:
    """A process that collects 2 samples each of `count` problems with vLLM in it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.test_engines_slow", str(directory), str(count)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


async def collect_here(directory: Path, count: int) -> None:
    job = make_job(2, 2)
    with VerifierPool(workers=1) as pool, Store(directory) as store:
        async with start_engine(job.model, EngineFlags(concurrency=64, kv_cache_gib=1)) as engine:
            await collect(job, make_problems(count), engine, store, pool, Options(64))


def wait_for_lines(child: subprocess.Popen[str], directory: Path, wanted: int) -> list[psutil.Process]:
    """The child's processes, once its store has `wanted` traces."""
    end = time.monotonic() + 240
    while num_lines(directory) < wanted and time.monotonic() < end:
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.02)
    assert num_lines(directory) >= wanted
    return with_children(child.pid)


def wait_for_end(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_kill_9_with_the_real_engine_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    count, before = 400, set()
    for wanted in (100, 300, 500):
        child = start_child(tmp_path, count)
        processes = wait_for_lines(child, tmp_path, wanted)
        child.kill()
        child.communicate()
        assert wait_for_end(processes, 20) == []
        now = whole_lines(tmp_path)
        assert before <= now
        before = now
    child = start_child(tmp_path, count)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    found = keys_in(tmp_path)
    assert set(found) == {(problem.id, i) for problem in make_problems(count) for i in range(2)}
    assert set(found.values()) == {1}
    assert before <= whole_lines(tmp_path)


def test_an_interrupt_of_the_real_engine_leaves_a_resumable_store_and_no_process(tmp_path: Path) -> None:
    child = start_child(tmp_path, 2000)
    processes = wait_for_lines(child, tmp_path, 50)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert "launching nothing more" in errors
    assert child.returncode != 0
    assert wait_for_end(processes, 20) == []
    assert all(line.endswith(b"}") for line in whole_lines(tmp_path))


def test_a_dead_engine_is_started_again_and_nothing_is_lost(tmp_path: Path) -> None:
    async def collection() -> tuple[Tally, int]:
        job, problems = make_job(2, 2), make_problems(300)
        flags = EngineFlags(concurrency=64, kv_cache_gib=1)
        with VerifierPool(workers=1) as pool, Store(tmp_path) as store:
            async with start_engine(job.model, flags) as engine:

                async def murder() -> None:
                    while num_lines(tmp_path) < 100:
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
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
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

    async def collection() -> tuple[Tally, dict[str, dict[str, int]]]:
        flags = EngineFlags("server", urls=urls, concurrency=64)
        with VerifierPool(workers=1) as pool, Store(directory) as store:
            async with start_engine(job.model, flags) as engine:

                async def murder() -> None:
                    while num_lines(directory) < 100:
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
