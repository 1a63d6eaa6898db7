"""The pool of verifier processes: deadlines, crashes, order, bounds, threads, asyncio, and a clean end."""

import asyncio
import dataclasses
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import VerifyError
from pipeline.records import Verdict
from pipeline.verify import VERSIONS, VerifierPool, verify
from pipeline.verify.table import VERIFIERS
from tests.conftest import ROOT, is_running

SLOW = "\\boxed{\\sum_{k=1}^{10000000} \\frac{1}{k^2+1}}"  # math-verify works on it for hours
DEADLINE = 3.0  # of the module's pool
Row = tuple[tuple[str, int], str, str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=2, deadline_seconds=DEADLINE) as open_pool:
        open_pool.submit(("start", 0), "math", "1", "1", {}).result()
        yield open_pool


def row(index: int, response: str | None = None) -> Row:
    return ((f"p{index}", index), "math", str(index), response or f"\\boxed{{{index}}}", {})


def descendants(process: int) -> list[int]:
    """Process ids of children and their children that still run or wait to be reaped."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    found = [int(child) for file in children for child in file.read_text().split()]
    return found + [pid for child in found for pid in descendants(child)]


def workers_of(host: int) -> list[int]:
    """The workers of a host's pools: grandchildren, without children."""
    return [worker for child in descendants(host) for worker in descendants(child)]


def test_a_verdict_carries_its_key_basis_and_version(pool: VerifierPool) -> None:
    asked = (("abc", 7), "math", "1/2", "\\boxed{0.5}", {}, "0123456789abcdef")
    verdict = pool.submit(*asked).result()
    assert verdict.seconds > 0
    assert verdict == Verdict(
        problem_id="abc",
        sample=7,
        status="correct",
        basis="0123456789abcdef",
        reason="equal",
        extracted="0.5",
        layer="numeric",
        verifier="math",
        version=VERSIONS["math"],
        seconds=verdict.seconds,
    )
    assert [one.basis for one in pool.map([asked, row(1)])] == ["0123456789abcdef", ""]
    assert asyncio.run(pool.verify(*asked)).basis == "0123456789abcdef"


def test_a_pool_has_a_worker_for_each_core_unless_told() -> None:
    num_threads = {workers: len(VerifierPool(workers)._threads) for workers in (None, 1, 3)}
    assert num_threads == {None: len(os.sched_getaffinity(0)), 1: 1, 3: 3}


def test_one_pair() -> None:
    assert verify("so \\boxed{0.5}", "1/2").status == "correct"
    assert verify("\\boxed{C}", "B", "choice").status == "wrong"


def test_what_cannot_be_sent_is_an_error_for_who_waits_and_the_pool_goes_on(pool: VerifierPool) -> None:
    num_workers = len(workers_of(os.getpid()))
    for sample in range(4):  # more than there are threads
        future = pool.submit(("abc", sample), "math", "1", "\\boxed{1}", {"when": object()})
        with pytest.raises(TypeError, match="not JSON serializable"):
            future.result(timeout=30)
    assert pool.submit(("abc", 9), "math", "1", "\\boxed{1}", {}).result(timeout=30).status == "correct"
    assert (
        len(workers_of(os.getpid())) <= num_workers + 1
    )  # the second of this pool may not have started before


def test_map_keeps_the_order_of_its_rows(pool: VerifierPool) -> None:
    verdicts = list(pool.map(row(k) for k in range(300)))
    assert [verdict.sample for verdict in verdicts] == list(range(300))
    assert {verdict.status for verdict in verdicts} == {"correct"}


