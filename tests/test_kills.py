"""kill -9 in the middle of a collection: nothing that was finished is lost, nothing is doubled."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.sampling import Store, request_fingerprint
from tests.collect_child import JOB, make_problems
from tests.scripted_teacher import answer
from tests.test_sampling import keys_in, outcomes, tries_by_rule

ROOT = Path(__file__).resolve().parent.parent
CONCURRENCY = 32


@contextmanager
def scripted_server(delay_seconds: float, behaviour: str = "good") -> Iterator[str]:
    """The URL of a scripted teacher in a process of its own, which ends by itself after ten minutes."""
    command = [sys.executable, "-m", "tests.scripted_teacher", "--delay", str(delay_seconds)]
    command += ["--behaviour", behaviour, "--seconds", "600"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{json.loads(server.stdout.readline())['port']}/v1"
    finally:
        server.kill()
        server.wait()


def start_child(url: str, directory: Path, num_problems: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.collect_child", url, str(directory), str(num_problems)]
    return subprocess.Popen(
        [*command, str(CONCURRENCY)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def num_lines(directory: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in directory.glob("traces-*.jsonl"))


def kill_after(child: subprocess.Popen[str], directory: Path, wanted: int, moment: float) -> None:
    """Kill a child at a random moment after its store has `wanted` traces."""
    end = time.monotonic() + 60
    while num_lines(directory) < wanted and child.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(moment)
    child.kill()
    child.communicate()


def whole_lines(directory: Path) -> set[bytes]:
    lines = set()
    for path in directory.glob("traces-*.jsonl"):
        data = path.read_bytes()
        lines |= set(data[: data.rfind(b"\n") + 1].splitlines())
    return lines


@pytest.mark.slow
def test_kill_9_at_50_random_moments(tmp_path: Path) -> None:
    num_kills, problems = 50, make_problems(2000)
    expected = {
        (problem.id, i) for problem in problems for i in range(tries_by_rule(outcomes(JOB, problem, 6), 2))
    }
    rng = random.Random(7)
    with scripted_server(0.01) as url:
        before: set[bytes] = set()
        for number in range(num_kills):
            child = start_child(url, tmp_path, len(problems))
            kill_after(child, tmp_path, len(expected) * number // (num_kills + 5), rng.uniform(0, 0.2))
            now = whole_lines(tmp_path)
            assert before <= now, f"kill {number} lost a finished trace"
            before = now
        last = start_child(url, tmp_path, len(problems))
        assert last.wait(timeout=240) == 0, last.communicate()
        with urllib.request.urlopen(url.replace("/v1", "/seen"), timeout=10) as response:
            asked = sum(json.load(response).values())
    found = keys_in(tmp_path)
    assert set(found) == expected
    assert set(found.values()) == {1}
    assert before <= whole_lines(tmp_path)
    assert asked <= len(expected) + num_kills * CONCURRENCY
    by_id = {problem.id: problem for problem in problems}
    for trace in Store(tmp_path).traces():
        assert trace.answer == answer(by_id[trace.problem_id].question, trace.seed)[1]
    assert {(v.problem_id, v.sample) for v in Store(tmp_path).verdicts()} == expected


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_keeps_what_is_finished(name: str, tmp_path: Path) -> None:
    with scripted_server(0.05) as url:
        child = start_child(url, tmp_path, 2000)
        end = time.monotonic() + 60
        while num_lines(tmp_path) < 5 and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(child.pid, getattr(signal, name))
        _, errors = child.communicate(timeout=30)
    assert "launching nothing more" in errors
    assert "KeyboardInterrupt" in errors
    store = Store(tmp_path)
    store.load(request_fingerprint(JOB))
    store.close()
    assert 5 <= store.keys.num_traces < 2000
