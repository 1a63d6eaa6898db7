"""vLLM in this process: AsyncLLM, whose engine core is a process of its own, so traces stream out one by one.

Prompts go in as token ids of the model's chat template. The core starts with the first request; when it
dies it is started again and what was in flight is sampled again, `max_restarts` times.
"""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from pipeline.errors import EngineError
from pipeline.flags import EngineFlags, num_cores
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.engine_arguments import check_known, read_flags
from pipeline.records import Tokens
from pipeline.run.lifetime import Guard
from pipeline.run.secrets import API_KEY, hidden
from pipeline.sampling.engines.base import LOWEST_LOGPROB, Completion, Request, RequestFailed, likeliest
from pipeline.sampling.engines.processes import kill, with_children
from pipeline.sampling.engines.serving import num_devices
from pipeline.sampling.prompts import ChatPrompts, RendersPrompts, is_here

log = logging.getLogger(__name__)

STARTING = threading.Lock()  # one engine at a time changes the environment of this process
# architectures whose answers are right with vLLM's kernel for rotary embeddings on a CPU
# (tests/test_architectures.py): queries of [tokens, heads, size], as LFM2's, it turns wrongly (vLLM 0.32)
TURNED_RIGHT = frozenset(
    f"{name}ForCausalLM"
    for name in (
        *("Qwen2", "Qwen3", "Qwen3Moe", "Qwen3Next", "Llama", "Mistral", "Gemma2", "Gemma3", "Gemma4"),
        *("SmolLM3", "Olmo3", "Phi3", "GptOss", "GraniteMoeHybrid", "FalconH1"),
    )
)
CPU_BLOCK = 128  # tokens that vLLM's cache on a CPU gives at once
LEAST_CACHE = 2**28  # bytes
PROCESSES_GIB = 3  # what the processes of an engine on a CPU hold beside weights and cache
WORKERS_SECONDS = 0.5
CORE_SECONDS = 4.0
# the model in the core's process and not in one of its own, which vLLM starts on a CPU to bind threads to
# cores: another import of all that it is made of, and a queue between the two at every token
IN_THE_CORE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
# the environment of an engine's processes, where the user did not set these
WANTED = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": ",".join([
        "ignore::UserWarning:multiprocessing.resource_tracker",  # it cleans up what killed processes left
        "ignore::FutureWarning:vllm.triton_utils.dispatcher",
    ]),
}  # fmt: skip


