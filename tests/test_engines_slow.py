"""The real engines and what may happen to them: kills, deaths, interrupts, and servers that go away."""

import asyncio
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from huggingface_hub import constants

from pipeline.flags import EngineFlags
from pipeline.problems.sources import procedural_problems
from pipeline.recipe.cards import sampled_teacher, teacher_card
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Samples, Sampling
from pipeline.recipe.sources import ProceduralSource
from pipeline.records import STOP, Problem, to_json
from pipeline.render import split_response
from pipeline.sampling import Engine, Job, Options, Request, Store, Tally, collect, start_engine
from pipeline.sampling.engines.processes import kill, with_children
from pipeline.sampling.prompts import load_prompts
from pipeline.verify import VerifierPool
from tests.collect_child import wait_for_go
from tests.conftest import ROOT, command_line
from tests.served import free_port, wait_until_served
from tests.test_kills import Growth, start_child, tell_to_go, wait_for_lines, whole_lines
from tests.test_sampling import keys_in

pytestmark = pytest.mark.slow

# several engines side by side: vLLM would bind the threads of each to the same cores
SHARED_CORES = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
COUNT = 400
FLAGS = EngineFlags(concurrency=64, kv_cache_gib=1)
CONFIG = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 3}


def make_job(keep: int, most: int) -> Job:
    sampling = Sampling(temperature=1.0, max_tokens=384)
    model = sampled_teacher("embedded-moe", teacher_card("embedded-moe"))
    return Job(model, PROMPTS["boxed"], sampling, Samples(keep=keep, max=most), 0)


def make_problems(count: int) -> list[Problem]:
    source = ProceduralSource(reasoning_gym="chain_sum", size=count, config=CONFIG)
    return list(procedural_problems(source, 0, reserved=False))


async def collect_here(directory: Path, count: int) -> None:
    """Make an engine ready, wait to be told, then collect 2 samples each of `count` problems."""
    job = make_job(2, 2)
    async with start_engine(job.model, FLAGS) as engine:
        await engine.ready()
        await asyncio.to_thread(wait_for_go)
        with VerifierPool(workers=1) as pool, Store(directory) as store:
            await collect(job, make_problems(count), engine, store, pool, Options(64))


@dataclass(frozen=True)
class Collectors:
    """Processes with vLLM in each, which take their turns at one store."""

    directory: Path
    children: list[subprocess.Popen[str]]


@pytest.fixture(scope="module")
def collectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collectors]:
    """Five, which start side by side and beside the first test: an engine's start keeps one core busy."""
    directory = tmp_path_factory.mktemp("collectors")
    children = [start_child("tests.test_engines_slow", directory, COUNT, **SHARED_CORES) for _ in range(5)]
    try:
        yield Collectors(directory, children)
    finally:
        for child in children:
            kill(with_children(child.pid))
            child.communicate()


