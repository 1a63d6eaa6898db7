"""Sampling from OpenAI-compatible servers (`vllm serve` and others), one or many, with failover.

Chat completions: the server renders the prompt with the model's template and the card's options. Where the
tokenizer is at hand and the server is a vLLM, both renderings are compared before the first request.
Thinking is read from `reasoning` or `reasoning_content`, else split off the text.

Tried again, with backoff and on another server where there is one: no connection, a connection that drops, no
answer in time, no HTTP, 408, 429, 500, 502, 503, 504. Everything else is recorded as a failure of its kind at
once. The key, where servers want one, is read from RETORT_API_KEY and goes into the request header only.
"""

import asyncio
import json
import logging
import math
import os
import random
from types import TracebackType
from typing import Any, Self

from pipeline.errors import EngineError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel, Tags
from pipeline.recipe.prompts import Chat
from pipeline.records import Tokens
from pipeline.render import Split, join_response
from pipeline.run.secrets import read_key
from pipeline.sampling.engines.base import LOWEST_LOGPROB, Completion, Request, RequestFailed
from pipeline.sampling.engines.fetch import Bounds, Fetcher, Retry
from pipeline.sampling.engines.replicas import Replica, Replicas
from pipeline.sampling.prompts import ChatPrompts, load_prompts

log = logging.getLogger(__name__)

PROBE = [{"role": "user", "content": "What is 1 + 2?"}]
MAX_ATTEMPTS = 6
MAX_TIMEOUTS = 2  # each may have cost a whole generation
FIRST_BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 30.0
HEALTH_SECONDS = 0.2
MAX_FAILED_IN_A_ROW = 8
SHORTEST_TIMEOUT_SECONDS = 1800.0
SLOWEST_TOKENS_PER_SECOND = 4.0  # of one request on a full server; a timeout throws away what was paid
MODELS_BYTES = 4 * 2**20  # the longest lists of public routers have a quarter of it
# of an answer: what stands around the text; a token as JSON, in two fields; its log-probability
ANSWER_BYTES, TOKEN_BYTES, LOGPROB_BYTES = 256 * 2**10, 128, 512
MAX_COUNT = 2**31  # of tokens, and no token's id is above it
LONGEST_REASON = 40


