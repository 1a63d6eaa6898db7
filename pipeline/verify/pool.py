"""Verification that cannot hang: warm worker processes, each killed when a response outlives its deadline.

One host thread serves one worker over a socket. The deadline counts from dispatch. A worker that is late is
killed, its response gets the verdict "timeout", and the zygote (pipeline.verify.worker) forks a fresh worker
within milliseconds. Threads call `submit` or `map`, coroutines await `verify`.
"""

import asyncio
import contextlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import VerifyError, no_descriptor
from pipeline.flags import num_cores
from pipeline.records import Verdict
from pipeline.verify.frames import frame_of, read_frame
from pipeline.verify.isolation import clean_environment
from pipeline.verify.outcome import unverifiable
from pipeline.verify.table import PRELOADED, VERIFIERS, VERSIONS, check_verifier, comparing, needed

logger = logging.getLogger(__name__)

Key = tuple[str, int]
Row = (  # what `submit` takes: key, verifier, gold, response, metadata and, optionally, basis
    tuple[Key, str, str, str, dict[str, Any]] | tuple[Key, str, str, str, dict[str, Any], str]
)

START_SECONDS = 120.0  # the zygote's imports take 1 s; a loaded machine may need far more
MAX_DEADLINE_SECONDS = 86_400  # a day; a socket refuses far larger numbers
MAX_RESPONSE = 4_000_000  # characters; of a longer response the end is read, where answers stand


@dataclass(slots=True)
class Task:
    key: Key
    verifier: str
    gold: str
    response: str
    metadata: dict[str, Any]
    basis: str
    deadline_seconds: float
    memory_mb: int
    future: Future[Verdict] = field(default_factory=Future)


