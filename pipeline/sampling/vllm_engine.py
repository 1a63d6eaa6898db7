"""vLLM in this process: AsyncLLM, whose engine core is a process of its own, so traces stream out one by one.

Prompts go in as token ids of the model's chat template. The core starts with the first request; when it
dies it is started again and what was in flight is sampled again, `max_restarts` times.
"""

import asyncio
import gc
import logging
import os
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.cards import SampledModel
from pipeline.errors import EngineError
from pipeline.recipe import Sampling
from pipeline.sampling.engine import Completion, EngineFlags, RequestFailed, completion_of
from pipeline.sampling.processes import kill, with_children
from pipeline.sampling.prompts import ChatPrompts, load_prompts

log = logging.getLogger(__name__)

WORKERS_SECONDS = 0.5
CORE_SECONDS = 4.0
DEATH_SECONDS = 0.25
QUIET = ",".join([
    "ignore::UserWarning:multiprocessing.resource_tracker",  # it cleans up what killed processes left
    "ignore::FutureWarning:vllm.triton_utils.dispatcher",
])  # fmt: skip

# kills the processes named on its command line when its stdin ends, which it does when this process dies
GUARD = 'read -r _; kill -9 "$@" 2>/dev/null'


class VllmEngine:
    """`model` under AsyncLLM. An async context manager; no process of it outlives the context."""

    def __init__(self, model: SampledModel, flags: EngineFlags) -> None:
        self.notes: dict[str, Any] = {"engine": "vllm", "restarts": 0}
        self._model = model
        self._flags = flags
        self._fresh: Any = None  # from the thread's end, before all that belongs to it is there
        self._llm: Any = None
        self._dead: asyncio.Future[None] | None = None  # done when the engine that runs now has died
        self._watch: asyncio.Task[None] | None = None
        self._prompts: ChatPrompts | None = None
        self._processes: list[Any] = []
        self._guard: subprocess.Popen[bytes] | None = None
        self._starting = asyncio.Lock()
        self._pending: asyncio.Future[None] | None = None
        self._num_requests = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pending is not None:
            await asyncio.wait([self._pending])  # a thread cannot be cancelled: an interrupt waits for it
        self._stop()

    async def ready(self) -> None:
        if self._llm is None:
            async with self._starting:
                if self._llm is None:
                    await self._start()

    async def prompts(self) -> ChatPrompts | None:
        if self._prompts is None:
            self._prompts = await asyncio.to_thread(load_prompts, self._model)
        return self._prompts

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        assert self._prompts is not None, "ready() comes first"
        return self._prompts.ids(messages)

    async def sample(self, prompt: list[int], sampling: Sampling, seed: int) -> Completion:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        while True:
            await self.ready()
            llm = self._llm
            try:
                output = await self._ask(llm, prompt, sampling, seed)
                break
            except VLLMClientError as error:
                raise RequestFailed("refused", str(error)) from None
            except EngineDeadError:
                await self._bury(llm)
        reason = output.finish_reason or "unknown"
        if reason not in ("stop", "length"):
            raise RequestFailed("engine_error", f"the engine ended the request with finish_reason {reason}")
        assert self._prompts is not None
        ids = output.token_ids[:-1] if reason == "stop" else output.token_ids
        text = self._prompts.decode(ids)
        return completion_of(text, reason, (len(prompt), len(output.token_ids)), self._model.tags)

    async def _ask(self, llm: Any, prompt: list[int], sampling: Sampling, seed: int) -> Any:
        """The finished output of one request; EngineDeadError once the engine is known to be dead.

        vLLM tells those who wait for a request itself, but not where the engine is shut down before it has.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        assert self._dead is not None, "ready() comes first"
        asked = asyncio.ensure_future(self._generate(llm, prompt, sampling, seed))
        try:
            await asyncio.wait({asked, self._dead}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
            raise EngineDeadError()
        finally:
            if not asked.done():
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)

    async def _generate(self, llm: Any, prompt: list[int], sampling: Sampling, seed: int) -> Any:
        """The finished output of one request, taken from its queue: AsyncLLM.generate less its generator."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        assert self._prompts is not None
        # detokenised once at the end and not at every step: the host shares its cores with the engine core
        params = SamplingParams(
            **sampling.model_dump(),
            seed=seed,
            stop_token_ids=self._prompts.stop_token_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        self._num_requests += 1
        queue = await llm.add_request(str(self._num_requests), tokens_input(prompt), params)
        try:
            return (await queue.get()).outputs[0]
        except asyncio.CancelledError:
            if not llm.errored:
                await llm.abort(queue.request_id, internal=True)
            raise

    async def _start(self) -> None:
        log.info("starting vLLM for %s", self._model.model)
        try:
            self._pending = asyncio.ensure_future(asyncio.to_thread(self._start_llm))
            await asyncio.shield(self._pending)
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineError(
                f"vLLM cannot start {self._model.model}: {_first_line(error)}. Set VLLM_LOGGING_LEVEL=INFO "
                "to see the engine's own log"
            ) from error
        self._prompts = ChatPrompts(self._fresh.get_tokenizer(), self._model)
        self._processes = processes_of(self._fresh)
        pids = [str(process.pid) for process in self._processes]
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", *pids],
            stdin=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the terminal is not for it
        )
        self._llm, self._dead = self._fresh, asyncio.get_running_loop().create_future()
        self._watch = asyncio.create_task(tell_of_death(self._llm, self._dead))

    def _start_llm(self) -> None:
        # set here and not returned: the thread would hold on to what it returned for as long as it lives
        self._fresh = start_llm(self._model, self._flags)

    async def _bury(self, llm: Any) -> None:
        """Clear a dead engine away once, however many requests report its death."""
        async with self._starting:
            if self._llm is not llm:
                return
            self._stop()
            self.notes["restarts"] += 1
            if self.notes["restarts"] > self._flags.max_restarts:
                raise EngineError(
                    f"vLLM's engine died more than {self._flags.max_restarts} times: giving up. What was "
                    "finished is kept. See the engine's own log (VLLM_LOGGING_LEVEL=INFO), lower "
                    "--concurrency or the memory it may use, and run the same command again"
                )
            log.warning(
                "vLLM's engine died (restart %d): sampling again what was in flight", self.notes["restarts"]
            )

    def _stop(self) -> None:
        llm, self._llm, self._fresh = self._fresh, None, None
        if self._watch is not None and self._dead is not None:
            self._watch.cancel()
            if not self._dead.done():
                self._dead.set_result(None)
        guard, self._guard = self._guard, None
        if llm is not None:
            # On the CPU neither workers nor core end by themselves: the core waits 9 s for its workers, then
            # cleans up and hangs. So the workers are helped to their end, and the core gets what it needs.
            timer = threading.Timer(WORKERS_SECONDS, kill, [self._processes[:-1]])
            timer.start()
            llm.shutdown(timeout=CORE_SECONDS)
            timer.cancel()
            kill(self._processes)
            del llm
            gc.collect()  # its destructor shuts down once more, which fails at the interpreter's end
        if guard is not None:
            guard.kill()
            guard.communicate()


