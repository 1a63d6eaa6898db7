"""Live progress of a collection: a line that moves on a terminal, a line every 30 seconds in a log.

    1,204/2,000 problems (1,150 solved, 54 given up) 256 in flight 61.3 traces/s 8,790 tok/s 312 tok/kept
    4.1% cut 12 failed 0:00:13 left

Tokens are counted from the first second, those in flight by the engine's own count, and so is the time left:
before a trace is finished it is what the limit allows ("at most").
"""

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, TextIO

from pipeline.sampling.loop import Tally

log = logging.getLogger(__name__)

LOG_SECONDS = 30.0
FIRST_LOG_SECONDS = 5.0  # so that a slow engine is seen to live
SCREEN_SECONDS = 0.5
SAVE_SECONDS = 1.0  # what a kill may take from the figures that are carried over to the next process
MEMORY_SECONDS = 10.0
ASK_MEMORY = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]

SAVE, RESTORE = "\x1b7", "\x1b8"  # the place of the cursor


class Screen(Protocol):
    """Shows one line in place of the one before."""

    def __call__(self, text: str) -> None: ...


class Progress:
    """Watches one collection of `num_problems`, the whole of the stage.

    `save` is given the tally every second, and once more at the end. `unit` is what is counted; other than
    problems it is neither solved nor given up.
    """

    def __init__(
        self, num_problems: int, save: Callable[[Tally], None] | None = None, unit: str = "problems"
    ) -> None:
        self._num_problems = num_problems
        self._save = save
        self._unit = unit

    async def watch(self, tally: Tally) -> None:
        memory = Memory()
        try:
            if stands_at_a_terminal():
                with one_line(sys.stderr, terminal_height) as show:
                    await self._watch(tally, memory, show, (SCREEN_SECONDS, SCREEN_SECONDS))
            else:
                await self._watch(tally, memory, log_line, (FIRST_LOG_SECONDS, LOG_SECONDS))
        finally:
            if self._save is not None:
                self._save(tally)
            log_line(self._text(tally, memory))

    async def _watch(self, tally: Tally, memory: "Memory", show: Screen, pauses: tuple[float, float]) -> None:
        """Show a line after the first pause and then after each of the others."""
        saved, next_line = time.monotonic(), time.monotonic() + pauses[0]
        while True:
            await asyncio.sleep(SCREEN_SECONDS)
            now = time.monotonic()
            if self._save is not None and now - saved >= SAVE_SECONDS:
                self._save(tally)
                saved = now
            if now >= next_line:
                await memory.look()
                show(self._text(tally, memory))
                next_line = now + pauses[1]

    def _text(self, tally: Tally, memory: "Memory") -> str:
        return describe(tally, self._num_problems, self._unit) + memory.said


def log_line(text: str) -> None:
    log.info("%s", text)


@contextmanager
def one_line(terminal: TextIO, height: Callable[[], int]) -> Iterator[Screen]:
    """A line at the foot of the terminal that what libraries write cannot be glued to.

    All else scrolls above it (the terminal's own scroll region, DECSTBM, as apt does it), whoever writes it:
    Python, a library in another language, a process of the engine. rich's Live was tried: it sees Python's
    own output alone, and overwrites or is glued to the rest.
    """
    rows = 0

    def put(text: str) -> None:
        terminal.write(text)
        terminal.flush()

    def show(text: str) -> None:
        nonlocal rows
        if height() != rows:  # the first time, and after the window was made larger or smaller
            rows = height()
            put(f"\n{SAVE}\x1b[1;{rows - 1}r{RESTORE}\x1b[1A")
        put(f"{SAVE}\x1b[{rows};1H\x1b[2K\x1b[?7l{text}\x1b[?7h{RESTORE}")  # cut at the edge, not wrapped

    try:
        yield show
    finally:
        if rows:
            put(f"{SAVE}\x1b[r\x1b[{rows};1H\x1b[2K{RESTORE}")


