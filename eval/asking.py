"""Put every task to every model: the same questions, prompt and sampling, one engine start a model, which on
a CPU begins while the model before is asked.

Writes <task>.<model>.samples-*.jsonl with verdicts and failures beside them. What is there already stays, and
what another eval directory holds of equal key is taken from there.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from eval.forced import ForcedEngine, forced_job, forced_name, places_of
from eval.models import Compared
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.prompts import Prompt
from pipeline.recipe.schema import Samples, Sampling
from pipeline.records import Problem
from pipeline.sampling import (
    Engine,
    Job,
    Options,
    Store,
    Tally,
    adopted,
    collect,
    request_fingerprint,
    start_engine,
)
from pipeline.sampling.engines.vllm import VllmEngine
from pipeline.sampling.keys import Keys
from pipeline.sampling.progress import Progress
from pipeline.verify import VerifierPool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """One task as it is put to every model: its questions, how they are asked, the version of its card."""

    name: str
    problems: list[Problem]
    prompt: Prompt
    k: int
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Asking:
    """All that sampling needs to know. `forced` are the numbers of thinking tokens to close after, `adopt`
    the eval directories whose samples of equal key are taken."""

    directory: Path
    sampling: Sampling
    seed: int
    forced: tuple[int, ...] = ()
    adopt: tuple[Path, ...] = ()

    def job(self, model: SampledModel, task: Asked) -> Job:
        """Samples(keep=k, max=k) takes exactly k samples of each question, whatever the verdicts."""
        return Job(model, task.prompt, self.sampling, Samples(keep=task.k, max=task.k), self.seed)

    def has_some(self, model: str) -> bool:
        """Whether samples of a model are there, or may be where they are taken from."""
        return bool(self.adopt) or any(self.directory.glob(f"*.{model}.samples-*"))

    def store(self, task: str, model: str) -> Store:
        return Store(self.directory, f"{task}.{model}.samples")

    def stores(
        self, models: Sequence[Compared], tasks: Sequence[Asked]
    ) -> Iterator[tuple[Asked, Job, Store]]:
        """The samples of every model on each task, as they are and closed after each budget."""
        for model, task, budget in product(models, tasks, (None, *self.forced)):
            name, job = model.name, self.job(model.model, task)
            if budget is not None:
                name, job = forced_name(name, budget), forced_job(job, budget)
            yield task, job, self.store(task.name, name)


@dataclass(slots=True)
class Spent:
    """What one model took. Tokens are those of all its free samples, wherever they came from; None where a
    server has not counted them."""

    seconds: float = 0.0
    engine_seconds: float = 0.0
    prompt_tokens: int | None = 0
    output_tokens: int | None = 0
    sampled: int = 0
    adopted: int = 0
    found: int = 0
    engine: dict[str, Any] = field(default_factory=dict)

    def count(self, tally: Tally) -> None:
        self.engine_seconds += tally.engine_seconds
        self.sampled += tally.sampled
        self.adopted += tally.adopted
        self.found += tally.found

    def count_tokens(self, keys: Keys) -> None:
        """Add the tokens of a store."""
        if keys.uncounted or self.prompt_tokens is None or self.output_tokens is None:
            self.prompt_tokens = self.output_tokens = None
        else:
            self.prompt_tokens += keys.prompt_tokens
            self.output_tokens += keys.output_tokens

    def add(self, shard: str, other: "Spent") -> None:
        """Add what a shard took; a count that one of them lacks is not known of all."""
        for name in ("seconds", "engine_seconds", "sampled", "adopted", "found"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("prompt_tokens", "output_tokens"):
            both = getattr(self, name), getattr(other, name)
            setattr(self, name, None if None in both else sum(both))
        self.engine[shard] = other.engine


async def ask_all(
    asking: Asking, models: Sequence[Compared], tasks: Sequence[Asked], workers: int
) -> dict[str, Spent]:
    """Take what is missing of every model's samples; what each took, by name."""
    spent: dict[str, Spent] = {}
    with VerifierPool(workers=workers) as pool:
        async with AsyncExitStack() as everything:
            engines, ends = [], []
            for model in models:  # all are made before one starts, which hides the key of servers meanwhile
                end = await everything.enter_async_context(AsyncExitStack())
                engines.append(await end.enter_async_context(start_engine(model.loaded, model.engine)))
                ends.append(end)
            for number, (model, engine) in enumerate(zip(models, engines, strict=True)):
                rest = models[number + 1 :]
                following = engines[number + 1] if rest and not asking.has_some(rest[0].name) else None
                async with ends[number], starting_beside(engine, following):
                    spent[model.name] = await ask_model(asking, model, engine, tasks, pool)
    return spent


@asynccontextmanager
async def starting_beside(engine: Engine, following: Engine | None) -> AsyncIterator[None]:
    """Start the next engine while this one is asked, where both run in this process and the machine holds
    two: most of a start is one core's work. A fault of it is told when the engine is needed."""
    if not isinstance(engine, VllmEngine) or not isinstance(following, VllmEngine):
        yield
        return
    start = asyncio.create_task(following.start_beside(engine))
    start.add_done_callback(lambda done: done.cancelled() or done.exception())
    yield
    if not engine.started.is_set():
        start.cancel()  # nothing was sampled, and perhaps nothing will be of the next one


async def ask_model(
    asking: Asking, model: Compared, free_engine: Engine, tasks: Sequence[Asked], pool: VerifierPool
) -> Spent:
    """One engine for all tasks of a model, each as it is and then closed after each of the budgets; it starts
    with the first sample that must be taken."""
    begun, spent = time.monotonic(), Spent()
    for task, budget in product(tasks, (None, *asking.forced)):
        name, job, engine = model.name, asking.job(model.model, task), free_engine
        if budget is None:
            log.info("eval: %s on %s (%d questions x %d)", name, task.name, len(task.problems), task.k)
        else:
            log.info("eval: %s on %s, thinking closed after %d tokens", name, task.name, budget)
            free = places_of(asking.store(task.name, name), request_fingerprint(job))
            engine = ForcedEngine(free_engine, job.model, free, budget)
            name, job = forced_name(name, budget), forced_job(job, budget)
        with asking.store(task.name, name) as store, ExitStack() as stack:
            found = adopted(asking.adopt, job, store.prefix)
            sources = tuple(stack.enter_context(closing(source)) for source in found)
            options = Options(model.engine.concurrency, sources, Progress(len(task.problems)))
            spent.count(await collect(job, task.problems, engine, store, pool, options))
            if budget is None:
                spent.count_tokens(store.keys)
    spent.engine = free_engine.notes
    spent.seconds = round(time.monotonic() - begun, 2)
    spent.engine_seconds = round(spent.engine_seconds, 2)
    return spent