async def tell_of_death(llm: Any, dead: "asyncio.Future[None]") -> None:
    """Set `dead` when the engine has died, whether or not anyone asks it for anything."""
    while not llm.errored:
        await asyncio.sleep(DEATH_SECONDS)
    if not dead.done():
        dead.set_result(None)


def start_llm(model: SampledModel, flags: EngineFlags) -> Any:
    """An AsyncLLM for `model`. Blocks for the 15 seconds and more that an engine takes to start."""
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level)  # it logs while it is imported, before it reads the variable
    os.environ.setdefault("PYTHONWARNINGS", QUIET)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if Path(model.model).is_dir():
        os.environ.setdefault(
            "HF_HUB_OFFLINE", "1"
        )  # else each look-up without a network retries for minutes
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(model, flags)))


def engine_arguments(model: SampledModel, flags: EngineFlags) -> dict[str, Any]:
    """vLLM's arguments; also what `LLM` must be given to be the same engine."""
    from vllm.platforms import current_platform

    arguments: dict[str, Any] = {
        "model": model.model,
        "revision": model.revision,
        "tokenizer_revision": model.revision,
        "dtype": model.dtype,
        "quantization": model.quantisation,
        "max_model_len": model.max_model_len,
        "max_num_seqs": flags.concurrency,
        "tensor_parallel_size": flags.tensor_parallel or model.tensor_parallel,
        "data_parallel_size": flags.data_parallel or model.data_parallel,
        "enable_expert_parallel": model.expert_parallel,
        "seed": 0,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if model.config_overrides:
        arguments["hf_overrides"] = model.config_overrides
    if current_platform.is_cpu():
        # a per-request seed kills the CPU engine while chunked prefill is on
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(model.max_model_len, 4096)
        arguments["enforce_eager"] = True
        # stated, because the default wants 0.92 of all memory to be free and refuses to start otherwise
        arguments["kv_cache_memory_bytes"] = flags.kv_cache_gib * 2**30
    else:
        arguments["gpu_memory_utilization"] = flags.gpu_memory_share
    return arguments


def processes_of(llm: Any) -> list[Any]:
    """The engine's processes (psutil.Process), each core after the workers that it started."""
    manager = llm.engine_core.resources.engine_manager
    cores = manager.processes if manager is not None else []
    return [process for core in cores for process in with_children(core.pid)]


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
