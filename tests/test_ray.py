"""A real Ray cluster on loopback, of two nodes with one core each, and the embedded teacher on both.

Ray is an extra: where it is not installed, what needs a cluster skips itself (make setup EXTRAS=ray).
"""

import asyncio
import importlib.util
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.errors import EngineError, RecipeError
from pipeline.flags import EngineFlags
from pipeline.records import Problem
from pipeline.sampling import Job, Options, Store, collect, start_engine
from pipeline.sampling.engines.base import RequestFailed
from pipeline.sampling.engines.ray import check_address, check_room, files_of, room_of_one, worker_flags
from tests.test_engines_slow import SHARED_CORES, Growth, make_job, make_problems, wait_for_end
from tests.test_sampling import keys_in

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: make setup EXTRAS=ray"
)
# workers as important as whoever starts them, and patience with a busy machine
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_agent_register_timeout_ms": "100000",
    "RAY_AUTH_MODE": "disabled",
    "RAY_memory_monitor_refresh_ms": "0",  # what else fills the memory is no reason to kill an engine
}
# of 127.0.0.1 Ray makes this machine's own address, on which nothing listens then
NODE = {
    "num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.2",
    "include_log_monitor": False,
}  # fmt: skip
FLAGS = EngineFlags(engine="ray", replicas=2, concurrency=32, kv_cache_gib=1, outage_seconds=1200.0)


def replicas_on(node: Any) -> list[psutil.Process]:
    """The processes of the actors that run on a node of the cluster."""
    (raylet,) = (info.process.pid for info in node.all_processes["raylet"])
    below = psutil.Process(raylet).children()
    return [process for process in below if "ray::Worker" in " ".join(process.cmdline())]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ |= {**RAY, **SHARED_CORES}
    made = Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "no_monitor": True}
    )
    try:
        made.add_node(**NODE)
        yield made
    finally:
        processes = [process for node in made.list_all_nodes() for process in replicas_on(node)]
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)
        assert wait_for_end(processes, 20) == []


async def take(job: Job, problems: list[Problem], engine: Any, directory: Path) -> dict[tuple[str, int], str]:
    """The text of every sample by its key, as it was stored."""
    with Store(directory) as store:
        await collect(job, problems, engine, store, None, Options(FLAGS.concurrency))
    assert set(keys_in(directory).values()) == {1}
    return {(trace.problem_id, trace.sample): trace.response for trace in Store(directory).traces()}


@needs_ray
@pytest.mark.slow
def test_two_replicas_take_what_one_engine_takes_and_lose_nothing_when_one_dies_and_a_node_goes(
    cluster: Any, tmp_path: Path
) -> None:
    """The undisturbed run, then one whose first replica is killed and, before it is back, the other one's node
    removed: what is left does all, and asks nothing twice."""
    job, few, many = make_job(2, 2), make_problems(30), make_problems(200)
    flags = replace(FLAGS, ray_address=cluster.address)
    head, other = cluster.head_node, cluster.list_all_nodes()[-1]

    async def on_the_cluster() -> tuple[dict[tuple[str, int], str], list[float], dict[str, Any]]:
        async with start_engine(job.model, flags) as engine:
            await engine.ready()
            while any(replica.down for replica in engine._replicas.all):
                await asyncio.sleep(0.1)
            texts = await take(job, few, engine, tmp_path / "few")
            prompt = engine.prompt(job.prompt.messages(few[0].question))
            scores = await engine.score(prompt, prompt[-8:])
            with pytest.raises(RequestFailed, match="refused"):
                await engine.score([5] * 2000, [6])
            growth = Growth(tmp_path / "many")

            async def disturb() -> None:
                while growth.num_lines() < 60:
                    await asyncio.sleep(0.02)
                (victim,) = replicas_on(head)
                engines = victim.children(recursive=True)
                victim.send_signal(signal.SIGKILL)
                while growth.num_lines() < 90:
                    await asyncio.sleep(0.02)
                engines += [p for q in replicas_on(other) for p in q.children(recursive=True)]
                cluster.remove_node(other)
                assert len(engines) >= 2, "each has its engine core"
                assert await asyncio.to_thread(wait_for_end, engines, 60) == [], (
                    "an engine outlives its replica"
                )

            disturbed = asyncio.create_task(disturb())
            await take(job, many, engine, tmp_path / "many")
            await disturbed
        return texts, scores, engine.notes

    async def in_this_process() -> tuple[dict[tuple[str, int], str], list[float]]:
        async with start_engine(job.model, replace(FLAGS, engine="vllm", replicas=None)) as engine:
            await engine.ready()
            texts = await take(job, few, engine, tmp_path / "here")
            prompt = engine.prompt(job.prompt.messages(few[0].question))
            return texts, await engine.score(prompt, prompt[-8:])

    texts, scores, notes = asyncio.run(on_the_cluster())
    assert set(keys_in(tmp_path / "many")) == {(problem.id, i) for problem in many for i in range(2)}
    first, second = notes["replicas"].values()
    assert min(first["down"], second["down"]) >= 1
    lost = first["asked_again"] + second["asked_again"]
    assert 0 < lost <= 3 * FLAGS.concurrency
    answered = first["answered"] + second["answered"]
    assert answered == 2 * len(few) + 2 * len(many) + 1, "nothing is asked again that was answered"
    assert first["requests"] + second["requests"] == answered + lost + 1, "and the refused one once"

    here, scores_here = asyncio.run(in_this_process())
    assert set(texts) == set(here)
    # a seed is of its sample; in another batch bfloat16 rounds otherwise, and a rare token falls otherwise
    alike = sum(texts[key] == here[key] for key in texts)
    print(f"{alike} of {len(texts)} texts are the same as in this process")
    assert alike >= 0.9 * len(texts), "without the seeds none is"
    assert scores == pytest.approx(scores_here, abs=0.1)


