"""Live progress of a collection: a line that moves on a terminal, a line every 30 seconds in a log.

1,204/2,000 problems (1,150 solved, 54 given up) 61.3 traces/s 8,790 tok/s 312 tok/kept 0:00:13 left
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from datetime import timedelta

from pipeline.sampling.loop import Tally

log = logging.getLogger(__name__)

LOG_SECONDS = 30.0
SCREEN_SECONDS = 0.5
SAVE_SECONDS = 1.0  # what a kill may take from the figures that are carried over to the next process


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
        screen = sys.stderr.isatty()
        shown = saved = time.monotonic()
        try:
            while True:
                await asyncio.sleep(SCREEN_SECONDS)
                now = time.monotonic()
                if self._save is not None and now - saved >= SAVE_SECONDS:
                    self._save(tally)
                    saved = now
                if screen or now - shown >= LOG_SECONDS:
                    self._show(tally, screen)
                    shown = now
        finally:
            if self._save is not None:
                self._save(tally)
            if screen:
                self._show(tally, screen)
                sys.stderr.write("\n")
            else:
                log.info("%s", describe(tally, self._num_problems, self._unit))

    def _show(self, tally: Tally, screen: bool) -> None:
        text = describe(tally, self._num_problems, self._unit)
        if screen:
            sys.stderr.write("\r\x1b[K" + text)
            sys.stderr.flush()
        else:
            log.info("%s", text)


def describe(tally: Tally, num_problems: int, unit: str = "problems") -> str:
    """One line: problems done, solved and given up, rates, tokens per kept trace and time left."""
    seconds = max(time.monotonic() - tally.first_launch, 1e-6) if tally.first_launch else 0.0
    done = tally.solved + tally.given_up
    text = f"{done:,}/{num_problems:,} {unit}"
    if unit == "problems":
        text += f" ({tally.solved:,} solved, {tally.given_up:,} given up)"
    if tally.found or tally.adopted:
        text += f" {tally.found:,} found {tally.adopted:,} adopted"
    if not tally.sampled:
        return text + " waiting for the engine" if not tally.first_launch else text
    rate, tokens = tally.sampled / seconds, tally.output_tokens / seconds
    text += f" {rate:,.1f} traces/s {tokens:,.0f} tok/s"
    if tally.correct:
        text += f" {tally.verified_tokens / tally.correct:,.0f} tok/kept"
    if tally.failed:
        text += f" {sum(tally.failed.values()):,} failed"
    bought = done - tally.done_before
    if bought > 0 and done < num_problems:
        left = timedelta(seconds=round(seconds / bought * (num_problems - done)))
        text += f" {left} left"
    return text
