"""Hostile answers: each ends by the deadline, none runs, the host does not grow, nothing is left running."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from verify_rows.hostile import hostile_rows

from pipeline.verify import VerifierPool

DEADLINE = 2.0
QUICK = {"power_tower", "factorial", "sum", "eval_import", "latex_write18", "nested_brackets", "backslashes",
         "surrogate", "long_set"}  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=1, deadline_seconds=DEADLINE) as open_pool:
        open_pool.submit(("start", 0), "math", "1", "1", {}).result()
        yield open_pool


def check_row(pool: VerifierPool, name: str, response: str, gold: str) -> None:
    assert min(seconds_of_row(pool, name, response, gold)) < DEADLINE + 0.5, name


def seconds_of_row(pool: VerifierPool, name: str, response: str, gold: str) -> Iterator[float]:
    """Again where it was late: a machine that stood still for a moment does not do so each time."""
    for _ in range(3):
        start = time.monotonic()
        verdict = pool.submit((name, 0), "math", gold, response, {}).result()
        seconds = time.monotonic() - start
        assert verdict.status != "correct", name
        assert verdict.extracted is None or len(verdict.extracted) <= 2_000
        assert verdict.reason != "crash", name
        yield seconds
        if seconds < DEADLINE + 0.5:
            return


def test_some_hostile_answers(pool: VerifierPool, tmp_path: Path) -> None:
    rows = [row for row in hostile_rows(str(tmp_path / "run")) if row[0] in QUICK]
    assert len(rows) == len(QUICK)
    for name, response in rows:
        check_row(pool, name, response, "4")
    assert not (tmp_path / "run").exists()
    check_nothing_is_left_running(pool)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def check_normal_answers(pool: VerifierPool) -> None:
    rows = (
        ((str(k), k), "math", f"\\frac{{{k}}}{{7}}", f"So it is \\boxed{{{k}/7}}.", {}) for k in range(1_000)
    )
    assert all(verdict.status == "correct" for verdict in pool.map(rows))


def worker_pids(pool: VerifierPool) -> list[str]:
    """The processes that the pool's zygote has: what an answer left running would be among them."""
    assert pool._zygote is not None
    pid = pool._zygote._process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def check_nothing_is_left_running(pool: VerifierPool) -> None:
    """One worker at most, of one thread, which sleeps once it has answered."""
    pids = worker_pids(pool)
    assert len(pids) <= 1
    for pid in pids:
        assert len(os.listdir(f"/proc/{pid}/task")) == 1
        assert any(wait_for_state(pid) == "S" for _ in range(100))


def wait_for_state(pid: str) -> str:
    time.sleep(0.05)
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
@pytest.mark.parametrize("gold", ["4", "x^2 + 1"])
def test_all_hostile_answers(pool: VerifierPool, tmp_path: Path, gold: str) -> None:
    rows = hostile_rows(str(tmp_path / "run"))
    assert len(rows) >= 40
    check_normal_answers(pool)
    before_mb = resident_mb()
    for name, response in rows:
        check_row(pool, name, response, gold)
    assert not (tmp_path / "run").exists()
    assert resident_mb() < before_mb + 30  # the longest response is 3 MB and is copied a few times
    check_nothing_is_left_running(pool)
    check_normal_answers(pool)
