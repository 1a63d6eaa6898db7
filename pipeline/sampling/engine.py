"""The one interface of all engines, and how an engine is started.

    async with start_engine(model, flags) as engine:
        prompt = engine.prompt(messages)
        completion = await engine.sample(prompt, sampling, seed)

`vllm` runs in this process (pipeline.sampling.vllm_engine), `server` is any number of OpenAI-compatible URLs
(pipeline.sampling.server_engine). A request that gives no trace raises RequestFailed: data, to be recorded
by kind. EngineError means that no further request can succeed.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from pipeline.cards import SampledModel
from pipeline.errors import RecipeError
from pipeline.recipe import Sampling
from pipeline.render import Tags, split_thinking
from pipeline.sampling.prompts import ChatPrompts


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """How a model runs: never in a recipe, a fingerprint or a key.

    `concurrency` bounds the requests in flight (and vLLM's max_num_seqs). Sizes that are None are the card's.
    `kv_cache_gib` bounds the cache of vLLM's CPU build. EngineError comes after `max_restarts` of a dead
    engine, or when no server has answered for `outage_seconds`. `request_timeout_seconds` None goes by
    max_tokens.
    """

    engine: Literal["vllm", "server"] = "vllm"
    urls: tuple[str, ...] = ()
    concurrency: int = 256
    tensor_parallel: int | None = None
    data_parallel: int | None = None
    gpu_memory_share: float = 0.92
    kv_cache_gib: int = 2
    max_restarts: int = 3
    served_name: str | None = None
    request_timeout_seconds: float | None = None
    outage_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise RecipeError(f"--concurrency {self.concurrency}: at least 1 request must be in flight")
        for flag, size in (("tensor", self.tensor_parallel), ("data", self.data_parallel)):
            if size is not None and size < 1:
                raise RecipeError(f"--{flag}-parallel {size}: at least 1 device; leave it out for the card's")
        if self.engine == "server" and not self.urls:
            raise RecipeError(
                "--engine server: give at least one --url, for example http://127.0.0.1:8000/v1"
            )
        if any("@" in url for url in self.urls):
            raise RecipeError("--url: no user or password in a URL, it would be recorded; use RETORT_API_KEY")
        if self.engine == "vllm" and self.urls:
            raise RecipeError("--url is for --engine server; the engine in this process takes none")
        for url in self.urls:
            check_url(url)
        if len({url.rstrip("/") for url in self.urls}) < len(self.urls):
            raise RecipeError(f"--url: one server stands twice in {', '.join(self.urls)}; name each once")


def check_url(url: str) -> None:
    """RecipeError where no request can be sent to `url`."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        fits = fits and not parts.query and not parts.fragment  # nor would a key in it stay unrecorded
    except ValueError:  # a port that is no number, a bracket that is not closed
        fits = False
    if not fits or any(character.isspace() for character in url):
        raise RecipeError(
            f"--url {url}: is not the http:// or https:// address of a server; give one with its host, for "
            "example http://127.0.0.1:8000/v1"
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """One response. `finish_reason` is the engine's word, or "unclosed" (see pipeline.records.Trace)."""

    thinking: str | None
    answer: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int


class RequestFailed(Exception):
    """A request that gave no trace, by kind ("http_500", "timeout", ...); recorded, tried again on resume."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class Engine(Protocol):
    """What the loop needs. `notes` holds what the manifest records: restarts, failovers, versions."""

    notes: dict[str, Any]

    async def ready(self) -> None:
        """Return when requests can be made. The first call starts the engine: adopting needs none."""

    async def prompts(self) -> ChatPrompts | None:
        """The model's chat template and tokenizer, without starting the engine; None where not here."""

    def prompt(self, messages: list[dict[str, str]]) -> Any:
        """The prompt in the engine's own form: token ids of the chat template, or the messages."""

    async def sample(self, prompt: Any, sampling: Sampling, seed: int) -> Completion:
        """One completion. Raises RequestFailed (this request) or EngineError (all of them)."""


def completion_of(text: str, finish_reason: str, tokens: tuple[int, int], tags: Tags) -> Completion:
    """Split `text`; `tokens` are those of prompt and output. A block left open is marked, never repaired."""
    split = split_thinking(text, tags)
    if split.closing == "unclosed" and finish_reason == "stop":
        finish_reason = "unclosed"
    return Completion(split.thinking, split.answer, finish_reason, *tokens)


@asynccontextmanager
async def start_engine(model: SampledModel, flags: EngineFlags) -> AsyncIterator[Engine]:
    """Start the engine that `flags` name for `model`; no process of it outlives the context."""
    if flags.engine == "server":
        from pipeline.sampling.server_engine import ServerEngine

        async with ServerEngine(model, flags) as server:
            yield server
    else:
        from pipeline.sampling.vllm_engine import VllmEngine

        async with VllmEngine(model, flags) as engine:
            yield engine
