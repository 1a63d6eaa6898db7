"""Sampling from OpenAI-compatible servers (`vllm serve` and others), one or many, with failover.

Chat completions: the server renders the prompt with the model's template and the card's options. Where the
tokenizer is at hand and the server is a vLLM, both renderings are compared before the first request. A vLLM
stops working for a reader that has gone and counts its tokens in /metrics; any other server is asked for a
stream, which does both. Whose answers look how stands in docs/servers.md. A text that
somebody else wrote is scored by completions of its token ids with prompt_logprobs, which vLLM's server has.

Tried again, with backoff and on another server where there is one: no connection, a connection that drops, no
answer in time, no HTTP, an empty answer, 408, 409, 429, 500, 502 to 504, 520 to 530. Everything else is
recorded as a failure of its kind at once. The key, where servers want one, is read from RETORT_API_KEY and
goes into the request header only.
"""

import asyncio
import dataclasses
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from pipeline.errors import EngineError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.prompts import Chat
from pipeline.records import STOP
from pipeline.render import split_response
from pipeline.run.secrets import read_key
from pipeline.sampling.engines.answers import (
    MAX_COUNT,
    ServerAnswer,
    end_of,
    logprob_of,
    read_answer,
    same_model,
)
from pipeline.sampling.engines.base import Completion, Request, RequestFailed
from pipeline.sampling.engines.faults import BUSY, BadRequest, Forbidden, Retry, wants_a_key
from pipeline.sampling.engines.fetch import Bounds, Fetcher
from pipeline.sampling.engines.parameters import adapted, learn
from pipeline.sampling.engines.replicas import Replica, Replicas
from pipeline.sampling.prompts import THE_DAY, ChatPrompts, is_dated, load_prompts

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

