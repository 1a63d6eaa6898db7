"""Seeing that it lives: the line of progress, what libraries write beside it, and a Ctrl-C."""

import asyncio
import io
import logging
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe.schema import Samples
from pipeline.sampling import Options, Store, Tally, collect
from pipeline.sampling.engines.base import Completion, Request
from pipeline.sampling.engines.vllm import deaf_to_interrupts
from pipeline.sampling.loop import Loop
from pipeline.sampling.progress import Progress, describe, memory_of, one_line, rate
from tests.collect_child import JOB, make_problems


def tally_of(seconds: float, **fields: Any) -> Tally:
    """What began so many seconds ago."""
    return Tally(first_launch=-seconds, max_tokens=1000, **fields)


@pytest.mark.parametrize(
    ("tally", "said"),
    [
        # nothing is finished: 4 x 500 tokens in 10 s are 200 a second, and 10 problems take at most 10,000
        (tally_of(10, in_flight=4, tokens_in_flight=2000), " 4 in flight 200 tok/s 0:00:40 left at most"),
        # 1 of 10 finished with 400 tokens, 4 in flight with 100 each: 9 x 400 - 400 at 80 a second
        (tally_of(10, solved=1, sampled=1, output_tokens=400, in_flight=4, tokens_in_flight=400), " 80 tok/s 0:00:40 left"),
        # those in flight are longer already than the first one that was finished
        (tally_of(10, solved=1, sampled=1, output_tokens=100, in_flight=1, tokens_in_flight=900), "0:01:12 left"),
        # tokens are not known
        (tally_of(10, solved=1, sampled=1, in_flight=4), r" \? tok/s 0:01:30 left"),
        (tally_of(600, solved=2, sampled=2, output_tokens=30), " 0.0033 traces/s 0.05 tok/s"),
        (tally_of(9, solved=3, sampled=60, cut=26, failed=Counter(timeout=2, http_500=1)), " 43.3% cut 3 failed"),
        (tally_of(9, solved=10, sampled=10, output_tokens=90), r" 10 tok/s$"),
    ],
    ids=["first second", "in flight", "long ones", "unknown", "slow", "cut", "end"],
)  # fmt: skip
def test_the_line_says_what_is_in_flight_and_what_goes_wrong(tally: Tally, said: str) -> None:
    tally.first_launch += time.monotonic()
    assert re.search(said, describe(tally, 10)), describe(tally, 10)


def test_rates_below_one_have_digits() -> None:
    assert [rate(value) for value in (0, 0.004321, 0.5, 1, 1234.56)] == [
        "0.0",
        "0.0043",
        "0.5",
        "1.0",
        "1,234.6",
    ]


def test_the_memory_of_all_gpus_is_one_figure() -> None:
    assert memory_of("1024, 81559\n2048, 81559\n") == " GPU 3.0/159.3 GiB"
    assert memory_of("") == ""


class Terminal(io.StringIO):
    """A terminal of so many rows: line feeds that scroll its region, places that are saved, lines erased."""

    def __init__(self, height: int) -> None:
        super().__init__()
        self.height, self.lines, self.scrolled = height, [""] * height, list[str]()
        self.place, self.saved, self.bottom = [0, 0], [0, 0], height - 1

    def write(self, text: str) -> int:
        for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[78]|\r|\n|[^\x1b\r\n]+", text):
            self.take(piece)
        return len(text)

    def take(self, piece: str) -> None:
        row, column = self.place
        numbers = [int(number) for number in re.findall(r"\d+", piece)] if piece[0] == "\x1b" else []
        if piece == "\r":
            self.place = [row, 0]
        elif piece == "\n" and row == self.bottom:
            self.scrolled.append(self.lines.pop(0))
            self.lines.insert(row, "")
            self.place = [row, 0]
        elif piece == "\n":
            self.place = [min(row + 1, self.height - 1), 0]
        elif piece == "\x1b7":
            self.saved = list(self.place)
        elif piece == "\x1b8":
            self.place = list(self.saved)
        elif piece.endswith("H"):
            self.place = [numbers[0] - 1, numbers[1] - 1]
        elif piece.endswith("A"):
            self.place[0] = max(row - numbers[0], 0)
        elif piece.endswith("K"):
            self.lines[row] = ""
        elif piece.endswith("r"):
            self.bottom = (numbers[1] if numbers else self.height) - 1
            self.place = [0, 0]
        elif piece[0] != "\x1b":
            held = self.lines[row].ljust(column)
            self.lines[row] = held[:column] + piece + held[column + len(piece) :]
            self.place[1] += len(piece)


