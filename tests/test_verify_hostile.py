"""Hostile answers: each ends by the deadline, none runs, the host does not grow, the next answers are as fast."""

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
    start = time.monotonic()
    verdict = pool.submit((name, 0), "math", gold, response, {}).result()
    assert time.monotonic() - start < DEADLINE + 0.5, name
    assert verdict.status != "correct", name
    assert verdict.extracted is None or len(verdict.extracted) <= 2_000
    assert verdict.reason != "crash", name


def test_some_hostile_answers(pool: VerifierPool, tmp_path: Path) -> None:
    rows = [row for row in hostile_rows(str(tmp_path / "run")) if row[0] in QUICK]
    assert len(rows) == len(QUICK)
    for name, response in rows:
        check_row(pool, name, response, "4")
    assert not (tmp_path / "run").exists()


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def normal_seconds(pool: VerifierPool) -> float:
    start = time.perf_counter()
    rows = (
        ((str(k), k), "math", f"\\frac{{{k}}}{{7}}", f"So it is \\boxed{{{k}/7}}.", {}) for k in range(1_000)
    )
    assert all(verdict.status == "correct" for verdict in pool.map(rows))
    return time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize("gold", ["4", "x^2 + 1"])
def test_all_hostile_answers(pool: VerifierPool, tmp_path: Path, gold: str) -> None:
    rows = hostile_rows(str(tmp_path / "run"))
    assert len(rows) >= 40
    normal_seconds(pool)
    before_seconds = min(normal_seconds(pool) for _ in range(3))
    before_mb = resident_mb()
    for name, response in rows:
        check_row(pool, name, response, gold)
    assert not (tmp_path / "run").exists()
    assert resident_mb() < before_mb + 30  # the longest response is 3 MB and is copied a few times
    # a machine that does other work is slow now and then, so the best of three
    assert min(normal_seconds(pool) for _ in range(3)) < 1.1 * before_seconds