def test_a_verifier_is_loaded_for_the_first_who_asks(pool: VerifierPool) -> None:
    entry = {"question": "1 + 2", "answer": "3", "metadata": {}}
    gym = {"family": "chain_sum", "entry": entry}
    inner = {"verifier": "reasoning_gym", **gym}
    rows: list[Row] = [row(0), (("gym", 1), "reasoning_gym", "3", "\\boxed{3}", gym), row(2)]
    rows += [(("any", 3), "any", '["3"]', "\\boxed{3}", inner), (("text", 4), "text", "a", "\\boxed{a}", {})]
    assert [verdict.status for verdict in pool.map(rows * 20)] == ["correct"] * 100
    code = (
        "import sys; from pipeline.verify.table import PRELOADED, function_of; list(map(function_of, PRELOADED)); "
        "print(sorted({'reasoning_gym', 'math_verify', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['math_verify']"


def test_the_deadline_costs_one_verdict(pool: VerifierPool) -> None:
    end = time.monotonic() + 60
    while len(before := set(workers_of(os.getpid()))) < 2:  # the second one starts when both are needed
        assert time.monotonic() < end
        list(pool.map(row(k) for k in range(40)))
    verdicts = list(pool.map(row(k, SLOW if k == 20 else None) for k in range(40)))
    assert [verdict.sample for verdict in verdicts if verdict.status != "correct"] == [20]
    assert verdicts[20].reason == "timeout"
    assert verdicts[20].seconds >= DEADLINE
    assert {verdict.status for verdict in pool.map(row(k) for k in range(40))} == {"correct"}
    assert len(before - set(workers_of(os.getpid()))) == 1  # the worker that was late is gone


def test_a_killed_worker_costs_one_verdict(pool: VerifierPool) -> None:
    before = {pid: cpu_ticks(pid) for pid in descendants(os.getpid())}
    future = pool.submit(("x", 0), "math", "1", SLOW, {})
    os.kill(working_since(before, future), 9)
    assert future.result(timeout=60).reason == "crash"
    assert [verdict.status for verdict in pool.map(row(k) for k in range(20))] == ["correct"] * 20


def working_since(before: dict[int, int], future: Future[Verdict], ticks: int = 10) -> int:
    """The worker that has spent `ticks` of CPU time more than `before`, while the verdict is not there yet."""
    while not future.done():
        for worker in workers_of(os.getpid()):
            if cpu_ticks(worker) - before.get(worker, 0) >= ticks:
                return worker
        time.sleep(0.02)
    raise AssertionError("no worker works on what was submitted")


def cpu_ticks(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11])


def test_memory_is_limited() -> None:
    matrix = "\\boxed{\\{" + ", ".join(["x"] * 4_000) + "\\}}"
    with VerifierPool(workers=1, deadline_seconds=5.0, memory_mb=60) as small:
        verdict = small.submit(("m", 0), "math", "1", matrix * 200, {}).result()
        assert verdict.status == "unverifiable"
        assert verdict.reason in ("memory", "crash")


def test_workers_are_recycled() -> None:
    with VerifierPool(workers=1, recycle_after=3) as recycling:
        seen = set()
        for index in range(9):
            assert recycling.submit(*row(index)).result().status == "correct"
            seen |= set(descendants(os.getpid()))
    assert len(seen) >= 3


def test_many_threads(pool: VerifierPool) -> None:
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda k: pool.submit(*row(k)).result(), range(200)))
    assert [verdict.problem_id for verdict in verdicts] == [f"p{k}" for k in range(200)]


def test_asyncio(pool: VerifierPool) -> None:
    async def run() -> tuple[list[Verdict], int]:
        ticks = 0
        tasks = [asyncio.ensure_future(pool.verify(*row(k))) for k in range(500)]
        while not all(task.done() for task in tasks):
            ticks += 1
            await asyncio.sleep(0.001)
        return [task.result() for task in tasks], ticks

    verdicts, ticks = asyncio.run(run())
    assert [verdict.sample for verdict in verdicts] == list(range(500))
    assert ticks > 2  # the loop went on while verdicts were out


def test_cancelled_coroutines_give_their_turn_back() -> None:
    async def run(narrow: VerifierPool) -> list[str]:
        tasks = [asyncio.ensure_future(narrow.verify(*row(k, SLOW if k < 2 else None))) for k in range(300)]
        await asyncio.sleep(0.1)
        for task in tasks[100:]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        again = await asyncio.gather(*(narrow.verify(*row(k)) for k in range(100)))
        assert all(verdict.status == "correct" for verdict in again)
        return [type(one).__name__ for one in done]

    with VerifierPool(workers=1, deadline_seconds=1.0) as narrow:
        kinds = asyncio.run(run(narrow))
    assert kinds.count("CancelledError") == 200


def test_submit_is_bounded_in_flight() -> None:
    before = {pid: cpu_ticks(pid) for pid in descendants(os.getpid())}
    with VerifierPool(workers=1, deadline_seconds=600) as narrow:
        submitted: list[Future[Verdict]] = []

        def feed() -> None:
            for index in range(400):
                submitted.append(narrow.submit(*row(index, SLOW if index == 0 else None)))

        feeder = threading.Thread(target=feed)
        feeder.start()
        while len(submitted) < 64:
            time.sleep(0.02)
        feeder.join(timeout=0.3)  # time enough to go on, if nothing held it
        assert len(submitted) == 64
        os.kill(working_since(before, submitted[0]), 9)
        feeder.join(timeout=60)
        assert len(submitted) == 400
        assert submitted[0].result(timeout=60).reason == "crash"