class ServerEngine:
    """`model` at the URLs of `flags`. An async context manager; `notes` hold requests and outages per URL."""

    def __init__(self, model: SampledModel, flags: EngineFlags) -> None:
        self.notes: dict[str, Any] = {"engine": "server"}
        self._model = model
        self._flags = flags
        self._key = read_key(os.environ)
        self._fetcher = Fetcher(self._key)
        self._replicas = Replicas(flags.urls, flags.concurrency, flags.outage_seconds)
        self._probed = False
        self._probing = asyncio.Lock()
        self._watches: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._fetcher.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self._fetcher.__aexit__(kind, error, trace)
        self.notes["servers"] = self._replicas.notes()

    async def ready(self) -> None:
        if not self._probed:
            async with self._probing:
                if not self._probed:
                    await self._probe()
                    self._probed = True

    async def prompts(self) -> ChatPrompts | None:
        """The model's tokenizer where it is on this machine; servers need none here."""
        return await asyncio.to_thread(load_prompts, self._model, local_only=True)

    def prompt(self, messages: Chat) -> Chat:
        return messages

    async def sample(self, request: Request) -> Completion:
        sampling, body = request.sampling, request_body(request, self._model)
        attempts: dict[str, int] = {}
        last: Replica | None = None
        waited = 0.0
        while True:
            last = await self._replicas.take(avoid=last)
            cuts = last.cuts
            try:
                return await self._ask(last, body, request)
            except Retry as retry:
                self._note(last, retry, cuts)
                attempts[retry.kind] = attempts.get(retry.kind, 0) + 1
                pause = backoff_seconds(sum(attempts.values()), retry.wait_seconds)
                waited += pause
                if self._is_enough(attempts, waited, timeout_seconds(self._flags, sampling.max_tokens)):
                    raise RequestFailed(retry.kind, str(retry)) from None
            finally:
                self._replicas.give_back(last)
            await asyncio.sleep(pause)

    def _is_enough(self, attempts: dict[str, int], waited: float, timeout: float) -> bool:
        """Whether to give a request up. Being told to slow down is no failure, while time lasts."""
        told = attempts.get("http_429", 0)
        return (
            sum(attempts.values()) - told >= MAX_ATTEMPTS
            or attempts.get("timeout", 0) >= MAX_TIMEOUTS
            or (told > 0 and waited > timeout)
        )

    def _note(self, replica: Replica, retry: Retry, cuts: int) -> None:
        replica.counts[retry.kind] += 1
        if retry.kind in ("http_429", "http_503"):
            replica.refused(cuts, retry.wait_seconds or 0.0)
            return
        replica.failed_in_a_row += 1
        unwell = retry.kind == "connection" or replica.failed_in_a_row >= MAX_FAILED_IN_A_ROW
        if unwell and self._replicas.fell(replica, f"{retry.kind}: {retry}"):
            watch = asyncio.create_task(self._watch(replica))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)

    async def _watch(self, replica: Replica) -> None:
        """Ask a server that is down what it serves until it answers; it may be another one than before."""
        pause, said = HEALTH_SECONDS, ""
        while True:
            await asyncio.sleep(pause)
            try:
                await self._learn(replica)
            except (Retry, RequestFailed, EngineError) as error:
                pause = min(pause * 1.5, MAX_BACKOFF_SECONDS)
                if isinstance(error, EngineError) and said != str(error):
                    said = str(error)
                    log.warning("%s answers but is not used: %s", replica.url, said)
                continue
            self._replicas.rose(replica)
            return

    async def _ask(self, replica: Replica, body: dict[str, Any], request: Request) -> Completion:
        url = f"{replica.url}/chat/completions"
        bounds = bounds_of(request, self._flags)
        answer = await self._fetcher.fetch("POST", url, bounds, body | extras(replica, request))
        self._replicas.sign_of_life()
        replica.succeeded()
        try:
            done = read_answer(answer, replica.model, self._model)
        except RequestFailed as failure:
            raise RequestFailed(failure.kind, self._key.shown(failure.detail)) from None
        if self._key.stands_in(done.text) or self._key.stands_in(done.finish_reason):
            raise RequestFailed("echoes_key", "the response quotes the API key; it is not stored")
        if request.keep_tokens and done.tokens is None:
            raise EngineError(
                f"{replica.url} does not give a log-probability for each token id, and generate.keep_tokens "
                "stores both. Start a vLLM server (make serve-teacher), or set generate.keep_tokens: false"
            )
        return done

    async def _models(self, replica: Replica) -> dict[str, Any]:
        answer = await self._fetcher.fetch("GET", f"{replica.url}/models", self._small())
        try:
            return {str(entry["id"]): entry for entry in answer["data"]}
        except (TypeError, KeyError, RecursionError):
            raise RequestFailed("invalid_answer", f"{replica.url}/models lists no models") from None

    def _small(self) -> Bounds:
        return Bounds(timeout_seconds(self._flags, 0), MODELS_BYTES)

    async def _probe(self) -> None:
        """Learn what each server has; EngineError where one has another model, or none answers."""
        found: dict[str, str] = {}
        for replica in self._replicas.all:
            try:
                await self._learn(replica)
            except (Retry, RequestFailed) as error:
                found[replica.url] = f"{error}; is it the address that ends in /v1?"
                self._note(replica, Retry("connection", str(error)), replica.cuts)
        if all(replica.down for replica in self._replicas.all):
            listed = "; ".join(f"{url}: {what}" for url, what in found.items())
            raise EngineError(f"no server answers ({listed}). Start one with make serve-teacher")

    async def _learn(self, replica: Replica) -> None:
        """The name of the model there, and whether it is a vLLM. EngineError where it is another model."""
        models = await self._models(replica)
        name = served_name(self._model, self._flags, list(models))
        if name is None:
            raise EngineError(
                f"{replica.url} does not serve {self._model.name} ({self._model.model}); it serves "
                f"{self._key.shown(', '.join(models)) or 'nothing'}. Start it with make serve-teacher, or "
                "name it with --served-name"
            )
        replica.model = name
        replica.is_vllm = models[name].get("owned_by") == "vllm"
        longest = models[name].get("max_model_len")
        known = longest if isinstance(longest, int) and 0 < longest < MAX_COUNT else None
        self.notes.setdefault("max_model_len", {})[replica.url] = known
        if replica.is_vllm:
            await self._compare_prompts(replica)

    async def _compare_prompts(self, replica: Replica) -> None:
        """EngineError where the server renders a prompt to other token ids than this side does."""
        prompts = await self.prompts()
        if prompts is None:
            log.info("%s: prompts not compared, no tokenizer of %s here", replica.url, self._model.name)
            return
        ours = await asyncio.to_thread(prompts.ids, PROBE)
        body = {
            "model": replica.model,
            "messages": PROBE,
            "add_generation_prompt": True,
            "chat_template_kwargs": self._model.template_options,
        }
        try:
            url = f"{replica.url.removesuffix('/v1')}/tokenize"
            answer = await self._fetcher.fetch("POST", url, self._small(), body)
            theirs = list(answer["tokens"])
        except (RequestFailed, KeyError, TypeError) as error:
            log.info("%s: prompts not compared, /tokenize does not answer (%s)", replica.url, error)
            return
        if ours != theirs:
            raise EngineError(
                f"{replica.url} renders prompts with another template: {len(theirs)} tokens where "
                f"{self._model.name} has {len(ours)}. Start it with make serve-teacher"
            )
        self.notes["prompts_compared"] = True


def timeout_seconds(flags: EngineFlags, max_tokens: int) -> float:
    """How long a request may take: as the flags say, else as long as `max_tokens` take on a full server."""
    longest = max(SHORTEST_TIMEOUT_SECONDS, max_tokens / SLOWEST_TOKENS_PER_SECOND)
    return longest if flags.request_timeout_seconds is None else flags.request_timeout_seconds