def test_nothing_is_glued_to_the_line_and_the_line_to_nothing() -> None:
    terminal = Terminal(6)
    terminal.write("$ make generate\n")
    said = [f"[W] {number} of a library" for number in range(9)]
    with one_line(terminal, lambda: 6) as show:
        for number, line in enumerate(said):
            show(f"{number}/10 problems 3 in flight")
            terminal.write(f"{line}\n" if number % 2 else f"half of \r{line}\n")  # nobody asks the line
            assert terminal.lines[-1] == f"{number}/10 problems 3 in flight"
    terminal.write("$ ")
    shown = [line for line in [*terminal.scrolled, *terminal.lines] if line]
    assert shown == ["$ make generate", *said, "$ "]


class Slow:
    """An engine whose responses end when the test says so, by the sample's number; it counts its tokens."""

    def __init__(self, samples: int) -> None:
        self.ends = [asyncio.Event() for _ in range(samples)]
        self.notes: dict[str, Any] = {}
        self.given_up = 0
        self.begun: dict[int, float] = {}

    async def ready(self) -> None: ...

    async def prompts(self) -> None:
        return None

    def prompt(self, messages: Any) -> Any:
        return messages

    async def tokens_in_flight(self) -> int:
        return sum(int(10 * (time.monotonic() - begun)) for begun in self.begun.values())

    async def sample(self, request: Request) -> Completion:
        number = request.key[1]
        self.begun[number] = time.monotonic()
        try:
            await self.ends[number].wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            del self.begun[number]
        return Completion("so\n</think>\n\n1", "stop", 3, 4)


def test_an_interrupt_waits_for_what_is_nearly_done_and_says_for_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.sampling.loop.DRAIN_SECONDS", 1.0)
    engine, job = Slow(3), replace(JOB, samples=Samples(keep=3, max=3))

    async def interrupted(store: Store) -> None:
        store.load("r", "t")
        loop = Loop(job, engine, store, None, Options(8))

        async def press() -> None:
            while len(engine.begun) < 3:
                await asyncio.sleep(0.01)
            engine.ends[0].set()
            while len(loop._tasks) > 2:
                await asyncio.sleep(0.01)
            loop.stop(KeyboardInterrupt())
            engine.ends[1].set()

        async with asyncio.timeout(30), asyncio.TaskGroup() as both:
            both.create_task(press())
            await loop.run(make_problems(1), {})

    begun = time.monotonic()
    with Store(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        asyncio.run(interrupted(store))
    assert time.monotonic() - begun < 5
    assert sorted(trace.sample for trace in Store(tmp_path).traces()) == [0, 1]
    assert engine.given_up == 1
    assert "waiting at most 1 s for 2 that are in flight" in caplog.text


def test_tokens_in_flight_are_counted_while_nothing_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.sampling.loop.OBSERVE_SECONDS", 0.05)
    monkeypatch.setattr("pipeline.sampling.progress.SCREEN_SECONDS", 0.1)
    monkeypatch.setattr("pipeline.sampling.progress.FIRST_LOG_SECONDS", 0.4)
    monkeypatch.setattr("pipeline.sampling.progress.LOG_SECONDS", 0.1)
    caplog.set_level(logging.INFO)
    engine, job = Slow(2), replace(JOB, samples=Samples(keep=2, max=2))

    async def end_them_once_they_are_counted() -> None:
        while not re.search(r"0/1 problems .* 2 in flight .* tok/s .* left at most", caplog.text):
            await asyncio.sleep(0.01)
        for end in engine.ends:
            end.set()

    async def collected(store: Store) -> None:
        async with asyncio.timeout(30), asyncio.TaskGroup() as both:
            both.create_task(end_them_once_they_are_counted())
            await collect(job, make_problems(1), engine, store, None, Options(8, (), Progress(1)))

    with Store(tmp_path) as store:
        asyncio.run(collected(store))
    *_, last = (line for line in caplog.text.splitlines() if "problems" in line)
    assert "1/1 problems" in last


def test_processes_of_an_engine_do_not_hear_a_ctrl_c() -> None:
    with deaf_to_interrupts():
        child = subprocess.Popen([sys.executable, "-c", "print(open('/proc/self/status').read())"], stdout=-1)
    said = child.communicate()[0].decode()
    blocked = int(re.search(r"SigBlk:\s*(\w+)", said)[1], 16)  # type: ignore[index]
    assert blocked & 1 << signal.SIGINT - 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
