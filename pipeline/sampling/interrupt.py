"""Ctrl-C and SIGTERM while a collection runs: stop in order the first time, at once the second time."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)


@contextlib.contextmanager
def interruptible(stop: Callable[[BaseException], None]) -> Iterator[None]:
    """Call `stop(KeyboardInterrupt())` on the first signal; a second one takes its usual course."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; whoever runs it there handles them
        return
    loop = asyncio.get_running_loop()

    def first(name: str) -> None:
        restore()
        log.warning("%s: launching nothing more; what is finished is kept", name)
        stop(KeyboardInterrupt())

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, first, number.name)
    try:
        yield
    finally:
        restore()
