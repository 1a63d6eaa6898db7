"""What a teacher gives to a student's tokens: their log-probabilities, by its weights here or by an engine.

rounds/00007/scores.jsonl holds a line for each response that was scored, written as it comes, with the
teacher that scored it: what a kill left, or FORCE moved aside, is not asked for again. The engine is vLLM in
this process, or any number of servers with failover.
"""

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import torch
from transformers import PreTrainedModel

from pipeline.errors import EngineError, RecipeError, StageError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.prompts import Chat
from pipeline.recipe.schema import Sampling
from pipeline.run.contract import fingerprint
from pipeline.sampling import Request, RequestFailed, start_engine
from pipeline.sampling.engines.base import ScoringEngine
from pipeline.sampling.engines.server import NoTokenIds
from pipeline.sampling.prompts import ChatPrompts
from pipeline.sampling.store import Appender, repair
from students.rounds import Response, round_directory
from students.sampler import Draw, draw

# the log-probabilities that the teacher gives to the tokens of a round's responses, in their order
Scorer = Callable[[int, list[Response]], list[list[float]]]
Found = TypeVar("Found")

SCORES = "scores.jsonl"
SCORING_BYTES = 4 * 2**30  # logits of prompts that an engine may hold at once: tokens x vocabulary x 4 bytes