@needs_ray
@pytest.mark.slow
def test_a_cluster_without_room_says_what_it_has(cluster: Any) -> None:
    async def start(**more: Any) -> None:
        flags = replace(FLAGS, ray_address=cluster.address, **more)
        async with start_engine(make_job(1, 1).model, flags) as engine:
            await engine.ready()

    with pytest.raises(
        EngineError, match=r"--replicas 1: each wants 2 CPU of one machine .* room for 0: .* 1 CPU"
    ):
        asyncio.run(start(replicas=1, tensor_parallel=2))


NODES = [{"CPU": 64.0, "GPU": 3.0}, {"CPU": 64.0, "GPU": 3.0}, {"CPU": 8.0}]


@pytest.mark.parametrize(
    ("parallel", "replicas", "fits"),
    [(1, 6, True), (1, 7, False), (2, 2, True), (2, 3, False), (4, 1, False)],
)
def test_a_replica_is_on_one_machine(parallel: int, replicas: int, fits: bool) -> None:
    model = make_job(1, 1).model
    bundle, _ = room_of_one(model, EngineFlags(tensor_parallel=parallel), has_gpus=True)
    assert bundle == {"GPU": parallel, "CPU": 1}
    if fits:
        return check_room(NODES, bundle, replicas)
    with pytest.raises(
        EngineError, match=rf"--replicas {replicas}: .* 3 machines with 3 GPU and 64 CPU, .*0 GPU"
    ):
        check_room(NODES, bundle, replicas)


def test_the_replicas_share_the_requests_and_start_no_ray_below_them() -> None:
    model = make_job(1, 1).model
    asked = EngineFlags(engine="ray", replicas=3, ray_address="auto", concurrency=256)
    flags = worker_flags(model, asked)
    assert (flags.engine, flags.concurrency, flags.max_restarts) == ("vllm", 86, 0)
    assert flags.engine_arguments == ()
    parted = worker_flags(model, replace(asked, tensor_parallel=2))
    assert parted.engine_arguments == ("distributed_executor_backend=mp",)
    bundle, environment = room_of_one(
        model, EngineFlags(engine_arguments=("pipeline_parallel_size=2",), tensor_parallel=2), has_gpus=False
    )
    assert bundle == {"CPU": 4}
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_a_small_directory_is_shipped_and_a_model_of_the_hub_is_not(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub/more.txt").write_text("x")
    assert files_of(str(tmp_path)) == {"config.json": b"{}", "sub/more.txt": b"x"}
    assert files_of("owner/model") == {}


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:port", "127.0.0.1:99999"])
def test_an_address_where_nobody_listens_is_named_at_once(address: str) -> None:
    with pytest.raises(
        EngineError, match=rf"--ray-address {address}: no Ray cluster to join .*ray start --head"
    ):
        check_address(address)


def test_a_failure_of_a_request_comes_over_from_another_process() -> None:
    import pickle

    failure = pickle.loads(pickle.dumps(RequestFailed("refused", "too long")))
    assert (failure.kind, failure.detail, str(failure)) == ("refused", "too long", "refused: too long")


@pytest.mark.parametrize(
    "flags",
    [{"replicas": 2}, {"ray_address": "auto"}, {"engine": "server", "urls": ("http://x",), "replicas": 2}],
)
def test_flags_of_the_cluster_are_of_no_other_engine(flags: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="--replicas and --ray-address are for --engine ray"):
        EngineFlags(**flags)


def test_no_replica_is_refused() -> None:
    with pytest.raises(RecipeError, match="--replicas 0: must be at least 1"):
        EngineFlags(engine="ray", replicas=0)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_command_that_installs_it_is_named() -> None:
    async def start() -> None:
        async with start_engine(make_job(1, 1).model, FLAGS):
            pass

    with pytest.raises(EngineError, match="make setup EXTRAS=ray"):
        asyncio.run(start())