def wait_for_end(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def surroundings() -> tuple[dict[str, str], bool]:
    """What of this process an engine must leave as it is."""
    return dict(os.environ), constants.HF_HUB_OFFLINE


async def keep_tokens(job: Job, problems: list[Problem], engine: Any, directory: Path) -> None:
    """Collect with tokens, hold them against the text, and score them: as likely as when they were sampled."""
    job = replace(job, keep_tokens=True, samples=Samples(keep=1, max=1))
    with Store(directory) as store:
        tally = await collect(job, problems, engine, store, None, Options(8))
    prompts = load_prompts(job.model)
    assert prompts is not None
    traces = list(Store(directory).traces())
    assert len(traces) == len(problems)
    for trace in traces:
        tokens = trace.tokens
        assert tokens is not None
        assert len(tokens.ids) == len(tokens.logprobs) == trace.output_tokens
        assert all(-50 < logprob <= 0 for logprob in tokens.logprobs)
        ids = tokens.ids[:-1] if trace.finish_reason == STOP else tokens.ids
        written, stored = (
            split_response(text, job.model.tags) for text in (prompts.decode(ids), trace.response)
        )
        assert written == stored
        question = next(problem.question for problem in problems if problem.id == trace.problem_id)
        scores = await engine.score(prompts.ids(job.prompt.messages(question)), tokens.ids)
        assert scores == pytest.approx(tokens.logprobs, abs=0.1)  # bf16, in another batch
    with Store(directory) as store:
        resumed = await collect(job, problems, engine, store, None, Options(8))
    assert (resumed.found, resumed.sampled, tally.sampled) == (len(problems), 0, len(problems))


async def sample_twice(job: Job, problem: Problem, engine: Engine) -> None:
    """With and without its tokens a response is the same."""
    prompt = engine.prompt(job.prompt.messages(problem.question))
    plain, kept = [
        await engine.sample(Request(prompt, job.sampling, 5, (problem.id, 0), keep)) for keep in (False, True)
    ]
    assert plain.tokens is None
    assert plain == replace(kept, tokens=None)


def test_a_dead_engine_is_started_again_and_nothing_is_lost(
    collectors: Collectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also keeps tokens where it is asked, and leaves the environment of this process as it was."""
    for name, value in SHARED_CORES.items():
        monkeypatch.setenv(name, value)
    # a local model needs no hub, though nobody said that there is none
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    importlib.import_module("vllm")  # what an import sets is of the import, not of the engine
    before = surroundings()

    async def collection() -> tuple[Tally, int]:
        directory = tmp_path / "store"
        job, problems, growth = make_job(2, 2), make_problems(300), Growth(directory)
        with VerifierPool(workers=1) as pool, Store(directory) as store:
            async with start_engine(job.model, FLAGS) as engine:
                await engine.ready()
                assert surroundings() == before
                await engine.prompts()
                await sample_twice(job, problems[0], engine)
                await keep_tokens(job, problems[:8], engine, tmp_path / "kept")

                async def murder() -> None:
                    while growth.num_lines() < 100:
                        await asyncio.sleep(0.02)
                    cores = [p for p in psutil.Process().children() if "EngineCore" in " ".join(p.cmdline())]
                    assert len(cores) == 1, "the collectors' engines are children of theirs"
                    kill(cores)
                    # as the next request would: before vLLM itself has told those that wait
                    await engine._bury(engine._llm)

                crime = asyncio.create_task(murder())
                tally = await collect(job, problems, engine, store, pool, Options(64))
                await crime
                return tally, engine.notes["restarts"]

    tally, restarts = asyncio.run(collection())
    assert restarts == 1
    assert tally.sampled == 600
    assert set(keys_in(tmp_path / "store").values()) == {1}
    assert surroundings() == before


class Replicas:
    """One `serve-teacher` process with two servers of the embedded teacher; its output goes to `directory`."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "servers.log"
        self.ports: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start them, once; `wait` returns when both answer."""
        if self.process is not None:
            return
        port = free_port(2)
        self.ports = [port, port + 1]
        command = command_line("serve-teacher", "--port", port, "--replicas", 2)
        with self.log.open("wb") as log:
            environment = {**os.environ, **SHARED_CORES}
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)

    def wait(self) -> "subprocess.Popen[bytes]":
        self.start()
        assert self.process is not None
        for port in self.ports:
            wait_until_served(port, self.process, self.log)
        return self.process

    def server_of(self, port: int) -> int:
        """The process that listens on one of the ports."""
        assert self.process is not None
        listening = psutil.Process(self.process.pid).children()
        return next(child.pid for child in listening if str(port) in child.cmdline())


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    servers = Replicas(tmp_path_factory.mktemp("servers"))
    try:
        yield servers
    finally:
        if servers.process is not None:
            kill(with_children(servers.process.pid))
            servers.process.wait()


def test_kill_9_and_an_interrupt_of_the_real_engine_lose_nothing_and_leave_nothing(
    collectors: Collectors, replicas: Replicas
) -> None:
    directory = collectors.directory
    growth, before = Growth(directory), set()
    *stopped, last = collectors.children
    for wanted, child in zip((100, 250, 400, 550), stopped, strict=True):
        tell_to_go(child)
        wait_for_lines(child, growth, wanted, seconds=240)
        replicas.start()  # for the last test; the engines of this one have started by now
        processes = with_children(child.pid)
        assert len(processes) > 2, "engine core and verifiers are processes of their own"
        child.send_signal(signal.SIGINT if child is stopped[-1] else signal.SIGKILL)
        _, errors = child.communicate(timeout=60)
        assert child.returncode != 0
        assert wait_for_end(processes, 20) == []
        now = whole_lines(directory)
        assert before <= now
        before = now
    assert "launching nothing more" in errors
    assert all(path.read_bytes().endswith(b"}\n") for path in directory.glob("traces-*.jsonl"))
    tell_to_go(last)
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    found = keys_in(directory)
    assert set(found) == {(problem.id, i) for problem in make_problems(COUNT) for i in range(2)}
    assert set(found.values()) == {1}
    assert before <= whole_lines(directory)


def test_one_of_two_vllm_servers_is_killed_in_mid_run(
    replicas: Replicas, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serving = replicas.wait()
    urls = tuple(f"http://127.0.0.1:{port}/v1" for port in replicas.ports)
    first = replicas.server_of(replicas.ports[0])
    job, problems, directory = make_job(2, 2), make_problems(300), tmp_path / "store"
    growth = Growth(directory)

    async def collection() -> tuple[Tally, dict[str, dict[str, int]]]:
        flags = EngineFlags(engine="server", urls=urls, concurrency=64)
        with VerifierPool(workers=1) as pool, Store(directory) as store:
            async with start_engine(job.model, flags) as engine:
                await keep_tokens(job, problems[:8], engine, tmp_path / "kept")

                async def murder() -> None:
                    while growth.num_lines() < 100:
                        await asyncio.sleep(0.02)
                    kill(with_children(first))

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
    splits = [
        split_response(trace.response, job.model.tags) for trace in traces if trace.finish_reason == STOP
    ]
    assert sum(split.closing == "closed" and bool(split.thinking) for split in splits) > 400
    assert to_json(traces[0])
    assert (
        f"port {replicas.ports[0]}: vllm serve ended with exit code -9; 1 go on" in replicas.log.read_text()
    )
    processes = with_children(serving.pid)
    serving.terminate()
    serving.wait(timeout=60)
    assert wait_for_end(processes, 20) == [], "a SIGTERM of serve-teacher leaves no server behind"


if __name__ == "__main__":
    asyncio.run(collect_here(Path(sys.argv[1]), int(sys.argv[2])))