def bounds_of(request: Request, flags: EngineFlags) -> Bounds:
    """What the answer to a request may take."""
    num_tokens = request.sampling.max_tokens
    each = TOKEN_BYTES + (LOGPROB_BYTES if request.keep_tokens else 0)
    return Bounds(timeout_seconds(flags, num_tokens), ANSWER_BYTES + each * num_tokens)


def request_body(request: Request, model: SampledModel) -> dict[str, Any]:
    """The body of a chat completion, in the terms that every server knows."""
    body: dict[str, Any] = {
        "messages": request.prompt,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "max_tokens": request.sampling.max_tokens,
        "seed": request.seed,
    }
    if request.keep_tokens:
        body["logprobs"] = True
    if request.reply_schema is not None:
        named = {"name": "reply", "schema": request.reply_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    if model.template_options:
        body["chat_template_kwargs"] = model.template_options
    if "reasoning_effort" in model.template_options:  # vLLM renders gpt-oss without its template
        body["reasoning_effort"] = model.template_options["reasoning_effort"]
    if model.eos is not None:
        body["stop"] = [model.eos]
    return body


def read_answer(answer: Any, expected: str, model: SampledModel) -> Completion:
    """The completion in a server's JSON. Raises RequestFailed for what is not an answer to what was asked."""
    try:
        if answer["model"] != expected:
            raise RequestFailed("wrong_model", f"asked {expected}, the answer is from {answer['model']}")
        if not answer["choices"]:
            raise RequestFailed("empty_choices", json.dumps(answer))
        choice = answer["choices"][0]
        message = choice["message"]
        reason = choice["finish_reason"] or "unknown"
        usage = answer.get("usage") or {}
        tokens = (count_of(usage, "prompt_tokens"), count_of(usage, "completion_tokens"))
        content = message.get("content") or ""
        thinking = message.get("reasoning") or message.get("reasoning_content")
        if not all(isinstance(text, str) for text in (content, thinking or "", reason)):
            raise TypeError("content, reasoning or finish_reason is not text")
        if len(reason) > LONGEST_REASON or not (reason.isascii() and reason.isprintable()):
            raise ValueError(f"finish_reason is {reason}")
        kept = tokens_of(choice)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise RequestFailed("invalid_answer", f"{type(error).__name__}: {error}") from None
    if reason in ("abort", "error"):
        raise RequestFailed("engine_error", f"finish_reason {reason}")
    text = content if thinking is None else rejoined(thinking, content, model.tags)
    # JSON can hold half of a surrogate pair, which no file can
    return Completion(text.encode(errors="replace").decode(), reason, *tokens, kept)


def rejoined(thinking: str, content: str, tags: Tags) -> str:
    """The response that a server's reasoning parser took apart, as the model must have written it.

    A parser that found no closing tag calls all of the text reasoning: the block was not closed then.
    """
    split = Split(thinking.strip("\n"), content.strip(), "closed" if content.strip() else "unclosed")
    return join_response(split, tags, f"{tags.open}\n" if tags.opened_by_prompt else "")


def tokens_of(choice: dict[str, Any]) -> Tokens | None:
    """The sampled tokens; None where the server did not give an id and a log-probability of each."""
    ids, steps = choice.get("token_ids"), (choice.get("logprobs") or {}).get("content")
    if ids is None or steps is None or len(ids) != len(steps):
        return None
    kept = [int(token) for token in ids], [max(float(step["logprob"]), LOWEST_LOGPROB) for step in steps]
    if not all(0 <= token < MAX_COUNT for token in kept[0]) or not all(map(math.isfinite, kept[1])):
        raise ValueError("a token's id or log-probability is none")
    return Tokens(*kept)


def count_of(usage: dict[str, Any], name: str) -> int:
    """A number of tokens in a server's `usage`, 0 where it says none."""
    count = int(usage.get(name) or 0)
    if not 0 <= count < MAX_COUNT:
        raise ValueError(f"usage.{name} is no number of tokens")
    return count


def served_name(model: SampledModel, flags: EngineFlags, served: list[str]) -> str | None:
    """Which of the names that a server lists is this model."""
    wanted = [flags.served_name] if flags.served_name else [model.name, model.model]
    return next((name for name in wanted if name in served), None)


def backoff_seconds(attempt: int, asked: float | None) -> float:
    """Exponential with full jitter, and never less than the server asked for."""
    longest = min(FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1), MAX_BACKOFF_SECONDS)
    return max(random.uniform(0, longest), asked or 0.0)


def extras(replica: Replica, request: Request) -> dict[str, Any]:
    """What only vLLM is sure to know. There everything is said, for it has defaults from the model's
    generation_config.json, and special tokens are kept, for they are the tags of some models."""
    named: dict[str, Any] = {"top_k": request.sampling.top_k, "min_p": request.sampling.min_p}
    if replica.is_vllm:
        if request.keep_tokens:
            named["return_token_ids"] = True
        return {"model": replica.model, "skip_special_tokens": False, "repetition_penalty": 1.0, **named}
    return {"model": replica.model, **{name: value for name, value in named.items() if value}}