class Permits:
    """At most `count` tasks in flight, waited for by threads and coroutines alike, in order of arrival."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    def request(self) -> Future[None]:
        """A future that is done when a permit is the caller's."""
        permit: Future[None] = Future()
        with self._lock:
            if self._free == 0:
                self._waiting.append(permit)
                return permit
            self._free -= 1
        permit.set_result(None)
        return permit

    def release(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                permit = self._waiting.popleft()
            if permit.set_running_or_notify_cancel():
                permit.set_result(None)
                return


class Zygote:
    """The host's handle on the process that forks workers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready = False
        try:
            self._control, theirs = socket.socketpair()
            self._control.settimeout(START_SECONDS)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "pipeline.verify.worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=clean_environment(os.environ, Path(__file__).resolve().parents[2]),
                )
        except OSError as error:
            raise cannot_start("the verifier process", error) from None

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        with self._lock:
            try:
                if not self._ready:
                    say_what_stays_open(read_frame(self._control)["reachable"])
                    self._ready = True
                socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
                return read_frame(self._control)
            except (EOFError, OSError) as error:
                raise VerifyError(
                    f"the verifier process ended or does not answer ({error}); its own message, if any, "
                    "is above. Try: python -c 'import math_verify, reasoning_gym'"
                ) from error

    def spawn(self, memory_mb: int, verifiers: frozenset[str]) -> tuple[int, socket.socket]:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise cannot_start("a verifier worker", error) from None
        request = {"spawn": memory_mb, "verifiers": sorted(verifiers)}
        with theirs:
            return self._ask(request, [theirs.fileno()])["pid"], ours

    def kill(self, pid: int) -> int:
        """Kill and reap a worker. Its exit code: negative for the signal that ended it."""
        code: int = self._ask({"kill": pid}, [])["exit"]
        return code

    def close(self) -> None:
        self._control.close()  # it kills its workers and ends
        if not self._ready:  # it has no workers yet, and would not see this before its imports are done
            self._process.kill()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Worker:
    """One forked worker, its socket, its memory limit, its verifiers, and how many tasks it has had."""

    def __init__(self, zygote: Zygote, memory_mb: int, verifiers: frozenset[str]) -> None:
        self._zygote = zygote
        self._pid, self._socket = zygote.spawn(memory_mb, verifiers)
        self._memory_mb = memory_mb
        self.verifiers = verifiers
        self.num_tasks = 0

    def fits(self, task: Task, names: set[str]) -> bool:
        return names <= self.verifiers and task.memory_mb == self._memory_mb

    def run(self, task: Task) -> dict[str, Any]:
        """The worker's answer. TimeoutError past the deadline, EOFError or ConnectionError on its death."""
        self.num_tasks += 1
        end = time.monotonic() + task.deadline_seconds
        message = {
            "verifier": task.verifier,
            "gold": task.gold,
            "response": task.response[-MAX_RESPONSE:],
            "metadata": task.metadata,
            "deadline": task.deadline_seconds,
        }
        self._socket.settimeout(task.deadline_seconds)
        self._socket.sendall(frame_of(message))
        self._socket.settimeout(max(end - time.monotonic(), 0.001))
        return read_frame(self._socket)

    def kill(self) -> int:
        self._socket.close()
        return self._zygote.kill(self._pid)


def cannot_start(what: str, error: OSError) -> VerifyError:
    """The one error of a machine that gives no more descriptors, processes or memory."""
    again = "what was finished is kept, run the same command again"
    return VerifyError(f"{what} cannot be started: {no_descriptor(error) or f'{error.strerror}; {again}'}")


@cache
def say_what_stays_open(reachable: str) -> None:
    """Once in a process, whatever the number of its pools."""
    if reachable:
        logger.info("verifier processes are not cut off from %s", reachable)


class VerifierPool:
    """A context manager around `workers` processes, by default one for each core that this process may use.

    Leaving it waits for what was submitted; leaving it by an exception cancels that. `deadline_seconds` is
    for one response, `memory_mb` limits the address space of each worker; a verifier whose row in the table
    states limits of its own gets those. VerifyError where no worker or no time is asked for: no verdict
    would ever come.
    """

    def __init__(
        self,
        workers: int | None = None,
        deadline_seconds: float = 5.0,
        memory_mb: int = 1024,
        recycle_after: int = 5_000,
    ) -> None:
        workers = num_cores() if workers is None else workers
        if workers < 1:
            raise VerifyError(f"workers: at least 1 process must verify, found {workers}; give 1 or more")
        if not 0 < deadline_seconds <= MAX_DEADLINE_SECONDS:  # false for nan, too
            raise VerifyError(
                f"deadline: the seconds for one verification must be above 0 and at most "
                f"{MAX_DEADLINE_SECONDS:,}, found {deadline_seconds}; 5 is usual"
            )
        self._deadline_seconds = deadline_seconds
        self._memory_mb = memory_mb
        self._recycle_after = recycle_after
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._window = 64 * workers
        self._permits = Permits(self._window)
        self._zygote: Zygote | None = None
        self._verifiers = PRELOADED
        self._putting = threading.Lock()
        self._fault: VerifyError | None = None  # what ended a host thread
        self._threads = [
            threading.Thread(target=self._serve, name=f"verifier-{i}", daemon=True) for i in range(workers)
        ]

    def __enter__(self) -> "VerifierPool":
        self._zygote = Zygote()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=kind is not None)

    def close(self, cancel: bool = False) -> None:
        """Kill all workers; unless `cancel`, first wait for what was submitted. Twice does no harm."""
        if self._zygote is None:
            return
        if cancel:
            with contextlib.suppress(queue.Empty):
                while (task := self._tasks.get_nowait()) is not None:
                    task.future.cancel()
        for _ in self._threads:
            self._tasks.put(None)
        if not cancel:
            for thread in self._threads:
                thread.join()
        zygote, self._zygote = self._zygote, None
        zygote.close()
        for thread in self._threads:
            thread.join()

    def submit(
        self, key: Key, verifier: str, gold: str, response: str, metadata: dict[str, Any], basis: str = ""
    ) -> Future[Verdict]:
        """The verdict to come; it carries `basis`. Blocks while too many are in flight. Raises VerifyError
        for an unknown or refused verifier."""
        task = self._task(key, verifier, gold, response, metadata, basis)
        self._permits.request().result()
        return self._put(task)

    async def verify(
        self, key: Key, verifier: str, gold: str, response: str, metadata: dict[str, Any], basis: str = ""
    ) -> Verdict:
        """`submit` for coroutines: waits for its turn and for the verdict without blocking the event loop."""
        task = self._task(key, verifier, gold, response, metadata, basis)
        permit = self._permits.request()
        try:
            await asyncio.wrap_future(permit)
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled():
                self._permits.release()
            raise
        return await asyncio.wrap_future(self._put(task))

    def map(self, rows: Iterable[Row]) -> Iterator[Verdict]:
        """Verdicts in the order of `rows`, which is read only as far ahead as may be in flight."""
        flying: deque[Future[Verdict]] = deque()
        for row in rows:
            if len(flying) == self._window:
                yield flying.popleft().result()
            flying.append(self.submit(*row))
        while flying:
            yield flying.popleft().result()

    def _task(
        self, key: Key, verifier: str, gold: str, response: str, metadata: dict[str, Any], basis: str
    ) -> Task:
        check_verifier(verifier, metadata)
        own = VERIFIERS[comparing(verifier, metadata)]
        deadline_seconds = own.deadline_seconds or self._deadline_seconds
        memory_mb = own.memory_mb or self._memory_mb
        return Task(key, verifier, gold, response, metadata, basis, deadline_seconds, memory_mb)

    def _put(self, task: Task) -> Future[Verdict]:
        if self._zygote is None:
            raise VerifyError("this VerifierPool is not open: use it as `with VerifierPool() as pool`")
        with self._putting:
            if self._fault is None:
                self._tasks.put(task)
                return task.future
        self._permits.release()
        raise self._fault

    def _serve(self) -> None:
        """One host thread: tasks from the queue to its worker, one at a time."""
        worker: Worker | None = None
        task: Task | None = None
        try:
            while (task := self._tasks.get()) is not None:
                try:
                    if task.future.set_running_or_notify_cancel():
                        worker = self._answer(task, worker)
                finally:
                    self._permits.release()
        except BaseException as error:
            logger.exception("%s", threading.current_thread().name)  # a bug: it keeps its traceback
            self._fail(f"{type(error).__name__}: {error}", task)

    def _fail(self, why: str, task: Task | None) -> None:
        """A host thread ends: nobody may wait for it, so all that the pool was asked, and will be, fails."""
        fault = VerifyError(
            f"a host thread died ({why}), so verification ends. What was finished is kept: run the same "
            "command again, and report the traceback above"
        )
        with self._putting:
            self._fault = fault
            left: list[Task | None] = []
            with contextlib.suppress(queue.Empty):
                while True:
                    left.append(self._tasks.get_nowait())
        if task is not None and not task.future.done():
            task.future.set_exception(fault)
        for waiting in left:
            if waiting is None:
                self._tasks.put(None)  # for a thread that is to end
                continue
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(fault)
            self._permits.release()

    def _answer(self, task: Task, worker: Worker | None) -> Worker | None:
        """Resolve the task's future. The worker to go on with, None where the next task needs a new one."""
        try:
            names = needed(task.verifier, task.metadata)
            if worker is not None and not worker.fits(task, names):
                worker.kill()
                worker = None
            if worker is None:
                worker = self._spawn(task.memory_mb, names)
            start = time.monotonic()
            answer = self._run(task, worker)
            verdict = Verdict(
                problem_id=task.key[0],
                sample=task.key[1],
                basis=task.basis,
                verifier=task.verifier,
                version=VERSIONS[task.verifier],
                seconds=round(time.monotonic() - start, 6),
                **answer["outcome"],
            )
            if not answer["fit"] or worker.num_tasks >= self._recycle_after:
                if answer["fit"] is not None:
                    worker.kill()
                worker = None
            task.future.set_result(verdict)
        except VerifyError as error:
            task.future.set_exception(error)
            return None
        except (TypeError, ValueError, RecursionError) as error:  # the task is not JSON, no worker saw it
            task.future.set_exception(error)
        return worker

    def _spawn(self, memory_mb: int, names: set[str]) -> Worker:
        if self._zygote is None:
            raise VerifyError("the VerifierPool was closed")
        self._verifiers |= names  # of two threads that add the same at once, either result will do
        return Worker(self._zygote, memory_mb, self._verifiers)

    def _run(self, task: Task, worker: Worker) -> dict[str, Any]:
        """The worker's answer, or the account of its death (`fit` None: already reaped)."""
        try:
            return worker.run(task)
        except TimeoutError:
            worker.kill()
            reason = "timeout"
        except (EOFError, ConnectionError):
            reason = "timeout" if worker.kill() == -signal.SIGXCPU else "crash"
        logger.info("verifier worker replaced: %s on %s sample %d", reason, *task.key)
        return {"fit": None, "outcome": asdict(unverifiable(reason))}
