"""The one interface of all engines, and how an engine is started.

    async with start_engine(model, flags) as engine:
        prompt = engine.prompt(messages)
        completion = await engine.sample(Request(prompt, sampling, seed, key))

`vllm` runs in this process, `server` is any number of OpenAI-compatible URLs, `ray` any number of the first
on a cluster. A request that gives no trace raises RequestFailed: data, to be recorded by kind. EngineError
means that no further request can succeed.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Protocol

from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.prompts import Chat
from pipeline.recipe.schema import Sampling
from pipeline.records import Key, Tokens
from pipeline.sampling.prompts import ChatPrompts

# each is made of (model, flags) and is an async context manager; none is imported before it is asked for
ENGINES = {
    "vllm": "pipeline.sampling.engines.vllm:VllmEngine",
    "server": "pipeline.sampling.engines.server:ServerEngine",
    "ray": "pipeline.sampling.engines.ray:RayEngine",
}

LOGPROB_DIGITS = 5  # of the most likely tokens, which are many: the rest is below what bfloat16 tells apart
LOWEST_LOGPROB = -9999.0  # JSON has no minus infinity; vLLM's own servers say this


@dataclass(frozen=True, slots=True)
class Request:
    """One sample that is asked for. `key` is the problem's id and the sample's number, `keep_tokens` asks for
    token ids and log-probabilities, `top_logprobs` for those of so many most likely tokens beside,
    `reply_schema` (JSON Schema) for a response that is nothing but JSON of that form; a prompt is in the
    engine's own form."""

    prompt: Any
    sampling: Sampling
    seed: int
    key: Key
    keep_tokens: bool = False
    reply_schema: dict[str, Any] | None = None
    top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One response: `text` as it was sampled, `finish_reason` "stop" or "length". Numbers of tokens are None
    where nobody has counted them. `tokens` where asked."""

    text: str
    finish_reason: str
    prompt_tokens: int | None
    output_tokens: int | None
    tokens: Tokens | None = None


def likeliest(logprobs: dict[int, float], number: int) -> list[tuple[int, float]]:
    """The most likely tokens with their log-probabilities, to what a reader of a trace can use of them."""
    pairs = sorted(logprobs.items(), key=lambda pair: (-pair[1], pair[0]))[:number]
    return [(token, round(logprob, LOGPROB_DIGITS)) for token, logprob in pairs]


class RequestFailed(Exception):
    """A request that gave no trace, by kind ("http_500", "timeout", ...); recorded, tried again on resume."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)  # what it is made of again in another process
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class Engine(Protocol):
    """What the loop needs. `notes` holds what the manifest records: restarts, failovers, versions."""

    notes: dict[str, Any]

    async def ready(self) -> None:
        """Return when requests can be made. The first call starts the engine: adopting needs none."""

    async def prompts(self) -> ChatPrompts | None:
        """The model's chat template and tokenizer, without starting the engine; None where not here."""

    def prompt(self, messages: Chat) -> Any:
        """The prompt in the engine's own form: token ids of the chat template, or the messages."""

    async def sample(self, request: Request) -> Completion:
        """One completion. Raises RequestFailed (this request) or EngineError (all of them)."""

    async def tokens_in_flight(self) -> int | None:
        """Tokens of responses that are not finished; None where that is not known."""


class ScoringEngine(Engine, Protocol):
    """An engine that also says how likely a text is that somebody else wrote."""

    async def score(self, prompt: list[int], response: list[int]) -> list[float]:
        """The log-probability that the model gives to each token of `response` after `prompt`, at temperature
        1; both are token ids. Raises like `sample`."""


@asynccontextmanager
async def start_engine(model: SampledModel, flags: EngineFlags) -> AsyncIterator[Engine]:
    """Start the engine that `flags` name for `model`; no process of it outlives the context."""
    async with resolve_name(ENGINES[flags.engine])(model, flags) as engine:
        yield engine