def in_flight(longest: int, vocabulary: int, concurrency: int) -> int:
    """Requests at once at each engine, so that the logits of their prompts stay within SCORING_BYTES: whoever
    asks for more kills the server (vllm #5907, #52054)."""
    return max(1, min(concurrency, SCORING_BYTES // (4 * longest * vocabulary)))


@dataclass(frozen=True, slots=True)
class TeacherWeights:
    """A teacher whose weights are in this process."""

    model: PreTrainedModel
    prompts: ChatPrompts
    end: int

    def write(self, chats: Sequence[Chat], max_tokens: int) -> list[list[int]]:
        """Its greedy responses, as ids."""
        draws = [Draw(self.prompts.ids(chat), 0) for chat in chats]
        drawn = draw(self.model, draws, self.end, max_tokens, 0.0, batch=len(draws))
        return [found.ids for found in drawn]

    def score(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """The log-probabilities of the responses' tokens, of (prompt, response) ids."""
        return score_here(self.model, rows)


class TeacherEngine:
    """A teacher behind an engine, for whoever is not asynchronous. A context manager; the first request
    starts the engine. Its loop runs in a thread, so that connections that a server closes between two rounds
    are noticed."""

    def __init__(self, teacher: SampledModel, flags: EngineFlags, limit: int) -> None:
        self._teacher = teacher
        self._flags = replace(flags, concurrency=limit)
        self._exits = AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        started = self._run(self._exits.enter_async_context(start_engine(self._teacher, self._flags)))
        self._engine = cast(ScoringEngine, started)  # as every engine is
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._exits.__aexit__(kind, error, trace))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def notes(self) -> dict[str, Any]:
        return self._engine.notes

    def positions(self) -> dict[str, int]:
        """Those of its servers, by URL; without the ones that do not say. They are asked what they serve."""
        self._run(self._engine.ready())
        found: dict[str, int | None] = self.notes.get("max_model_len", {})
        return {url: number for url, number in found.items() if number is not None}

    def write(self, chats: Sequence[Chat], max_tokens: int) -> list[list[int]]:
        """Its greedy responses, as ids. RecipeError where it does not write or does not score."""
        return self._run(self._tried(self._written(chats, max_tokens)))

    def score(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """The log-probabilities of the responses' tokens, of (prompt, response) ids. RecipeError as above."""
        return self._run(self._tried(self._scored(rows)))

    def score_round(
        self, directory: Path, aside: Sequence[Path], number: int, responses: Sequence[Response]
    ) -> list[list[float]]:
        """The same of a round's responses, by `score_round` below. EngineError where one cannot be scored."""
        teacher = fingerprint(self._teacher.identity)
        return self._run(score_round(self._engine, directory, number, responses, teacher, aside))

    def _run(self, work: Coroutine[Any, Any, Found]) -> Found:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # after an interrupt it would go on

    async def _tried(self, work: Coroutine[Any, Any, Found]) -> Found:
        try:
            return await work
        except RequestFailed as failure:
            raise RecipeError(
                "polish.divergence: sampled asks the teacher how likely the student's tokens are, and it "
                f"does not say ({failure}). It must be a vLLM: start one with make serve-teacher, or leave "
                "--engine out"
            ) from None

    async def _written(self, chats: Sequence[Chat], max_tokens: int) -> list[list[int]]:
        engine = self._engine
        await engine.ready()
        prompts = await engine.prompts()
        if prompts is not None:  # a server that does not score says so before it is asked for more
            ids = prompts.ids(chats[0])
            await engine.score(ids[:-1], ids[-1:])
        greedy = Sampling(temperature=0.0, max_tokens=max_tokens)
        requests = [
            Request(engine.prompt(chat), greedy, 0, (str(number), 0), keep_tokens=True)
            for number, chat in enumerate(chats)
        ]
        try:
            written = await asyncio.gather(*map(engine.sample, requests))
        except NoTokenIds:  # whose advice is about generate
            raise RecipeError(
                "polish.divergence: sampled asks the teacher for the token ids of its own responses too, and "
                f"{', '.join(self._flags.urls)} gives none, though it scores. It must be seen to be a vLLM "
                "(owned_by: vllm in /v1/models): name the servers themselves with --url and no proxy before "
                "them, start one with make serve-teacher, or leave --engine out"
            ) from None
        return [done.tokens.ids for done in written if done.tokens is not None]

    async def _scored(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        await self._engine.ready()
        return await asyncio.gather(*(self._engine.score(*row) for row in rows))


async def score_round(
    engine: ScoringEngine,
    directory: Path,
    number: int,
    responses: Sequence[Response],
    teacher: str,
    aside: Sequence[Path] = (),
) -> list[list[float]]:
    """The log-probabilities of every response's tokens, in order. Those that the round holds are not asked
    for, nor those that `teacher`, the fingerprint of who scores, gave in `aside`: directories of rounds that
    were moved out of the way."""
    path = round_directory(directory, number) / SCORES
    repair(path)
    found = read_scores(path)
    wanted = {digest_of(response.prompt, response.ids): response for response in responses}
    file = Appender(path)

    def keep(digest: str, logprobs: list[float]) -> None:
        file.append(json.dumps({"response": digest, "teacher": teacher, "logprobs": logprobs}))
        found[digest] = logprobs

    async def ask(digest: str, response: Response) -> None:
        keep(digest, await engine.score(response.prompt, response.ids))

    for other in aside:
        for digest, logprobs in read_scores(round_directory(other, number) / SCORES, teacher).items():
            if digest in wanted and digest not in found:
                keep(digest, logprobs)
    tasks = [
        asyncio.ensure_future(ask(digest, response))
        for digest, response in wanted.items()
        if digest not in found
    ]
    try:
        if tasks:
            await engine.ready()
        await asyncio.gather(*tasks)
    except RequestFailed as failure:
        raise EngineError(
            f"polish: the teacher scored {len(found):,} of {len(wanted):,} responses of round {number}, and "
            f"one not ({failure}). What is scored is saved: repair the cause and run the same command again"
        ) from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        file.close()
    return [found[digest_of(response.prompt, response.ids)] for response in responses]


def digest_of(prompt: list[int], ids: list[int]) -> str:
    """16 hex digits over a prompt and its response: a row of scores says itself what it is of."""
    return hashlib.blake2b(json.dumps([prompt, ids]).encode(), digest_size=8).hexdigest()


def read_scores(path: Path, teacher: str | None = None) -> dict[str, list[float]]:
    """The log-probabilities that a round holds, by the digest of what they are of; with `teacher` those alone
    that it gave. A last line that a kill tore is left out. StageError for any other that is none."""
    if not path.exists():
        return {}
    found: dict[str, list[float]] = {}
    for number, line in enumerate(path.read_bytes().rpartition(b"\n")[0].splitlines(), start=1):
        try:
            row = json.loads(line)
            if teacher in (None, row.get("teacher")):
                found[row["response"]] = row["logprobs"]
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise StageError(
                f"{path}:{number}: is not a score ({error}): {line[:60]!r}. Remove that line; what it held "
                "is asked for again"
            ) from None
    return found


@torch.no_grad()
def score_here(
    teacher: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]], batch: int = 32
) -> list[list[float]]:
    """The same by a model's weights: of (prompt, response) ids, padded on the right in batches of `batch`, or
    of fewer whose logits stay within SCORING_BYTES."""
    scores: list[list[float]] = []
    vocabulary = teacher.config.get_text_config().vocab_size
    most = max((len(prompt) + len(response) for prompt, response in rows), default=1)
    batch = in_flight(most, vocabulary, batch)
    for start in range(0, len(rows), batch):
        part = [(prompt, response) for prompt, response in rows[start : start + batch]]
        longest = max(len(prompt) + len(response) for prompt, response in part)
        ids = torch.zeros(len(part), longest, dtype=torch.long)
        mask = torch.zeros(len(part), longest, dtype=torch.long)
        for row, (prompt, response) in enumerate(part):
            text = prompt + response
            ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
        ids, mask = ids.to(teacher.device), mask.to(teacher.device)
        first = min(len(prompt) for prompt, _ in part) - 1  # before it no token of a response is foretold
        logits = teacher(
            input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=longest - first
        ).logits
        for row, (prompt, response) in enumerate(part):
            begin = len(prompt) - 1 - first
            of_row = logits[row, begin : begin + len(response)].float()  # one row's alone in fp32
            wanted = ids[row, len(prompt) : len(prompt) + len(response), None]
            scores.append((of_row.gather(-1, wanted)[:, 0] - of_row.logsumexp(-1)).tolist())
    return scores