DATED = "its chat template prints the day's date, so prompts change by the day"
PROBE = [{"role": "user", "content": "What is 1 + 2?"}]
MAX_ATTEMPTS = 6
# attempts of one kind: each may have cost a whole generation
MAX_OF_A_KIND = {"timeout": 2, "cut_stream": 2, "empty_choices": 2, "empty_answer": 3}
FIRST_BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 30.0
HEALTH_SECONDS = 0.2
MAX_FAILED_IN_A_ROW = 8
SHORTEST_TIMEOUT_SECONDS = 1800.0
SLOWEST_TOKENS_PER_SECOND = 4.0  # of one request on a full server; a timeout throws away what was paid
MODELS_BYTES = 4 * 2**20  # the longest lists of public routers have a quarter of it
# of an answer: what stands around the text; a token as JSON, in two fields; its log-probability
ANSWER_BYTES, TOKEN_BYTES, LOGPROB_BYTES = 256 * 2**10, 128, 512
NUM_FIRST = 16  # responses after which it is told that none of them has an answer
METRICS_SECONDS = 2.0  # between two looks at a vLLM's counters
IDLE_SECONDS = 10.0  # unasked for so long, a server may be another one: no vLLM starts in less
GENERATED = re.compile(r"^vllm:generation_tokens(?:_total)?(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)


class NoTokenIds(EngineError):
    """A server that was asked for the ids of the tokens that it samples, and gives none."""


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
        self._tokenizer: asyncio.Task[ChatPrompts | None] | None = None
        self._told: set[str] = set()
        self._closed: list[bool] = []  # of the first responses that ended: whether their thinking is closed
        self._day: dict[str, str] = {}  # for a template that would print today's
        self._counted: tuple[float, int | None] = (0.0, None)

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
        if left_out := {r.url: sorted(r.left_out) for r in self._replicas.all if r.left_out}:
            self.notes["left_out"] = left_out

    async def ready(self) -> None:
        """Also after a pause, in which servers may have been exchanged without a request that failed."""
        if self._probed and not self._replicas.idle_for(IDLE_SECONDS):
            return
        async with self._probing:
            if not self._probed:
                self._replicas.sign_of_life()  # nobody has asked until now: an outage begins here
                await self._probe()
                self._probed = True
            elif self._replicas.idle_for(IDLE_SECONDS):
                await self._look_again()
                self._replicas.sign_of_life()  # not before: whoever asks meanwhile waits here

    async def prompts(self) -> ChatPrompts | None:
        """The model's tokenizer where it is on this machine; servers need none here."""
        return await asyncio.to_thread(load_prompts, self._model, local_only=True)

    def prompt(self, messages: Chat) -> Chat:
        return messages

    async def sample(self, request: Request) -> Completion:
        body = request_body(request, self._model)
        if self._day:
            body["chat_template_kwargs"] = {**self._model.template_options, **self._day}
        return await self._until_answered(
            lambda replica: self._ask(replica, body, request), request.sampling.max_tokens
        )

    async def score(self, prompt: list[int], response: list[int]) -> list[float]:
        await self.ready()
        ids = [*prompt, *response]
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        bounds = Bounds(timeout_seconds(self._flags, len(ids)), ANSWER_BYTES + LOGPROB_BYTES * len(ids))

        async def ask(replica: Replica) -> list[float]:
            url = f"{replica.url}/completions"
            answer = await self._fetcher.fetch("POST", url, bounds, body | {"model": replica.model})
            self._answered(replica)
            try:
                return read_scores(answer, ids, replica, self._names())[len(prompt) :]
            except RequestFailed as failure:
                raise RequestFailed(failure.kind, self._key.shown(failure.detail)) from None

        return await self._until_answered(ask, len(ids))

    async def _until_answered(self, ask: Callable[[Replica], Awaitable[Answer]], num_tokens: int) -> Answer:
        """Ask one server after another while what goes wrong is transient; `num_tokens` decide how long."""
        attempts: dict[str, int] = {}
        last: Replica | None = None
        waited = 0.0
        while True:
            last = await self._replicas.take(avoid=last)
            cuts = last.cuts
            try:
                return await ask(last)
            except Retry as retry:
                attempts[retry.kind] = attempts.get(retry.kind, 0) + 1
                if self._note(last, retry, cuts):
                    continue  # taking the next place knows for how long
                asked = None if self._is_too_long(retry) else retry.wait_seconds
                pause = backoff_seconds(sum(attempts.values()), asked)
                waited += pause
                if self._is_enough(attempts, waited, timeout_seconds(self._flags, num_tokens)):
                    raise RequestFailed(retry.kind, str(retry)) from None
            finally:
                self._replicas.give_back(last)
            await asyncio.sleep(pause)

    def _is_enough(self, attempts: dict[str, int], waited: float, timeout: float) -> bool:
        """Whether to give a request up. Being told to slow down is no failure, while time lasts."""
        told = attempts.get("http_429", 0)
        return (
            sum(attempts.values()) - told >= MAX_ATTEMPTS
            or any(attempts.get(kind, 0) >= most for kind, most in MAX_OF_A_KIND.items())
            or (told > 0 and waited > timeout)
        )

    def _is_too_long(self, retry: Retry) -> bool:
        """Whether a server asks for a longer wait than the flags have patience for."""
        return (retry.asked_seconds or 0.0) > self._flags.outage_seconds

    def _note(self, replica: Replica, retry: Retry, cuts: int) -> bool:
        """Count what went wrong; whether the server rests, for longer than the flags have patience for.

        A single answer does not say so of a server that goes on answering others: that one request waits, as
        after any refusal.
        """
        replica.counts[retry.kind] += 1
        told = self._is_too_long(retry)
        rests = told and not replica.has_answered
        if told:
            replica.has_answered = False
        if rests:
            self._replicas.rest(replica, retry.asked_seconds or 0.0, f"{retry.kind} {retry}")
        elif retry.kind in BUSY:
            replica.refused(cuts, 0.0 if told else retry.wait_seconds or 0.0)
        if retry.kind not in BUSY:
            self._failed(replica, retry)
        return rests

    def _failed(self, replica: Replica, retry: Retry) -> None:
        """Count a failure that says nothing of the load; a server that fails too often is down."""
        replica.failed_in_a_row += 1
        if retry.kind == "connection" or replica.failed_in_a_row >= MAX_FAILED_IN_A_ROW:
            self._leave_out(replica, f"{retry.kind}: {retry}")

    def _leave_out(self, replica: Replica, why: str) -> None:
        """Ask a server for nothing until it answers again as what it was."""
        if self._replicas.fell(replica, why):
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
                replica.unfit_for = str(error) if isinstance(error, EngineError) else ""
                if replica.unfit_for and said != replica.unfit_for:
                    said = replica.unfit_for
                    log.warning("%s answers but is not used: %s", replica.url, said)
                continue
            self._replicas.rose(replica)
            return

    async def _ask(self, replica: Replica, body: dict[str, Any], request: Request) -> Completion:
        answer = await self._fetch_as_it_is_taken(replica, body | extras(replica, request), request)
        self._answered(replica)
        try:
            read = read_answer(answer, (replica.model, *self._names()), self._model)
            read = await self._counted_here(replica, read, request)
            reason = end_of(read, request.sampling.max_tokens)
        except RequestFailed as failure:
            raise RequestFailed(failure.kind, self._key.shown(failure.detail)) from None
        except Retry as retry:
            raise Retry(retry.kind, self._key.shown(str(retry))) from None
        replica.generated += read.output_tokens or 0
        done = Completion(read.text, reason, read.prompt_tokens, read.output_tokens, read.tokens)
        if self._key.stands_in(done.text) or self._key.stands_in(read.word or ""):
            raise RequestFailed("echoes_key", "the response quotes the API key; it is not stored")
        self._look_at_the_first(replica, done)
        if request.keep_tokens and (done.tokens is None or done.tokens.num_top < request.top_logprobs):
            more = f" and the {request.top_logprobs} likeliest" if request.top_logprobs else ""
            raise NoTokenIds(
                f"{replica.url} does not give a log-probability for each token id{more}, and "
                "generate.keep_tokens stores them. Start a vLLM server (make serve-teacher), or set "
                "generate.keep_tokens: false"
            )
        return done

    def _names(self) -> tuple[str, ...]:
        return self._model.name, self._model.model

    async def _counted_here(self, replica: Replica, read: ServerAnswer, request: Request) -> ServerAnswer:
        """The answer with the tokens counted by the model's tokenizer where the server does not count them;
        unknown they stay where it is not on this machine."""
        if read.output_tokens is not None and read.prompt_tokens is not None:
            return read
        if self._tokenizer is None:
            self._tokenizer = asyncio.ensure_future(self.prompts())
        prompts = await asyncio.shield(self._tokenizer)
        self.notes["tokens"] = "not counted by the server: " + (
            "unknown" if prompts is None else f"counted here, by the tokenizer of {self._model.model}"
        )
        self._say(f"{replica.url}: tokens are {self.notes['tokens']}")
        if prompts is None:
            return read
        output = await asyncio.to_thread(prompts.encode, read.text)
        prompt = await asyncio.to_thread(prompts.ids, request.prompt)
        return dataclasses.replace(
            read,
            output_tokens=len(output) if read.output_tokens is None else read.output_tokens,
            prompt_tokens=len(prompt) if read.prompt_tokens is None else read.prompt_tokens,
        )

    def _look_at_the_first(self, replica: Replica, done: Completion) -> None:
        """Say so where none of the first responses has an answer behind its thinking: no verifier will see
        any then."""
        tags = self._model.tags
        if not tags or done.finish_reason != STOP or len(self._closed) >= NUM_FIRST:
            return
        self._closed.append(split_response(done.text, tags).closing == "closed")
        if len(self._closed) == NUM_FIRST and not any(self._closed):
            log.warning(
                "%s: none of the first %d responses holds %s, so none has an answer behind its thinking. "
                "Where the server hides the thinking say thinking: hidden in the card of %s, where the model "
                "writes none thinking: none",
                replica.url,
                NUM_FIRST,
                tags.close,
                self._model.name,
            )

    def _say(self, line: str) -> None:
        """Log a line once."""
        if line not in self._told:
            self._told.add(line)
            log.info("%s", line)

    async def tokens_in_flight(self) -> int | None:
        """Tokens of responses that are not finished: the pieces of streams, and what vLLMs have generated by
        their own counters beyond what was answered. (A vLLM that others use too is ahead of that.)"""
        asked, count = self._counted
        if time.monotonic() - asked > METRICS_SECONDS:
            vllms = [replica for replica in self._replicas.all if replica.is_vllm and not replica.down]
            found = await asyncio.gather(*map(self._ahead, vllms))
            count = None if None in found else sum(number or 0 for number in found)
            self._counted = (time.monotonic(), count)
        return None if count is None else count + self._fetcher.pieces

    async def _ahead(self, replica: Replica) -> int | None:
        """Tokens that a vLLM has generated since it was asked first and that are in no answer yet."""
        url = f"{replica.url.removesuffix('/v1')}/metrics"
        try:
            text = await self._fetcher.text(url, Bounds(METRICS_SECONDS, MODELS_BYTES))
        except (Retry, RequestFailed, EngineError):
            return None
        counts = [int(float(number)) for number in GENERATED.findall(text)]
        if not counts:
            return None
        if replica.generated_before is None:
            replica.generated_before = sum(counts) - replica.generated
        return max(sum(counts) - replica.generated_before - replica.generated, 0)

    async def _fetch_as_it_is_taken(self, replica: Replica, body: dict[str, Any], request: Request) -> Any:
        """The answer to a request whose parameters are those that the server takes, as far as they are known;
        what it refuses is learnt and asked again without."""
        url, bounds = f"{replica.url}/chat/completions", bounds_of(request, self._flags)
        for _ in range(len(body)):
            try:
                return await self._fetcher.fetch("POST", url, bounds, adapted(body, replica))
            except BadRequest as refusal:
                if not learn(replica, body, refusal.said, refusal.detail):
                    raise
            except Forbidden as refusal:
                # of the key, unless the server says that it is the question, or has answered others
                if not refusal.moderated and not replica.counts["answered"]:
                    raise wants_a_key(url, 403) from None
                raise
        raise RequestFailed("http_400", "it refuses a parameter that it was not sent")

    def _answered(self, replica: Replica) -> None:
        self._replicas.sign_of_life()
        replica.succeeded()

    async def _models(self, replica: Replica) -> dict[str, Any]:
        """What a server lists, by name. What it lists is of no matter where the name is given."""
        try:
            answer = await self._fetcher.fetch("GET", f"{replica.url}/models", self._small())
            entries = answer["data"] if isinstance(answer, dict) else answer
            return {str(entry["id"]): entry for entry in entries}
        except (RequestFailed, TypeError, KeyError, RecursionError) as error:
            if self._flags.served_name is not None:
                self._say(f"{replica.url}: lists no models; {self._flags.served_name} is asked for as named")
                return {self._flags.served_name: {}}
            if isinstance(error, RequestFailed):
                raise
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

    async def _look_again(self) -> None:
        """Compare each server with what it was; one that is none of it any more is as one that is down."""
        for replica in self._replicas.all:
            if replica.down:
                continue  # its watch does
            try:
                await self._learn(replica)
            except (Retry, RequestFailed, EngineError) as error:
                replica.unfit_for = str(error) if isinstance(error, EngineError) else ""
                self._leave_out(replica, str(error))

    async def _learn(self, replica: Replica) -> None:
        """The name of the model there, and whether it is a vLLM. EngineError where it is another model, or
        less than what was there before."""
        models = await self._models(replica)
        try:
            name = served_name(self._model, self._flags, list(models))
        except EngineError as error:
            raise EngineError(f"{replica.url}: {self._key.shown(str(error))}") from None
        if name is None:
            raise EngineError(
                f"{replica.url} does not serve "
                f"{self._flags.served_name or f'{self._model.name} ({self._model.model})'}; it serves "
                f"{self._key.shown(', '.join(models)) or 'nothing'}. Start it with make serve-teacher, or "
                "name it with --served-name"
            )
        entry = models.get(name, {})
        longest, root = entry.get("max_model_len"), str(entry.get("root") or "")
        known = longest if isinstance(longest, int) and 0 < longest < MAX_COUNT else None
        came = replica.came_back_as(root, known)
        if came:
            raise EngineError(
                f"{replica.url} {self._key.shown(came)}. Start it again as it was; only where these are the "
                "same weights at another place, run the same command again"
            )
        replica.model, replica.root = name, root or replica.root
        replica.positions = known if replica.positions is None else replica.positions
        self.notes.setdefault("asked_as", {})[replica.url] = self._key.shown(name)
        replica.is_vllm = entry.get("owned_by") == "vllm"
        self.notes.setdefault("max_model_len", {})[replica.url] = known
        if replica.is_vllm:
            await self._compare_prompts(replica)
        elif is_dated(self._model):
            self._say(f"{replica.url}: {DATED}")

    async def _compare_prompts(self, replica: Replica) -> None:
        """EngineError where the server renders a prompt to other token ids than this side does."""
        prompts = await self.prompts()
        if prompts is None:
            log.info("%s: prompts not compared, no tokenizer of %s here", replica.url, self._model.name)
            return
        ours = await asyncio.to_thread(prompts.ids, PROBE)
        if prompts.is_dated:
            self._day = {"date_string": THE_DAY.strftime("%d %b %Y")}
        body = {
            "model": replica.model,
            "messages": PROBE,
            "add_generation_prompt": True,
            "chat_template_kwargs": {**self._model.template_options, **self._day},
        }
        try:
            url = f"{replica.url.removesuffix('/v1')}/tokenize"
            answer = await self._fetcher.fetch("POST", url, self._small(), body)
            theirs = list(answer["tokens"])
        except (RequestFailed, KeyError, TypeError) as error:
            log.info("%s: prompts not compared, /tokenize does not answer (%s)", replica.url, error)
            return
        if ours != theirs and prompts.is_dated:
            self._say(f"{replica.url}: {DATED}")
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
    each = TOKEN_BYTES + (LOGPROB_BYTES * (1 + request.top_logprobs) if request.keep_tokens else 0)
    return Bounds(timeout_seconds(flags, num_tokens), ANSWER_BYTES + each * num_tokens)


def request_body(request: Request, model: SampledModel) -> dict[str, Any]:
    """The body of a chat completion, in the terms that every server knows."""
    body: dict[str, Any] = {
        "messages": request.prompt,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "max_tokens": request.sampling.max_tokens,
    }
    if request.sampling.seed == "per_sample":
        body["seed"] = request.seed
    if request.sampling.presence_penalty:
        body["presence_penalty"] = request.sampling.presence_penalty
    if request.keep_tokens:
        body["logprobs"] = True
        if request.top_logprobs:
            body["top_logprobs"] = request.top_logprobs
    if request.reply_schema is not None:
        named = {"name": "reply", "schema": request.reply_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    if model.template_options:
        body["chat_template_kwargs"] = model.template_options
    if "reasoning_effort" in model.template_options:  # vLLM renders gpt-oss without its template
        body["reasoning_effort"] = model.template_options["reasoning_effort"]
    if stop := [*request.sampling.stop, *([] if model.eos is None else [model.eos])]:
        body["stop"] = stop
    return body


def read_scores(answer: Any, ids: list[int], replica: Replica, names: tuple[str, ...] = ()) -> list[float]:
    """The log-probability of every token of a prompt; the first one has none, and is 0 here. RequestFailed
    for what is no answer, and for a server that does not score prompts."""
    try:
        said = answer.get("model")
        if said is not None and not any(same_model(name, str(said)) for name in (replica.model, *names)):
            raise RequestFailed("wrong_model", f"asked {replica.model}, the answer is from {str(said)[:80]}")
        steps = answer["choices"][0].get("prompt_logprobs")
        if steps is None:
            raise RequestFailed("no_prompt_logprobs", f"{replica.url} does not score what others wrote")
        scored = zip(ids[1:], steps[1:], strict=True)
        scores = [logprob_of(step[str(token)]) for token, step in scored]
        if len(steps) != len(ids):
            raise ValueError("not every token has a log-probability")
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise RequestFailed("invalid_answer", f"{type(error).__name__}: {str(error)[:200]}") from None
    return [0.0, *scores]


def served_name(model: SampledModel, flags: EngineFlags, served: list[str]) -> str | None:
    """Which of the names that a server lists is this model: the same, else another spelling of it.
    EngineError where several are."""
    wanted = [flags.served_name] if flags.served_name else [model.name, model.model]
    exact = next((name for name in wanted if name in served), None)
    alike = [name for name in served if any(same_model(asked, name) for asked in wanted)]
    if exact is None and len(alike) > 1:
        raise EngineError(
            f"the server lists {len(alike)} models that may be {wanted[0]}: {', '.join(alike[:8])}; say "
            "which one with --served-name"
        )
    return exact or next(iter(alike), None)


def backoff_seconds(attempt: int, asked: float | None) -> float:
    """Exponential with full jitter, and never less than the server asked for."""
    longest = min(FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1), MAX_BACKOFF_SECONDS)
    return max(random.uniform(0, longest), asked or 0.0)


def extras(replica: Replica, request: Request) -> dict[str, Any]:
    """What only vLLM is sure to know. There everything is said, for it has defaults from the model's
    generation_config.json, and special tokens are kept, for they are the tags of some models."""
    sampling = request.sampling
    named: dict[str, Any] = {"top_k": sampling.top_k, "min_p": sampling.min_p}
    if not replica.is_vllm and not request.keep_tokens:
        named |= {"stream": True, "stream_options": {"include_usage": True}}
    if replica.is_vllm:
        if request.keep_tokens:
            named["return_token_ids"] = True
            if request.top_logprobs:  # a text names no token: several have the same
                named["return_tokens_as_token_ids"] = True
        named["repetition_penalty"] = sampling.repetition_penalty
        return {"model": replica.model, "skip_special_tokens": False, **named}
    if sampling.repetition_penalty != 1:
        named["repetition_penalty"] = sampling.repetition_penalty
    return {"model": replica.model, **{name: value for name, value in named.items() if value}}