def test_a_verifiers_own_limits_come_before_those_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"deadline_seconds": 0.5, "memory_mb": 700}
    monkeypatch.setitem(VERIFIERS, "math", dataclasses.replace(VERIFIERS["math"], **own))
    others = set(workers_of(os.getpid()))
    with VerifierPool(workers=1, deadline_seconds=600, memory_mb=900) as strict:
        for key, verifier, gold in [("a", "math", "1"), ("b", "any", '["1"]')]:
            assert strict.submit((key, 0), verifier, gold, SLOW, {}).result().reason == "timeout"
            assert strict.submit((key, 1), verifier, gold, "\\boxed{1}", {}).result().status == "correct"
            assert limits_of(others) == [700]
        for key, verifier, gold in [("c", "text", "1"), ("d", "any", '["1"]')]:
            inner = {"verifier": "text"}
            assert strict.submit((key, 0), verifier, gold, "\\boxed{1}", inner).result().status == "correct"
            assert limits_of(others) == [900]


def limits_of(others: set[int]) -> list[int]:
    """Megabytes of address space that each worker beside `others` may have."""
    limits = [Path(f"/proc/{pid}/limits").read_text() for pid in set(workers_of(os.getpid())) - others]
    return [int(re.findall(r"Max address space +(\d+)", text)[0]) // 2**20 for text in limits]


def test_unknown_verifiers_are_refused_at_once(pool: VerifierPool) -> None:
    with pytest.raises(VerifyError, match="did you mean 'math'"):
        pool.submit(("a", 0), "maths", "1", "1", {})


def test_a_closed_pool_says_so() -> None:
    with pytest.raises(VerifyError, match="not open"):
        VerifierPool().submit(*row(1))


@pytest.mark.parametrize("workers", [0, -2])
def test_a_pool_without_workers_is_refused(workers: int) -> None:
    with pytest.raises(VerifyError, match=f"workers: at least 1 process must verify, found {workers}"):
        VerifierPool(workers)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_pool_without_a_deadline_is_refused(seconds: float) -> None:
    with pytest.raises(VerifyError, match=rf"deadline: .* above 0 .*, found {re.escape(str(seconds))}; 5 is"):
        VerifierPool(deadline_seconds=seconds)


def test_leaving_kills_everything_and_leaks_nothing() -> None:
    before = set(descendants(os.getpid()))
    files = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    for _ in range(3):
        with VerifierPool(workers=2) as passing:
            assert passing.submit(*row(1)).result().status == "correct"
    assert set(descendants(os.getpid())) <= before
    assert len(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() == threads


def test_leaving_by_an_exception_does_not_wait() -> None:
    before = {pid: cpu_ticks(pid) for pid in descendants(os.getpid())}
    futures: list[Future[Verdict]] = []

    def interrupted() -> None:
        with VerifierPool(workers=1, deadline_seconds=600) as stopped:
            futures.extend(stopped.submit(*row(k, SLOW)) for k in range(5))
            working_since(before, futures[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(future.cancelled() or future.exception() for future in futures)  # no verdict was waited for
    assert set(descendants(os.getpid())) <= set(before)


HOST = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pipeline.verify import VerifierPool
with VerifierPool(workers=2, deadline_seconds=60) as pool:
    for verdict in pool.map(((str(k), 0), "math", "1", "1", {{}}) for k in range(50)):
        pass
    for k in range(2):
        pool.submit((str(k), 0), "math", "1", {SLOW!r}, {{}})
    print("ready", flush=True)
    time.sleep(120)
"""


@pytest.mark.parametrize("number", [2, 9], ids=["interrupted", "killed"])
def test_workers_die_with_their_host(number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOST], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as host:
        assert host.stdout is not None
        assert host.stdout.readline().strip() == "ready"
        # half a second of CPU each: both are at what takes for ever
        while len([worker for worker in workers_of(host.pid) if cpu_ticks(worker) >= 50]) < 2:
            assert host.poll() is None
            time.sleep(0.02)
        workers = descendants(host.pid)
        assert len(workers) == 3
        host.send_signal(number)
        host.wait(timeout=60)
    end = time.monotonic() + 30  # half of the deadline: their own limit of CPU time has not ended them
    while any(map(is_running, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_running, workers))
