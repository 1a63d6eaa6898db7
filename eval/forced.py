"""Thinking cut at a budget and closed by force: what a model answers when it may not think on.

The first `budget` tokens of a sample's thinking, the closing tag, and then the answer is sampled anew. A
sample that closed its thinking within the budget is taken as it is. (Budget forcing: arXiv 2501.19393.)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.errors import EngineError
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.prompts import Chat
from pipeline.records import STOP, Key
from pipeline.render import Split, join_response, split_response
from pipeline.sampling import Completion, Engine, Job, Request, RequestFailed, Store
from pipeline.sampling.keys import Keys, Place, scan_traces
from pipeline.sampling.prompts import ChatPrompts
from pipeline.sampling.store import read_place


def forced_name(model: str, budget: int) -> str:
    """What the files of these samples are called: <task>.<model>.forced-<budget>.samples-*.jsonl."""
    return f"{model}.forced-{budget}"


def forced_job(job: Job, budget: int) -> Job:
    """The same job under another identity, so that its samples are never taken for free ones.

    Here the tags decide a response, and not only how it is read: thinking is cut and closed by them.
    """
    identity = {
        **job.model.identity,
        "forced_thinking_tokens": budget,
        "thinking": job.model.tags.model_dump(),
    }
    return dataclasses.replace(job, model=dataclasses.replace(job.model, identity=identity))


def places_of(store: Store, request: str) -> dict[Key, Place]:
    """Where each sample stands; the texts stay on disk."""
    keys = Keys()
    return {
        (problem_id, sample): place
        for path in store.shards()
        for problem_id, sample, place in scan_traces(path, {request}, keys)
    }


class ForcedEngine:
    """An engine that goes on from the thinking of samples that were taken before, `free` by their keys."""

    def __init__(self, engine: Engine, model: SampledModel, free: Mapping[Key, Place], budget: int) -> None:
        self.notes: dict[str, Any] = {}
        self._engine = engine
        self._tags = model.tags
        self._budget = budget
        self._free = free
        self._chat: ChatPrompts | None = None

    async def ready(self) -> None:
        self._chat = await self._engine.prompts()
        await self._engine.ready()

    async def prompts(self) -> ChatPrompts | None:
        return await self._engine.prompts()

    def prompt(self, messages: Chat) -> Any:
        ids = self._engine.prompt(messages)
        if not isinstance(ids, list) or self._chat is None or not all(isinstance(i, int) for i in ids):
            raise EngineError(
                "eval.forced_budgets: a served chat cannot be continued inside its thinking; leave out the "
                "model's --url, so that it runs in this process"
            )
        return ids

    async def sample(self, request: Request) -> Completion:
        assert self._chat is not None, "prompt() comes first"
        place = self._free.get(request.key)
        if place is None:
            raise RequestFailed("no_free_sample", "the sample to go on from failed; *.failures.jsonl say why")
        trace, tags = read_place(place), self._tags
        split = split_response(trace.response, tags)
        ids = self._chat.encode(split.thinking or "")
        ended = split.closing == "closed" and trace.finish_reason == STOP
        if split.thinking is None or (ended and len(ids) <= self._budget):
            tokens = (trace.prompt_tokens, trace.output_tokens)
            return Completion(trace.response, trace.finish_reason, *tokens)
        kept = ids[: self._budget]
        begun = [] if tags.opened_by_prompt else self._chat.encode(f"{tags.open}\n")
        forced = [*begun, *kept, *self._chat.encode(f"\n{tags.close}\n\n")]
        room = request.sampling.max_tokens - self._budget  # behind the closing tag all is answer
        sampling = request.sampling.model_copy(update={"max_tokens": room})
        prompt = [*request.prompt, *forced]
        done = await self._engine.sample(dataclasses.replace(request, prompt=prompt, sampling=sampling))
        split = Split(self._chat.decode(kept), done.text.strip(), "closed")
        text = join_response(split, tags, tags.open if tags.opened_by_prompt else "")
        tokens = ((done.prompt_tokens or 0) - len(forced), len(forced) + (done.output_tokens or 0))
        return Completion(text, done.finish_reason, *tokens)

    async def tokens_in_flight(self) -> int | None:
        return await self._engine.tokens_in_flight()
