"""The pool of verifier processes: deadlines, crashes, order, bounds, threads, asyncio, and a clean end."""

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import VerifyError
from pipeline.records import Verdict
from pipeline.verify import VERSIONS, VerifierPool, verify

ROOT = Path(__file__).resolve().parent.parent
SLOW = "\\boxed{\\sum_{k=1}^{1000000000} k^{k}}"  # math-verify works on it for hours
Row = tuple[tuple[str, int], str, str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=2, deadline_seconds=3.0) as open_pool:
        open_pool.submit(("start", 0), "math", "1", "1", {}).result()
        yield open_pool


def row(index: int, response: str | None = None) -> Row:
    return ((f"p{index}", index), "math", str(index), response or f"\\boxed{{{index}}}", {})


def descendants(process: int) -> list[int]:
    """Process ids of children and their children that still run or wait to be reaped."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    found = [int(child) for file in children for child in file.read_text().split()]
    return found + [pid for child in found for pid in descendants(child)]


def test_a_verdict_carries_its_key_and_version(pool: VerifierPool) -> None:
    verdict = pool.submit(("abc", 7), "math", "1/2", "\\boxed{0.5}", {}).result()
    assert verdict.seconds > 0
    assert verdict == Verdict(
        "abc", 7, "correct", "equal", "0.5", "numeric", "math", VERSIONS["math"], verdict.seconds
    )


def test_one_pair() -> None:
    assert verify("so \\boxed{0.5}", "1/2").status == "correct"
    assert verify("\\boxed{C}", "B", "choice").status == "wrong"


def test_what_cannot_be_sent_is_an_error_for_who_waits_and_the_pool_goes_on(pool: VerifierPool) -> None:
    for sample in range(4):  # more than there are threads
        future = pool.submit(("abc", sample), "math", "1", "\\boxed{1}", {"when": object()})
        with pytest.raises(TypeError, match="not JSON serializable"):
            future.result(timeout=30)
    assert pool.submit(("abc", 9), "math", "1", "\\boxed{1}", {}).result(timeout=30).status == "correct"


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
        "import sys; from pipeline.verify.table import COMMON, load_verifiers; load_verifiers(COMMON); "
        "print(sorted({'reasoning_gym', 'math_verify', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['math_verify']"


def test_the_deadline_costs_one_verdict(pool: VerifierPool) -> None:
    start = time.monotonic()
    rows = [row(k, SLOW if k == 20 else None) for k in range(40)]
    verdicts = list(pool.map(iter(rows)))
    assert time.monotonic() - start < 3.0 + 1.5
    assert [verdict.sample for verdict in verdicts if verdict.status != "correct"] == [20]
    assert verdicts[20].reason == "timeout"
    assert 3.0 <= verdicts[20].seconds < 3.5


def test_a_killed_worker_costs_one_verdict(pool: VerifierPool) -> None:
    before = {pid: cpu_ticks(pid) for pid in descendants(os.getpid())}
    future = pool.submit(("x", 0), "math", "1", SLOW, {})
    os.kill(working_since(before), 9)
    assert future.result(timeout=2).reason == "crash"
    assert [verdict.status for verdict in pool.map(row(k) for k in range(20))] == ["correct"] * 20


def working_since(before: dict[int, int], ticks: int = 10) -> int:
    """The worker (a grandchild, without children) that has spent `ticks` of CPU time more than `before`."""
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        for worker in [pid for child in descendants(os.getpid()) for pid in descendants(child)]:
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
    with VerifierPool(workers=1, deadline_seconds=1.0) as narrow:
        submitted: list[int] = []

        def feed() -> None:
            for index in range(400):
                narrow.submit(*row(index, SLOW if index == 0 else None))
                submitted.append(index)

        feeder = threading.Thread(target=feed)
        feeder.start()
        time.sleep(0.6)
        assert len(submitted) <= 64
        feeder.join(timeout=30)
        assert len(submitted) == 400


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
    start = time.monotonic()
    futures = []

    def interrupted() -> None:
        with VerifierPool(workers=1, deadline_seconds=60) as stopped:
            futures.extend(stopped.submit(*row(k, SLOW)) for k in range(5))
            time.sleep(1.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 30
    assert all(future.done() for future in futures)


HOST = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pipeline.verify import VerifierPool
with VerifierPool(workers=2, deadline_seconds=60) as pool:
    for verdict in pool.map(((str(k), 0), "math", "1", "1", {{}}) for k in range(50)):
        pass
    for k in range(2):
        pool.submit((str(k), 0), "math", "1", {SLOW!r}, {{}})
    time.sleep(1)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [2, 9], ids=["interrupted", "killed"])
def test_workers_die_with_their_host(number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOST], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as host:
        assert host.stdout is not None
        assert host.stdout.readline().strip() == "ready"
        workers = descendants(host.pid)
        assert len(workers) == 3
        host.send_signal(number)
        host.wait(timeout=20)
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
