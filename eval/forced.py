"""Thinking cut at a budget and closed by force: what a model answers when it may not think on.

The first `budget` tokens of a sample's thinking, the closing tag, and then the answer is sampled anew. A
sample that closed its thinking within the budget is taken as it is. (Budget forcing: arXiv 2501.19393.)
"""

import dataclasses
from typing import Any

from pipeline.cards import SampledModel
from pipeline.errors import EngineError
from pipeline.recipe import Sampling
from pipeline.records import Trace
from pipeline.render import Tags
from pipeline.sampling import Job
from pipeline.sampling.engine import Completion, Engine
from pipeline.sampling.prompts import ChatPrompts


def forced_name(model: str, budget: int) -> str:
    """What the files of these samples are called: <task>.<model>.forced-<budget>.samples-*.jsonl."""
    return f"{model}.forced-{budget}"


def forced_job(job: Job, budget: int) -> Job:
    """The same job under another identity, so that its samples are never taken for free ones."""
    identity = {**job.model.identity, "forced_thinking_tokens": budget}
    return dataclasses.replace(job, model=dataclasses.replace(job.model, identity=identity))


class ForcedEngine:
    """An engine that goes on from the thinking of samples that were taken before; keyed by their seeds."""

    def __init__(self, engine: Engine, model: SampledModel, traces: list[Trace], budget: int) -> None:
        self.notes: dict[str, Any] = {}
        self._engine = engine
        self._tags = model.tags
        self._budget = budget
        self._traces = {trace.seed: trace for trace in traces}
        self._chat: ChatPrompts | None = None

    async def ready(self) -> None:
        self._chat = await self._engine.prompts()
        await self._engine.ready()

    async def prompts(self) -> ChatPrompts | None:
        return await self._engine.prompts()

    def prompt(self, messages: list[dict[str, str]]) -> Any:
        ids = self._engine.prompt(messages)
        if not isinstance(ids, list) or self._chat is None or not all(isinstance(i, int) for i in ids):
            raise EngineError(
                "eval.forced_budgets: a served chat cannot be continued inside its thinking; leave out the "
                "model's --url, so that it runs in this process"
            )
        return ids

    async def sample(self, prompt: Any, sampling: Sampling, seed: int) -> Completion:
        trace = self._traces[seed]
        assert self._chat is not None
        ids = self._chat.encode(trace.thinking or "")
        if trace.thinking is None or (trace.finish_reason == "stop" and len(ids) <= self._budget):
            tokens = (trace.prompt_tokens, trace.output_tokens)
            return Completion(trace.thinking, trace.answer, trace.finish_reason, *tokens)
        kept = ids[: self._budget]
        forced = [*self._chat.encode(opening(self._tags)), *kept, *self._chat.encode(closing(self._tags))]
        answer_only = sampling.model_copy(update={"max_tokens": sampling.max_tokens - self._budget})
        done = await self._engine.sample([*prompt, *forced], answer_only, seed)
        # the response begins behind the closing tag: all of it is answer, whatever it was split into
        answer = done.answer or done.thinking or ""
        finish = "stop" if done.finish_reason == "unclosed" else done.finish_reason
        tokens = (done.prompt_tokens - len(forced), len(forced) + done.output_tokens)
        return Completion(self._chat.decode(kept), answer, finish, *tokens)


def opening(tags: Tags) -> str:
    return "" if tags.opened_by_prompt else f"{tags.open}\n"


def closing(tags: Tags) -> str:
    return f"\n{tags.close}\n\n"