class VllmEngine(RendersPrompts):
    """`model` under AsyncLLM. An async context manager; no process of it outlives the context."""

    def __init__(self, model: SampledModel, flags: EngineFlags) -> None:
        self.notes: dict[str, Any] = {"engine": "vllm", "restarts": 0}
        self._model = model
        self._flags = flags
        self._fresh: Any = None  # from the thread's end, before all that belongs to it is there
        self._llm: Any = None
        self._processes: list[Any] = []
        self._guard: Guard | None = None
        self._starting = asyncio.Lock()
        self._pending: asyncio.Future[None] | None = None
        self._num_requests = 0
        self._waiting: set[Any] = set()  # the queues of what is in flight
        self.started = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pending is not None and not self._pending.done():
            if error is not None and not isinstance(error, Exception):
                return  # an interrupt waits for no start: the guard clears away what it leaves
            await asyncio.wait([self._pending])
        self._stop()

    async def ready(self) -> None:
        if self._llm is None:
            async with self._starting:
                if self._llm is None:
                    await self._start()

    async def start_beside(self, other: "VllmEngine") -> None:
        """Start as soon as `other` has, unless they are on a GPU, whose memory one engine takes, or two may
        be more than the machine's memory."""
        await other.started.wait()
        from vllm.platforms import current_platform

        if current_platform.is_cpu() and psutil.virtual_memory().available > self._room_to_start():
            await self.ready()

    def _room_to_start(self) -> float:
        """Bytes that an engine wants on a CPU, at most; infinite where its weights are not here."""
        weights = sum(path.stat().st_size for path in Path(self._model.model).glob("*.safetensors"))
        return 2 * weights + (self._flags.kv_cache_gib + PROCESSES_GIB) * 2**30 if weights else math.inf

    async def sample(self, request: Request) -> Completion:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        await self.ready()
        assert self._prompts is not None
        schema = request.reply_schema
        params = SamplingParams(
            **sampling_arguments(request),
            logprobs=request.top_logprobs if request.keep_tokens else None,  # 0: of the sampled token alone
            stop_token_ids=self._prompts.stop_token_ids,
            structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        output = (await self._finished(request.prompt, params)).outputs[0]
        reason = output.finish_reason or "unknown"
        if reason not in ("stop", "length"):
            raise RequestFailed("engine_error", f"the engine ended the request with finish_reason {reason}")
        ids = output.token_ids[:-1] if reason == "stop" else output.token_ids
        kept = tokens_of(output, request.top_logprobs) if request.keep_tokens else None
        num_tokens = (len(request.prompt), len(output.token_ids))
        text = output.text if request.sampling.stop else self._prompts.decode(ids)
        return Completion(text, reason, *num_tokens, kept)

    async def score(self, prompt: list[int], response: list[int]) -> list[float]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=1,  # none is not allowed
            temperature=0.0,
            prompt_logprobs=0,  # 0: of the token itself alone
            skip_reading_prefix_cache=True,  # which holds no log-probabilities
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        steps = (await self._finished([*prompt, *response], params)).prompt_logprobs
        if steps is None:
            raise RequestFailed("engine_error", "the engine gave no log-probabilities of a prompt")
        scored = zip(response, steps[len(prompt) :], strict=True)
        return [max(float(step[token].logprob), LOWEST_LOGPROB) for token, step in scored]

    async def _finished(self, prompt: list[int], params: Any) -> Any:
        """The finished output of a request, however often the engine dies meanwhile."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        while True:
            await self.ready()
            llm = self._llm
            try:
                return await self._generate(llm, prompt, params)
            except VLLMClientError as error:
                raise RequestFailed("refused", str(error)) from None
            except EngineDeadError:
                await self._bury(llm)

    async def tokens_in_flight(self) -> int | None:
        """By vLLM's own count of what each request has so far."""
        if self._llm is None:
            return 0
        states = list(self._llm.output_processor.request_states.values())
        return sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer)

    async def _generate(self, llm: Any, prompt: list[int], params: Any) -> Any:
        """The finished output of one request, taken from its queue: AsyncLLM.generate less its generator."""
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        self._num_requests += 1
        queue = await llm.add_request(str(self._num_requests), tokens_input(prompt), params)
        if self._llm is not llm:  # buried while the request went in: no answer will come
            raise EngineDeadError()
        self._waiting.add(queue)
        try:
            return await queue.get()
        except asyncio.CancelledError:
            await llm.abort(queue.request_id, internal=True)
            raise
        finally:
            self._waiting.discard(queue)

    async def _start(self) -> None:
        log.info("starting vLLM for %s", self._model.model)
        self._guard = Guard()
        self._pending = asyncio.get_running_loop().create_future()
        # a daemon: neither the loop nor the interpreter waits for its end after an interrupt
        threading.Thread(target=self._start_llm, args=[asyncio.get_running_loop()], daemon=True).start()
        try:
            await asyncio.shield(self._pending)
        except Exception:
            self._stop()  # another try has a guard of its own
            raise
        self._prompts = ChatPrompts(self._fresh.get_tokenizer(), self._model)
        self._processes = processes_of(self._fresh)
        self._llm = self._fresh
        self.started.set()

    def _start_llm(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._guard is not None
        fault: BaseException | None = None
        try:
            self._fresh = start_llm(self._model, self._flags, self._guard.mark)
        except BaseException as error:  # noqa: BLE001  # it belongs to whoever waits for the start
            fault = error
        with contextlib.suppress(RuntimeError):  # the loop was closed by an interrupt
            loop.call_soon_threadsafe(self._started, fault)

    def _started(self, fault: BaseException | None) -> None:
        assert self._pending is not None
        if fault is None:
            self._pending.set_result(None)
        else:
            self._pending.set_exception(fault)

    async def _bury(self, llm: Any) -> None:
        """Clear a dead engine away once, however many requests report its death, and tell all the others.

        vLLM tells them too, but stops telling at its shutdown, for which the first report is the cause.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        async with self._starting:
            if self._llm is not llm:
                return
            self._stop()
            for queue in self._waiting:
                if queue.output is None:  # else its answer, or its error, is there
                    queue.put(EngineDeadError())
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
        guard, self._guard = self._guard, None
        if llm is not None:
            # On the CPU neither workers nor core end by themselves: the core waits 9 s for its workers, then
            # cleans up and hangs. So the workers are helped to their end, and the core gets what it needs,
            # which is nothing where it is alone.
            timer = threading.Timer(WORKERS_SECONDS, kill, [self._processes[:-1]])
            timer.start()
            alone = llm.vllm_config.parallel_config.distributed_executor_backend == IN_THE_CORE
            llm.shutdown(timeout=WORKERS_SECONDS if alone else CORE_SECONDS)
            timer.cancel()
            kill(self._processes)
            del llm
            gc.collect()  # its destructor shuts down once more, which fails at the interpreter's end
        if guard is not None:
            guard.dismiss()


def sampling_arguments(request: Request) -> dict[str, Any]:
    """What vLLM's SamplingParams take of a request's sampling.

    Detokenised once at the end and not at every step, for the host shares its cores with the engine core; a
    stop string, which is looked for in the text, needs every step.
    """
    sampling = request.sampling
    return sampling.model_dump(exclude={"seed"}) | {
        "seed": request.seed if sampling.seed == "per_sample" else None,
        "detokenize": bool(sampling.stop),
        "skip_special_tokens": False,  # a model may mark its thinking with them
    }


def tokens_of(output: Any, num_top: int = 0) -> Tokens:
    """The tokens of a response; vLLM takes log-probabilities before temperature, top_k and top_p."""
    ids = list(output.token_ids)
    steps = [
        {token: max(float(held.logprob), LOWEST_LOGPROB) for token, held in step.items()}
        for step in output.logprobs
    ]
    # a step holds the sampled token, likely or not, and the most likely ones
    top = [likeliest(step, num_top) for step in steps] if num_top else []
    return Tokens(
        ids,
        [step[token] for token, step in zip(ids, steps, strict=True)],
        [[token for token, _ in pairs] for pairs in top],
        [[logprob for _, logprob in pairs] for pairs in top],
    )


def start_llm(model: SampledModel, flags: EngineFlags, mark: dict[str, str]) -> Any:
    """An AsyncLLM for `model`. Blocks for the 15 seconds and more that an engine takes to start."""
    offline = Path(model.model).is_dir()
    with STARTING, hidden(API_KEY, os.environ), engine_environment(offline=offline, mark=mark):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments, environment = arguments_here(model, flags)
        os.environ.update(environment)
        try:
            with deaf_to_interrupts():
                return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except Exception as error:  # of any kind: vLLM has code for each architecture
            raise EngineError(
                f"vLLM cannot start {model.model}: {_first_line(error)}. Set VLLM_LOGGING_LEVEL=INFO to see "
                "the engine's own log"
            ) from error


def arguments_here(model: SampledModel, flags: EngineFlags) -> tuple[dict[str, Any], dict[str, str]]:
    """`engine_arguments` for an engine of this process, and the environment that its core needs."""
    from vllm.platforms import current_platform

    arguments = engine_arguments(model, flags)
    alone = current_platform.is_cpu() and num_devices(model, flags) == 1 and has_one_thread()
    if not alone or "distributed_executor_backend" in arguments:
        return arguments, {}
    # as vLLM would for a process of the model's own
    return arguments | {"distributed_executor_backend": IN_THE_CORE}, {"OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """A Ctrl-C goes to all of a terminal's processes; those that are started inside do not hear it, for they
    inherit this thread's mask. The first process lets the engine finish what is nearly done, then stops it.

    The resource tracker is started before: whoever starts it has SIGINT unblocked afterwards.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def engine_environment(offline: bool, mark: dict[str, str]) -> Iterator[None]:
    """What an engine's processes are started with, their guard's `mark` among it; this process has its own
    environment back afterwards.

    vLLM itself sets a dozen variables while it starts (LD_PRELOAD among them), which the verifiers and the
    models that are loaded later have no use for. `offline` keeps the hub out of the start of a local model:
    without a network each look-up retries for minutes. The library reads that variable once, when it is
    imported, so its constant is set too.
    """
    from huggingface_hub import constants

    before, was_offline = dict(os.environ), constants.HF_HUB_OFFLINE
    try:
        os.environ.update(WANTED | before | mark)
        # it logs while it is imported, before it reads the variable
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        import vllm  # noqa: F401  # what the import itself sets stays: a core that is forked later needs it

        before = {
            name: os.environ[name] for name in os.environ.keys() - ((WANTED | mark).keys() - before.keys())
        }
        if offline:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            constants.HF_HUB_OFFLINE = True
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def engine_arguments(model: SampledModel, flags: EngineFlags) -> dict[str, Any]:
    """vLLM's arguments; also what `LLM` must be given to be the same engine. RecipeError for one that the
    card or a flag names and this vLLM does not have."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    known = {item.name for item in dataclasses.fields(AsyncEngineArgs)}
    given = read_flags(flags.engine_arguments)
    check_known(model.arguments, known, f"{model.name}: engine.arguments")
    check_known(given, known, "--engine-arg")

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
        # between the parts of a reply that is held to JSON, a model that is lost writes blanks without end
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if model.config_overrides:
        arguments["hf_overrides"] = model.config_overrides
    asked = model.arguments | given
    if current_platform.is_cpu():
        # a per-request seed kills the CPU engine while chunked prefill is on
        asked |= {"enable_chunked_prefill": False}
        arguments["max_num_batched_tokens"] = max(model.max_model_len, 4096)
        arguments["enforce_eager"] = True
        config = config_here(model, arguments | asked)
        # stated, because the default wants 0.92 of all memory to be free and refuses to start otherwise
        arguments["kv_cache_memory_bytes"] = cache_bytes(config, flags)
        if config is not None and config.is_hybrid:
            arguments["enable_prefix_caching"] = False  # which would want chunked prefill
        if config is None or config.architecture not in TURNED_RIGHT:
            own = asked.get("compilation_config", {})
            if isinstance(own, dict):
                asked["compilation_config"] = {"custom_ops": ["-rotary_embedding"]} | own
    else:
        arguments["gpu_memory_utilization"] = flags.gpu_memory_share
    return arguments | asked


def config_here(model: SampledModel, arguments: dict[str, Any]) -> Any:
    """vLLM's own reading of a model's files, where they are here; else None."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    if not is_here(model):
        return None
    try:
        return AsyncEngineArgs(**arguments).create_model_config()
    except (OSError, ValueError):  # the engine's start will say it
        return None


def cache_bytes(config: Any, flags: EngineFlags) -> int:
    """Bytes of the key-value cache on a CPU: what --kv-cache-gib allows, or less where the requests in flight
    cannot fill that much. vLLM writes all of it at its start, and two engines may be there at once.

    A token holds keys and values of each head in each layer. Twice the sum, for the ends of blocks, layers of
    unequal heads, and prompts that are done and will come again. Layers with a state in place of keys (Mamba,
    linear attention, short convolutions) are not in this sum: such a model gets all.
    """
    most = flags.kv_cache_gib * 2**30
    if config is None or config.is_hybrid or config.is_attention_free:
        return most
    layers, heads = config.get_total_num_hidden_layers(), config.get_total_num_kv_heads()
    token = 2 * layers * heads * config.get_head_size() * config.dtype.itemsize
    tokens = flags.concurrency * (config.max_model_len + CPU_BLOCK)
    return min(most, max(2 * token * tokens, LEAST_CACHE))


def has_one_thread() -> bool:
    """Whether vLLM would give a model on the CPU a single thread: then there is nothing to bind to cores."""
    how = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto")
    if how == "nobind":
        return os.environ.get("OMP_NUM_THREADS") == "1"
    reserved = os.environ.get("VLLM_CPU_NUM_OF_RESERVED_CPU", "1")  # for the process that asks the model
    return how == "auto" and reserved == "1" and num_cores() <= 2


def processes_of(llm: Any) -> list[Any]:
    """The engine's processes (psutil.Process), each core after the workers that it started."""
    manager = llm.engine_core.resources.engine_manager
    cores = manager.processes if manager is not None else []
    return [process for core in cores for process in with_children(core.pid)]


def _first_line(error: BaseException) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    speaks = isinstance(error, (RuntimeError, ValueError, OSError)) and line  # a KeyError is a name alone
    return line if speaks else f"{type(error).__name__}: {line}"
