"""Out of file descriptors, and a host thread that dies: one error each, and nobody waits for ever."""

import asyncio
import json
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from pipeline.errors import VerifyError
from pipeline.verify import VerifierPool
from pipeline.verify.pool import Task, Worker
from tests.conftest import ROOT
from tests.served import scripted_server

ADVICE = "this process may hold {} (ulimit -n). What was finished is kept: raise the limit (ulimit -n 65536)"


def test_a_collection_without_descriptors_ends_with_one_error(tmp_path: Path) -> None:
    ends = {}
    with scripted_server(0.05) as url:
        for limit in (9, 16, 40, 200):  # 9: no second connection, and no worker
            words = ["tests.descriptors_child", url, tmp_path / str(limit), str(limit)]
            command = [sys.executable, "-m", *words]
            ends[limit] = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
            )
    for limit, done in ends.items():
        assert "Traceback" not in done.stderr
        assert "is down" not in done.stderr, "it is not the server's fault"
        if limit < 200:
            assert done.returncode == 1
            assert done.stderr.count("error: ") == 1
            assert ADVICE.format(limit) in done.stderr
    assert ends[200].stdout.startswith("solved ")


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_verify_without_descriptors_ends_with_one_error_or_with_all_verdicts(
    workers: int, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text((json.dumps({"gold": "1", "response": "\\boxed{1}"}) + "\n") * 300)
    codes = []
    for limit in range(6, 24, 5):
        out = tmp_path / f"{limit}.jsonl"
        line = f"ulimit -n {limit}; exec {sys.executable} -m pipeline verify {rows} --out {out} --workers {workers}"
        done = subprocess.run(
            ["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        codes.append(done.returncode)
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert done.stderr.startswith("error: ")
            assert ADVICE.format(limit) in done.stderr
            assert not out.exists()
        else:
            assert len(out.read_text().splitlines()) == 300
    assert codes == sorted(codes, reverse=True)
    assert {*codes} == {0, 1}


class Bug(Exception):
    """What nobody has thought of."""


def test_a_host_thread_that_dies_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The library under a worker fails in a way that no line of the pool expects."""
    begin = threading.Event()

    def fails(worker: Worker, task: Task) -> dict[str, object]:
        begin.wait(30)
        raise Bug("of a library")

    monkeypatch.setattr(Worker, "run", fails)
    with VerifierPool(workers=2) as pool:
        rows = [((str(k), 0), "math", "1", "1", {}) for k in range(100)]
        futures: list[Future[object]] = [pool.submit(*row) for row in rows]  # type: ignore[arg-type]

        async def wait_as_coroutines() -> list[BaseException | object]:
            asked = [asyncio.ensure_future(pool.verify(*row)) for row in rows]  # type: ignore[arg-type]
            await asyncio.sleep(0.1)
            begin.set()
            return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)

        faults = [*asyncio.run(wait_as_coroutines()), *(future.exception(timeout=30) for future in futures)]
        with pytest.raises(VerifyError, match="a host thread died"):
            pool.submit(*rows[0])  # type: ignore[arg-type]
    assert {type(fault) for fault in faults} == {VerifyError}
    assert all("a host thread died (Bug: of a library)" in str(fault) for fault in faults)
    assert "Traceback" in caplog.text
    assert "Bug: of a library" in caplog.text
