"""vLLM on a Ray cluster: the engine of this process, any number of times, each in an actor of its own.

The loop, the store and the verifiers stay here, so machines share no files: the package `pipeline` goes to
each through Ray, and so does a model that is a small directory; a larger one lies at the same path on all of
them, one of the hub is fetched by each. An actor has a placement group of its own, so its devices are of one
machine and stay reserved while Ray starts it anew. What an actor that died had in flight is asked again, of
another one where there is one, and nothing else.
"""

import asyncio
import importlib.util
import logging
import math
import os
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import EngineError, RecipeError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.engine_arguments import read_flags
from pipeline.run.secrets import API_KEY, hidden
from pipeline.sampling.engines.base import Completion, Request, RequestFailed
from pipeline.sampling.engines.replicas import Replica, Replicas
from pipeline.sampling.engines.serving import num_devices
from pipeline.sampling.engines.vllm import VllmEngine
from pipeline.sampling.prompts import RendersPrompts

log = logging.getLogger(__name__)

MAX_DEATHS = 4  # of the actors that had one request in flight, before it is that request's fault
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 30.0  # between two looks at an actor that is started anew
CONNECT_SECONDS = 10.0
MAX_SHIPPED_BYTES = 2**30  # of a model's directory; Ray holds it once on each machine
PACKAGE = Path(__file__).parents[2]


class NotStarted(EngineError):
    """An actor that Ray has started anew was asked before its engine."""


