"""The process behind lifetime.Guard: waits until its parent is gone, then kills what the parent left behind.

Started as `python -I -S guard.py PARENT TOKEN`, with the reading end of the parent's pipe as stdin. It needs
nothing but the standard library and takes 10 MB.
"""

import contextlib
import os
import signal
import sys
import time

POLL_SECONDS = 0.3
QUIET_ROUNDS = 3  # a process that forks while it is looked for is found in the next round


def main() -> None:
    parent, token = int(sys.argv[1]), sys.argv[2].encode()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # the parent's descendants: one that gives itself a title loses its token by that
    known: dict[int, str] = {}
    while os.getppid() == parent:
        known = living(known) | below(parent)
        time.sleep(POLL_SECONDS)
    known.pop(os.getpid(), None)
    pipe, quiet = os.readlink("/proc/self/fd/0"), 0
    while quiet < QUIET_ROUNDS:
        left = set(known := living(known))
        for pid in left:
            known |= below(pid)
        found = left | {pid for pid in others() if belongs(pid, pipe, token)}
        quiet = 0 if found else quiet + 1
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def living(known: dict[int, str]) -> dict[int, str]:
    return {pid: began for pid, began in known.items() if (held := origin(pid)) and held[1] == began}


def below(pid: int) -> dict[int, str]:
    """All descendants of a process, with when each was started (/proc has no list of children everywhere)."""
    children: dict[int, list[tuple[int, str]]] = {}
    for other in others():
        if (found := origin(other)) is not None:
            children.setdefault(found[0], []).append((other, found[1]))
    held, waiting = {}, [pid]
    while waiting:
        for child, started in children.get(waiting.pop(), ()):
            held[child] = started
            waiting.append(child)
    return held


def origin(pid: int) -> tuple[int, str] | None:
    """The parent of a process, and its start in ticks, in which two processes of one number differ.

    None for a zombie, which only its parent can clear away.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else (int(fields[1]), fields[19])


def others() -> list[int]:
    own = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]


def belongs(pid: int, pipe: str, token: bytes) -> bool:
    """Whether a process was executed with the token, or holds the pipe that only the parent's forks have."""
    folder = f"/proc/{pid}"
    with contextlib.suppress(OSError):
        if origin(pid) is None:
            return False
        with open(f"{folder}/environ", "rb") as file:
            if token in file.read():
                return True
        return any(pipe == link(f"{folder}/fd/{fd}") for fd in os.listdir(f"{folder}/fd"))
    return False


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


if __name__ == "__main__":
    main()
