"""Put every task to every model: the same questions, prompt style and sampling, one engine start a model.

Writes <task>.<model>.samples-*.jsonl with verdicts and failures beside them; what is there already stays.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.flags import EvalFlags
from eval.forced import ForcedEngine, forced_job, forced_name
from pipeline.cards import SampledModel
from pipeline.recipe import Samples, Sampling
from pipeline.records import Problem
from pipeline.revisions import pinned
from pipeline.sampling import EngineFlags, Job, Options, Store, collect, start_engine
from pipeline.sampling.engine import Engine
from pipeline.sampling.progress import Progress
from pipeline.verify import VerifierPool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """One task as it is put to every model: its questions, and how they are asked."""

    name: str
    problems: list[Problem]
    prompt: str
    k: int


@dataclass(frozen=True, slots=True)
class Asking:
    """All that sampling needs to know. `forced` are the numbers of thinking tokens to close after."""

    directory: Path
    sampling: Sampling
    seed: int
    forced: tuple[int, ...] = ()

    def job(self, model: SampledModel, task: Asked) -> Job:
        """Samples(keep=k, max=k) takes exactly k samples of each question, whatever the verdicts."""
        return Job(model, task.prompt, self.sampling, Samples(keep=task.k, max=task.k), self.seed)

    def loaded(self, model: SampledModel, flags: EngineFlags) -> SampledModel:
        """The model as its engine is started: at the run's revision, unless a server holds it.

        Its job keeps the card's identity: how a model is reached changes neither plan nor keys.
        """
        return model if flags.engine == "server" else pinned(self.directory.parent, model)

    def store(self, task: str, model: str) -> Store:
        return Store(self.directory, f"{task}.{model}.samples")


async def ask_all(
    asking: Asking, models: dict[str, SampledModel], tasks: Sequence[Asked], flags: EvalFlags
) -> dict[str, Any]:
    """Take what is missing of every model's samples; seconds by model."""
    usage: dict[str, Any] = {}
    for name, model in models.items():
        asking.loaded(model, flags.of(name))  # a revision that cannot be resolved ends the stage here
    with VerifierPool(workers=flags.verifier_workers) as pool:
        for name, model in models.items():
            usage[name] = await ask_model(asking, (name, model), tasks, flags, pool)
    return usage


async def ask_model(
    asking: Asking,
    named: tuple[str, SampledModel],
    tasks: Sequence[Asked],
    flags: EvalFlags,
    pool: VerifierPool,
) -> dict[str, Any]:
    """One engine for all tasks of a model; it starts with the first sample that must be taken."""
    name, model = named
    engine_flags = flags.of(name)
    begun, sampled, prompt_tokens = time.monotonic(), 0.0, 0
    async with start_engine(asking.loaded(model, engine_flags), engine_flags) as engine:
        for task in tasks:
            log.info("eval: %s on %s (%d questions x %d)", name, task.name, len(task.problems), task.k)
            job = asking.job(model, task)
            options = Options(engine_flags.concurrency, watcher=Progress(len(task.problems)))
            with asking.store(task.name, name) as store:
                tally = await collect(job, task.problems, engine, store, pool, options)
                prompt_tokens += store.keys.prompt_tokens
            sampled += tally.engine_seconds
            for budget in asking.forced:
                sampled += await ask_forced(asking, (name, job), task, budget, Held(engine, pool, options))
        return {
            "engine_seconds": round(sampled, 2),
            "seconds": round(time.monotonic() - begun, 2),
            "prompt_tokens": prompt_tokens,
            "engine": engine.notes,
        }


@dataclass(frozen=True, slots=True)
class Held:
    """What one model's collections share."""

    engine: Engine
    pool: VerifierPool
    options: Options


async def ask_forced(asking: Asking, named: tuple[str, Job], task: Asked, budget: int, held: Held) -> float:
    """The same samples again with their thinking closed after `budget` tokens; engine seconds."""
    name, job = named
    log.info("eval: %s on %s, thinking closed after %d tokens", name, task.name, budget)
    with asking.store(task.name, name) as store:
        engine = ForcedEngine(held.engine, job.model, list(store.traces()), budget)
    with asking.store(task.name, forced_name(name, budget)) as store:
        tally = await collect(forced_job(job, budget), task.problems, engine, store, held.pool, held.options)
    return tally.engine_seconds