def stands_at_a_terminal() -> bool:
    """Whether stderr is a terminal that can keep a line at its foot."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb" and terminal_height() > 2


def terminal_height() -> int:
    return os.get_terminal_size(sys.stderr.fileno()).lines


class Memory:
    """The memory of the GPUs of this machine, as nvidia-smi says; nothing where there is none.

    A process that is asked every ten seconds: NVML in this one would need a package for one number.
    """

    def __init__(self) -> None:
        self.said = ""
        self._asked = -MEMORY_SECONDS
        self._there = shutil.which(ASK_MEMORY[0]) is not None

    async def look(self) -> None:
        now = time.monotonic()
        if not self._there or now - self._asked < MEMORY_SECONDS:
            return
        self._asked = now
        try:
            done = await asyncio.to_thread(
                subprocess.run, ASK_MEMORY, capture_output=True, text=True, timeout=5, check=True
            )
            self.said = memory_of(done.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            self._there = False


def memory_of(listed: str) -> str:
    """What nvidia-smi lists, in MiB a line, as one figure."""
    cards = [[int(number) for number in line.split(",")] for line in listed.splitlines() if line.strip()]
    used, total = (sum(card[place] for card in cards) / 1024 for place in (0, 1))
    return f" GPU {used:,.1f}/{total:,.1f} GiB" if cards else ""


def describe(tally: Tally, num_problems: int, unit: str = "problems") -> str:
    """One line: problems done, solved and given up, what is in flight, rates, shares and time left."""
    done = tally.solved + tally.given_up
    text = f"{done:,}/{num_problems:,} {unit}"
    if unit == "problems":
        text += f" ({tally.solved:,} solved, {tally.given_up:,} given up)"
    if tally.found or tally.adopted:
        text += f" {tally.found:,} found {tally.adopted:,} adopted"
    if not tally.first_launch:
        return text if done >= num_problems else text + " waiting for the engine"
    seconds = max(time.monotonic() - tally.first_launch, 1e-6)
    if tally.in_flight:
        text += f" {tally.in_flight:,} in flight"
    if tally.sampled:
        text += f" {rate(tally.sampled / seconds)} traces/s"
    tokens = tally.output_tokens + (tally.tokens_in_flight or 0)
    if tokens or tally.sampled:
        text += f" {rate(tokens / seconds, 0) if tokens else '?'} tok/s"
    if tally.correct:
        text += f" {tally.verified_tokens / tally.correct:,.0f} tok/kept"
    if tally.cut:
        text += f" {tally.cut / max(tally.sampled + tally.adopted, tally.cut):.1%} cut"
    if tally.failed:
        text += f" {tally.failed.total():,} failed"
    return text + time_left(tally, done, num_problems, seconds)


def rate(value: float, digits: int = 1) -> str:
    """A rate with digits where it is below one: an engine of a trace a minute does not stand still."""
    return f"{value:,.{digits}f}" if value >= 1 or not value else f"{value:.2g}"


def time_left(tally: Tally, done: int, num_problems: int, seconds: float) -> str:
    """By the tokens that are to come, of which those in flight have come already; by problems where tokens
    are not known."""
    bought, left = done - tally.done_before, num_problems - done
    tokens = tally.output_tokens + (tally.tokens_in_flight or 0)
    if left <= 0:
        return ""
    if bought > 0 and tally.output_tokens:
        # a long one among those in flight says more of what is to come than the first that are finished
        longest = (tally.tokens_in_flight or 0) / max(tally.in_flight, 1)
        each = max(tally.output_tokens / bought, longest)
        rest, said = left * each - (tally.tokens_in_flight or 0), "left"
    elif bought > 0:
        return f" {timedelta(seconds=round(seconds / bought * left))} left"
    elif tokens and tally.max_tokens:
        rest, said = left * tally.max_tokens - (tally.tokens_in_flight or 0), "left at most"
    else:
        return ""
    return f" {timedelta(seconds=round(max(rest, 0.0) * seconds / tokens))} {said}"
