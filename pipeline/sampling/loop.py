"""The loop that collects traces: bounded in flight, no barrier, verification beside the engine.

A problem's next sample is launched only while correct + in flight < keep (and below max), so which samples
are taken does not depend on timing: they are the first n, n the smallest number that holds `keep` correct
ones. Of a problem that a judge or a majority decides later none is correct yet, so all are taken. Traces that
the store has already, or that are adopted, count in their order as if just sampled.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.errors import EngineError
from pipeline.records import STOP, Problem, Trace, Verdict, is_correct
from pipeline.render import split_response
from pipeline.sampling.engines.base import Engine, Request, RequestFailed
from pipeline.sampling.interrupt import interruptible
from pipeline.sampling.job import Job, most_samples, requests_of, sample_seed
from pipeline.sampling.keys import DONE, VERIFIED, counts, counts_as_correct
from pipeline.sampling.prompts import check_lengths
from pipeline.sampling.store import Failure, Store
from pipeline.verify import VerifierPool
from pipeline.verify.basis import basis_of, tags_digest
from pipeline.verify.table import DEFERRED

log = logging.getLogger(__name__)

ALIKE = 16  # requests that all fail alike, before one succeeds, are enough to know the cause
DRAIN_SECONDS = 10.0  # after an interrupt: what is nearly done is waited for, the rest is sampled again
OBSERVE_SECONDS = 1.0
MAX_UNVERIFIED = 2048  # traces that wait for their verdict are held in memory; beyond it nothing is launched


class Source(Protocol):
    """Traces paid for elsewhere: the one of a key, with its verdict where that still holds, or None."""

    def take(self, problem: Problem, sample: int) -> tuple[Trace, Verdict | None] | None: ...


@dataclass(slots=True)
class Tally:
    """What has happened so far, for progress, manifest and forecast.

    `found` were in the store, `adopted` came from a source, `sampled` from the engine; tokens and seconds
    are those of `sampled`, from the first launch to the last trace, so engine start is not in them.
    `correct` and `cut` are among the traces that were given their verdict now, which have `verified_tokens`.
    `done_before` are the problems that needed no engine, as counted when it was first asked. `in_flight`
    requests have no answer yet and `tokens_in_flight` (None: not known) is what they have so far; none of
    them takes more than `max_tokens`.
    """

    solved: int = 0
    given_up: int = 0
    found: int = 0
    adopted: int = 0
    sampled: int = 0
    correct: int = 0
    cut: int = 0
    verified_tokens: int = 0
    adopted_tokens: int = 0
    done_before: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    first_launch: float = 0.0
    last_trace: float = 0.0
    in_flight: int = 0
    tokens_in_flight: int | None = None
    max_tokens: int = 0

    @property
    def engine_seconds(self) -> float:
        return max(self.last_trace - self.first_launch, 0.0)


class Watcher(Protocol):
    """Shows a tally that grows until it is cancelled."""

    async def watch(self, tally: Tally) -> None: ...


@dataclass(frozen=True, slots=True)
class Options:
    """How a collection runs: none of it changes which samples are taken. `sources` come before the engine."""

    concurrency: int = 256
    sources: tuple[Source, ...] = ()
    watcher: Watcher | None = None


@dataclass(slots=True, eq=False)
class Asked:
    """A problem of which samples are wanted. `known` are its bits in the store when it was begun."""

    problem: Problem
    known: int
    max: int
    next: int = 0
    in_flight: int = 0
    correct: int = 0
    queued: bool = False
    prompt: Any = None


async def collect(
    job: Job,
    problems: Iterable[Problem],
    engine: Engine,
    store: Store,
    pool: VerifierPool | None,
    options: Options | None = None,
) -> Tally:
    """Take all samples that `job` wants of `problems` and that `store` lacks.

    `problems` is iterated more than once: a list, or an object that streams them anew each time. Without a
    pool nothing is verified and every problem gets `max` samples. A failed request is data: `Tally.failed`.
    Ctrl-C stops launching, waits DRAIN_SECONDS for what is in flight and raises KeyboardInterrupt;
    EngineError (also where the first ALIKE requests all failed alike) and VerifyError come through at once.
    What was finished is in the store by then, and the same call goes on from there.
    """
    store.load(requests_of(job).values(), tags_digest(job.model.tags))
    loop = Loop(job, engine, store, pool, options or Options())
    with interruptible(loop.stop):
        await loop.run(problems, {})
        if job.samples.redistribute:
            allowance = redistribute(job, problems, store)
            loop.tally.given_up -= len(allowance)
            await loop.run([problem for problem in problems if problem.id in allowance], allowance)
    return loop.tally


def redistribute(job: Job, problems: Iterable[Problem], store: Store) -> dict[str, int]:
    """New `max` of the hardest unsolved problems: what solved ones saved, up to `cap` samples each.

    Hardest first is fewest correct first, then by lot, and what they save in turn is not given on: so the
    result depends on the verdicts alone, never on timing. Problems that are decided later have no part in it.
    """
    samples = job.samples
    saved, unsolved = 0, []
    for problem in problems:
        if problem.verifier in DEFERRED:
            continue
        tries, correct = counts(store.keys.all_bits(problem.id), samples.max)
        saved += samples.max - tries if correct >= samples.keep else 0
        if correct < samples.keep:
            unsolved.append((correct, problem.lot, problem.id))
    allowance = {}
    for _, _, problem_id in sorted(unsolved):
        extra = min((samples.cap or samples.max) - samples.max, saved)
        if extra > 0:
            allowance[problem_id] = samples.max + extra
            saved -= extra
    return allowance


class Loop:
    """State of one collection: problems with samples in flight, and the tasks that serve them."""

    def __init__(
        self, job: Job, engine: Engine, store: Store, pool: VerifierPool | None, options: Options
    ) -> None:
        self.tally = Tally(max_tokens=job.sampling.max_tokens)
        self._job = job
        self._requests = requests_of(job)
        self._tags = tags_digest(job.model.tags)
        self._engine = engine
        self._store = store
        self._pool = pool
        self._options = options
        self._prepared = False
        self._preparing = asyncio.Lock()
        self._all_problems: Iterable[Problem] = ()
        self._problems: Iterator[Problem] = iter(())
        self._allowance: dict[str, int] = {}
        self._ready: deque[Asked] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sampling = 0
        self._verifying = 0
        self._stopped: BaseException | None = None
        self._done = asyncio.Event()

    async def run(self, problems: Iterable[Problem], allowance: dict[str, int]) -> None:
        """Take the samples of `problems`; `allowance` are those whose max is another than the job's."""
        self._all_problems = problems
        self._problems, self._allowance = iter(problems), allowance
        self._done.clear()
        watcher = self._options.watcher
        watching: list[asyncio.Task[None]] = []
        if watcher is not None:
            watching = [asyncio.create_task(work) for work in (self._observe(), watcher.watch(self.tally))]
        try:
            self._launch()
            await self._done.wait()
            if isinstance(self._stopped, KeyboardInterrupt) and self._prepared:
                await self._drain()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        if self._stopped is not None:
            raise self._stopped

    async def _drain(self) -> None:
        """Let what is nearly done finish; of a failure nothing more is said than is in the store."""
        end = time.monotonic() + DRAIN_SECONDS
        if self._tasks:
            log.warning(
                "waiting at most %.0f s for %d that are in flight; a second Ctrl-C ends at once",
                DRAIN_SECONDS,
                len(self._tasks),
            )
        while self._tasks and (left := end - time.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    async def _observe(self) -> None:
        """Keep the tally's figures of what is in flight."""
        while True:
            self.tally.in_flight = self._sampling if self._prepared else 0
            self.tally.tokens_in_flight = await self._engine.tokens_in_flight() if self._prepared else None
            await asyncio.sleep(OBSERVE_SECONDS)

    def stop(self, reason: BaseException) -> None:
        """Launch nothing more; `run` ends and raises `reason`. An interrupt outweighs what it caused."""
        if self._stopped is None or isinstance(reason, KeyboardInterrupt):
            self._stopped = reason
        self._done.set()

    def _launch(self) -> None:
        """Fill the free places: first with problems that have begun, then with the next ones."""
        while self._stopped is None and self._has_room():
            asked = self._ready.popleft() if self._ready else self._begin()
            if asked is None:
                break
            asked.queued = False
            if self._wants(asked):
                self._take(asked)
            self._put_back(asked)
        if not self._tasks:
            self._done.set()

    def _has_room(self) -> bool:
        return self._sampling < self._options.concurrency and self._verifying < MAX_UNVERIFIED

    def _begin(self) -> Asked | None:
        problem = next(self._problems, None)
        if problem is None:
            return None
        max_samples = self._allowance.get(problem.id, self._job.samples.max)
        if problem.verifier in ("majority", "none"):
            max_samples = most_samples(problem, self._job.samples)
        return Asked(problem, self._store.keys.all_bits(problem.id), max_samples)

    def _wants(self, asked: Asked) -> bool:
        keep = self._job.samples.keep if self._pool else asked.max
        return asked.next < asked.max and asked.correct + asked.in_flight < keep

    def _put_back(self, asked: Asked) -> None:
        """Queue a problem that wants a sample; count one that wants none and waits for none."""
        if self._wants(asked):
            if not asked.queued:
                asked.queued = True
                self._ready.appendleft(asked)
        elif asked.in_flight == 0:
            if asked.correct >= self._job.samples.keep:
                self.tally.solved += 1
            else:
                self.tally.given_up += 1

    def _take(self, asked: Asked) -> None:
        """The next sample of a problem: from the store, from a source, or from the engine."""
        sample, asked.next = asked.next, asked.next + 1
        bits = asked.known >> 4 * sample & 15
        if bits & DONE:
            self.tally.found += not self._allowance  # redistribution comes by what was counted before
            if bits & VERIFIED or self._pool is None:
                asked.correct += counts_as_correct(bits)
                return
            self._start(asked, self._verify(asked, self._store.unverified_trace(asked.problem.id, sample)))
            return
        for source in self._options.sources:
            taken = source.take(asked.problem, sample)
            if taken is not None:
                self._adopt(asked, *taken)
                return
        self._sampling += 1
        self._start(asked, self._sample(asked, sample))

    def _adopt(self, asked: Asked, trace: Trace, verdict: Verdict | None) -> None:
        self.tally.adopted += 1
        self.tally.adopted_tokens += trace.output_tokens or 0
        self._store.add_trace(trace)
        if verdict is not None:
            self._count(asked, trace, verdict)
        elif self._pool is not None:
            self._start(asked, self._verify(asked, trace))

    def _start(self, asked: Asked, work: Any) -> None:
        asked.in_flight += 1
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.stop(error)
        elif not self._tasks:
            self._launch()

    async def _sample(self, asked: Asked, sample: int) -> None:
        problem, job = asked.problem, self._job
        seed = sample_seed(job.seed, problem, sample)
        key = self._requests.get(problem.source, self._requests[""])
        try:
            if not self._prepared:
                await self._prepare()
            if asked.prompt is None:
                asked.prompt = self._engine.prompt(job.prompt.messages(problem.question, problem.source))
            request = Request(
                asked.prompt, job.sampling, seed, (problem.id, sample), job.keep_tokens, job.reply_schema,
                job.top_logprobs,
            )  # fmt: skip
            done = await self._engine.sample(request)
        except RequestFailed as failure:
            self._sampling -= 1
            self.tally.failed[failure.kind] += 1
            self._store.add_failure(Failure(problem.id, sample, key, failure.kind, failure.detail))
            self._stop_where_all_fail_alike(failure)
            self._land(asked)
            return
        trace = Trace(
            problem.id, sample, seed, key, done.text, done.finish_reason, done.prompt_tokens,
            done.output_tokens, job.model.name, done.tokens,
        )  # fmt: skip
        self._store.add_trace(trace)
        self._sampling -= 1
        tally = self.tally
        tally.sampled += 1
        tally.prompt_tokens += done.prompt_tokens or 0
        tally.output_tokens += done.output_tokens or 0
        tally.last_trace = time.monotonic()
        await self._verify(asked, trace)

    def _stop_where_all_fail_alike(self, failure: RequestFailed) -> None:
        failed = self.tally.failed
        if not self.tally.sampled and failed[failure.kind] == failed.total() == ALIKE:
            self.stop(
                EngineError(
                    f"the first {ALIKE} requests failed alike ({failure.kind}), and nothing more was asked. "
                    f"The last one: {failure.detail or 'without a word'}. All are in "
                    f"{self._store.failures_path}. Repair the cause and run the same command again"
                )
            )

    async def _prepare(self) -> None:
        """Before the first request: check the lengths of all prompts, then start the engine."""
        async with self._preparing:
            if self._prepared:
                return
            prompts = await self._engine.prompts()
            if prompts is not None:
                await asyncio.to_thread(check_lengths, self._job, self._all_problems, prompts)
            await self._engine.ready()
            self.tally.done_before = self.tally.solved + self.tally.given_up
            self.tally.first_launch = time.monotonic()
            self._prepared = True

    async def _verify(self, asked: Asked, trace: Trace) -> None:
        """Verify a trace that is in the store; its place at the engine is given away meanwhile."""
        if self._pool is not None:
            self._verifying += 1
            self._launch()
            problem = asked.problem
            verdict = await self._pool.verify(
                (problem.id, trace.sample),
                problem.verifier,
                problem.gold,
                split_response(trace.response, self._job.model.tags).answer,
                problem.metadata,
                basis_of(problem, self._tags),
            )
            self._verifying -= 1
            self._count(asked, trace, verdict)
        self._land(asked)

    def _count(self, asked: Asked, trace: Trace, verdict: Verdict) -> None:
        self._store.add_verdict(verdict)
        correct = is_correct(verdict.status, trace.finish_reason)
        asked.correct += correct
        self.tally.correct += correct
        self.tally.cut += trace.finish_reason != STOP
        self.tally.verified_tokens += trace.output_tokens or 0

    def _land(self, asked: Asked) -> None:
        asked.in_flight -= 1
        self._put_back(asked)
        self._launch()
