"""kill -9 in the middle of a collection: nothing that was finished is lost, nothing is doubled."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.render import split_response
from pipeline.sampling import Store, request_fingerprint
from pipeline.verify.basis import tags_digest
from tests.collect_child import JOB, make_problems
from tests.conftest import ROOT
from tests.scripted_teacher import answer
from tests.served import num_asked, scripted_server
from tests.test_sampling import keys_in, outcomes, tries_by_rule

CONCURRENCY = 32


def start_child(module: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A process that makes itself ready to collect, and collects when it is told to (`tell_to_go`)."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def tell_to_go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


class Growth:
    """How many whole lines the shards of a directory have; of each only what is new is read."""

    def __init__(self, directory: Path, prefix: str = "traces") -> None:
        self._directory = directory
        self._prefix = prefix
        self._lines: dict[Path, tuple[int, int]] = {}  # number, and the offset after the last of them

    def num_lines(self) -> int:
        for path in self._directory.glob(f"{self._prefix}-*.jsonl"):
            number, offset = self._lines.get(path, (0, 0))
            with path.open("rb") as file:
                file.seek(offset)
                new = file.read()
            self._lines[path] = (number + new.count(b"\n"), offset + new.rfind(b"\n") + 1)
        return sum(number for number, _ in self._lines.values())


def killed(command: list[str], growth: Growth, more: int) -> bool:
    """Run a command until its store has so many lines more, and kill it; False where it ended before."""
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    wanted = growth.num_lines() + more
    while child.poll() is None and growth.num_lines() < wanted:
        pass
    was_running = child.poll() is None
    child.kill()
    child.wait(timeout=120)
    return was_running


def wait_for_lines(child: subprocess.Popen[str], growth: Growth, wanted: int, seconds: float = 240) -> None:
    """Return when the child's store has `wanted` traces."""
    end = time.monotonic() + seconds
    while growth.num_lines() < wanted and time.monotonic() < end:
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.005)
    assert growth.num_lines() >= wanted


def whole_lines(directory: Path) -> set[bytes]:
    lines = set()
    for path in directory.glob("traces-*.jsonl"):
        data = path.read_bytes()
        lines |= set(data[: data.rfind(b"\n") + 1].splitlines())
    return lines


def collector(url: str, directory: Path, num_problems: int, stack: ExitStack) -> subprocess.Popen[str]:
    child = start_child("tests.collect_child", url, directory, num_problems, CONCURRENCY)
    stack.callback(child.communicate)
    stack.callback(child.kill)
    return child


@pytest.mark.slow
def test_kill_9_at_50_random_moments(tmp_path: Path) -> None:
    num_kills, problems = 50, make_problems(2000)
    expected = {
        (problem.id, i) for problem in problems for i in range(tries_by_rule(outcomes(JOB, problem, 6), 2))
    }
    rng, growth, before = random.Random(7), Growth(tmp_path), set()
    with scripted_server(0.01) as url, ExitStack() as stack:
        # the next child imports what it needs while this one collects; none opens the store before its turn
        waiting = deque(collector(url, tmp_path, len(problems), stack) for _ in range(2))
        for number in range(num_kills):
            child = waiting.popleft()
            tell_to_go(child)
            waiting.append(collector(url, tmp_path, len(problems), stack))
            wait_for_lines(child, growth, len(expected) * number // (num_kills + 5))
            time.sleep(rng.uniform(0, 0.2))
            assert child.poll() is None, "ended before it was killed"
            child.kill()
            child.communicate()
            now = whole_lines(tmp_path)
            assert before <= now, f"kill {number} lost a finished trace"
            before = now
        last = waiting.popleft()
        tell_to_go(last)
        _, errors = last.communicate(timeout=240)
        assert last.returncode == 0, errors
        asked = num_asked(url)
    found = keys_in(tmp_path)
    assert set(found) == expected
    assert set(found.values()) == {1}
    assert before <= whole_lines(tmp_path)
    assert asked <= len(expected) + num_kills * CONCURRENCY
    by_id = {problem.id: problem for problem in problems}
    for trace in Store(tmp_path).traces():
        answered = split_response(trace.response, JOB.model.tags).answer
        assert answered == answer(by_id[trace.problem_id].question, trace.seed)[1]
    assert {(v.problem_id, v.sample) for v in Store(tmp_path).verdicts()} == expected


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_an_interrupt_keeps_what_is_finished(name: str, tmp_path: Path) -> None:
    with scripted_server(0.05) as url, ExitStack() as stack:
        child = collector(url, tmp_path, 2000, stack)
        tell_to_go(child)
        wait_for_lines(child, Growth(tmp_path), 5)
        os.kill(child.pid, getattr(signal, name))
        _, errors = child.communicate(timeout=60)  # of which it may drain for ten seconds
    assert "launching nothing more" in errors
    assert "KeyboardInterrupt" in errors
    store = Store(tmp_path)
    store.load(request_fingerprint(JOB), tags_digest(JOB.model.tags))
    store.close()
    assert 5 <= store.keys.num_traces < 2000