class Worker:
    """What runs in an actor. A model that came in `files` is in a directory only while the engine starts; so
    an engine that dies is not started again here, but Ray starts the whole actor."""

    def __init__(self, model: SampledModel, flags: EngineFlags) -> None:
        self._model, self._flags = model, flags
        self._engine: Any = None
        self._starting = asyncio.Lock()

    async def ready(self, files: dict[str, bytes]) -> None:
        async with self._starting:
            if self._engine is not None:
                return
            with tempfile.TemporaryDirectory() as directory:
                for name, content in files.items():
                    path = Path(directory, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                model = replace(self._model, model=directory) if files else self._model
                engine = VllmEngine(model, self._flags)
                await engine.ready()
            self._engine = engine

    async def sample(self, request: Request) -> Completion:
        return await self._started().sample(request)

    async def score(self, prompt: list[int], response: list[int]) -> list[float]:
        return await self._started().score(prompt, response)

    def _started(self) -> Any:
        if self._engine is None:
            raise NotStarted("its engine has not been started")
        return self._engine

    async def tokens_in_flight(self) -> int:
        return 0 if self._engine is None else await self._engine.tokens_in_flight()


class RayEngine(RendersPrompts):
    """`model` in the replicas that `flags` ask for. An async context manager; no actor outlives the context.
    `notes` hold what each replica did."""

    def __init__(self, model: SampledModel, flags: EngineFlags) -> None:
        self.notes: dict[str, Any] = {"engine": "ray"}
        self._model = model
        self._flags = flags
        names = tuple(f"replica {number}" for number in range(flags.replicas or 1))
        advice = "see what the cluster lacks (ray status)"
        self._replicas = Replicas(names, flags.concurrency, flags.outage_seconds, advice)
        self._actors: dict[str, Any] = {}
        self._files: Any = None  # of the model, in Ray's store
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting = asyncio.Lock()
        self._started = False

    async def __aenter__(self) -> Self:
        if importlib.util.find_spec("ray") is None:
            raise EngineError("--engine ray: ray is not installed here. Run: make setup EXTRAS=ray")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(ray.shutdown)  # Ray ends the actors of whoever has gone, with their groups
        self.notes["replicas"] = self._replicas.notes()

    async def ready(self) -> None:
        if not self._started:
            async with self._starting:
                if not self._started:
                    await self._start()
                    self._started = True

    async def sample(self, request: Request) -> Completion:
        return await self._ask("sample", request)

    async def score(self, prompt: list[int], response: list[int]) -> list[float]:
        return await self._ask("score", prompt, response)

    async def tokens_in_flight(self) -> int | None:
        up = [self._actors[replica.url] for replica in self._replicas.all if not replica.down]
        asked = (actor.tokens_in_flight.remote() for actor in up if self._started)
        counts = await asyncio.gather(*asked, return_exceptions=True)
        return sum(count for count in counts if isinstance(count, int))

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """One replica's answer, however many of them die meanwhile; nothing is asked of two at a time."""
        from ray.exceptions import RayError, RayTaskError

        await self.ready()
        last: Replica | None = None
        for _ in range(MAX_DEATHS):
            last = await self._replicas.take(avoid=last)
            actor = self._actors[last.url]
            try:
                answer = await getattr(actor, method).remote(*arguments)
            except RayTaskError as error:
                if not isinstance(error.cause, EngineError):
                    raise error.cause from None
                why = str(error.cause).partition(". ")[0]
                self._lost(last, why, restart=not isinstance(error.cause, NotStarted))
            except RayError as error:
                self._lost(last, type(error).__name__)
            else:
                self._replicas.sign_of_life()
                last.succeeded()
                return answer
            finally:
                self._replicas.give_back(last)
        raise RequestFailed("engine_died", f"{MAX_DEATHS} replicas died with this request in flight")

    def _lost(self, replica: Replica, why: str, restart: bool = False) -> None:
        """Count a request that a replica took with it, and look when it is back; `restart` one whose engine
        has died and whose actor lives on."""
        import ray

        replica.counts["asked_again"] += 1
        if self._replicas.fell(replica, why):
            if restart:
                ray.kill(self._actors[replica.url], no_restart=False)
            self._run(self._watch(replica))

    def _run(self, work: Any) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start(self) -> None:
        """Connect, reserve the devices, start the actors; return when the first one is ready, the others
        join. EngineError where there is no room for all, or none of them starts."""
        if await self.prompts() is None:
            raise EngineError(
                f"{self._model.name} has no chat template, and --engine ray renders prompts here. Name one "
                "as `template` in its card"
            )
        await asyncio.to_thread(self._connect)
        for replica in self._replicas.all:
            replica.down = True
        faults = []
        for begun in asyncio.as_completed([self._run(self._begin(each)) for each in self._replicas.all]):
            if (fault := await begun) is None:
                return
            faults.append(fault)
        raise EngineError(f"no replica of {len(faults)} starts on the Ray cluster. The first: {faults[0]}")

    def _connect(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # its telemetry, which is read once
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        address = self._flags.ray_address or "local"
        check_address(address)
        # not TMPDIR, which a stage sets: the names of Ray's sockets are too long for the directory of a run
        os.environ.setdefault("RAY_TMPDIR", "/tmp")
        shipped = {"py_modules": [str(PACKAGE)], "excludes": ["__pycache__/"]}
        try:
            with hidden(API_KEY, os.environ):
                ray.init(
                    address=address,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=shipped,
                )
        except Exception as error:  # noqa: BLE001  # of every kind, bare ones among them
            raise no_cluster(address, error) from None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        bundle, environment = room_of_one(self._model, self._flags, any("GPU" in node for node in nodes))
        check_room(nodes, bundle, len(self._replicas.all))
        log.info("starting %d x vLLM for %s with Ray", len(self._replicas.all), self._model.model)
        flags = worker_flags(self._model, self._flags)
        model = replace(self._model, template=None)  # prompts come as token ids
        self._files = ray.put(files_of(model.model))
        groups = [placement_group([bundle], strategy="STRICT_PACK") for _ in self._replicas.all]
        if not groups[0].wait(max(1.0, self._flags.outage_seconds)):
            raise EngineError(
                f"--engine ray: no machine had {in_words(bundle)} free for {self._flags.outage_seconds:.0f} "
                "s; others hold them (ray status). Run the same command when they are done"
            )
        for replica, group in zip(self._replicas.all, groups, strict=True):
            options = {
                "num_cpus": bundle["CPU"],
                "num_gpus": bundle.get("GPU", 0),
                "max_restarts": -1,
                "max_concurrency": self._flags.concurrency + 8,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(group),
                "runtime_env": {"env_vars": environment},
            }
            self._actors[replica.url] = ray.remote(Worker).options(**options).remote(model, flags)

    async def _begin(self, replica: Replica) -> str | None:
        """Start a replica; what kept it from starting, which is tried again, or None."""
        fault = await self._fault_of(replica)
        if fault is None:
            self._replicas.rose(replica)
        else:
            log.warning("%s has not started: %s", replica.url, fault)
            self._run(self._watch(replica))
        return fault

    async def _watch(self, replica: Replica) -> None:
        """Wait until Ray has started a replica anew, on this machine or another, however often it takes."""
        pause, last = FIRST_PAUSE_SECONDS, None
        while (fault := await self._fault_of(replica)) is not None:
            if fault != last:
                log.warning("%s does not start: %s", replica.url, fault)
            last = fault
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, MAX_PAUSE_SECONDS)
        self._replicas.rose(replica)

    async def _fault_of(self, replica: Replica) -> str | None:
        """None when the engine of a replica is ready, else what is the matter with it."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        actor = self._actors[replica.url]
        try:
            await actor.ready.remote(self._files)
        except RayTaskError as error:
            if isinstance(error.cause, RecipeError):  # of an argument that vLLM does not have, anywhere
                raise error.cause from None
            ray.kill(actor, no_restart=False)
            return f"{type(error.cause).__name__}: {_first_line(error.cause)}"
        except RayError as error:
            return f"{type(error).__name__}: {_first_line(error)}"
        return None


def check_address(address: str) -> None:
    """EngineError where nobody listens at host:port; Ray itself would go on asking for minutes."""
    host, colon, port = address.rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            raise no_cluster(address, error) from None


def no_cluster(address: str, error: BaseException) -> EngineError:
    if address == "local":
        return EngineError(
            f"Ray does not start on this machine ({_first_line(error)}). Give it another directory for its "
            "sockets (RAY_TMPDIR, a short path), or name a running cluster with --ray-address"
        )
    return EngineError(
        f"--ray-address {address}: no Ray cluster to join ({_first_line(error)}). Start one with `ray start "
        "--head`, or leave --ray-address out for one of this machine alone"
    )


def room_of_one(
    model: SampledModel, flags: EngineFlags, has_gpus: bool
) -> tuple[dict[str, int], dict[str, str]]:
    """What one replica reserves of one machine, and the environment of its engine: a GPU for each part of the
    model, or where the cluster has none a core. There vLLM would bind all replicas to the same cores."""
    number = num_devices(model, flags)
    if has_gpus:
        return {"GPU": number, "CPU": 1}, {}
    return {"CPU": number}, {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def in_words(bundle: dict[str, int]) -> str:
    return " and ".join(f"{number} {name}" for name, number in bundle.items())


def check_room(nodes: list[dict[str, float]], bundle: dict[str, int], num_replicas: int) -> None:
    """EngineError where so many replicas do not fit on the machines of a cluster, each on one of them."""
    room = sum(min(int(node.get(name, 0) // number) for name, number in bundle.items()) for node in nodes)
    if room >= num_replicas:
        return
    wanted = in_words(bundle)
    found = ", ".join(" and ".join(f"{node.get(name, 0):g} {name}" for name in bundle) for node in nodes)
    raise EngineError(
        f"--replicas {num_replicas}: each wants {wanted} of one machine (--tensor-parallel), and the Ray "
        f"cluster has room for {room}: {len(nodes)} machines with {found}. Add some (ray start --address) "
        "or lower --replicas or --tensor-parallel"
    )


def worker_flags(model: SampledModel, flags: EngineFlags) -> EngineFlags:
    """The flags of one replica's engine: its share of the requests, and no Ray below it for its parts."""
    given = read_flags(flags.engine_arguments)
    alone = num_devices(model, flags) == 1
    backend = () if alone or "distributed_executor_backend" in given else ("distributed_executor_backend=mp",)
    return replace(
        flags,
        engine="vllm",
        replicas=None,
        ray_address=None,
        concurrency=math.ceil(flags.concurrency / (flags.replicas or 1)),
        max_restarts=0,
        engine_arguments=(*flags.engine_arguments, *backend),
    )


def files_of(model: str) -> dict[str, bytes]:
    """The files of a model's directory by their names in it; none of a model of the hub, or of one that is
    too large and lies at the same path on every machine."""
    paths = [path for path in Path(model).rglob("*") if path.is_file()] if os.path.isdir(model) else []
    if sum(path.stat().st_size for path in paths) > MAX_SHIPPED_BYTES:
        return {}
    return {str(path.relative_to(model)): path.read_bytes() for path in paths}


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
