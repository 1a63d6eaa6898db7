"""What tests with a server in a process of its own need: to start it, what it was asked, a port, to wait for it."""

import json
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def served_by(module: str, *arguments: object) -> Iterator[str]:
    """The URL of a module of tests/ that serves on loopback, and prints its port first."""
    command = [sys.executable, "-m", f"tests.{module}", *map(str, arguments)]
    root = Path(__file__).resolve().parent.parent
    server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{json.loads(server.stdout.readline())['port']}/v1"
    finally:
        server.kill()
        server.wait()


def scripted_server(
    delay_seconds: float, behaviour: str = "good", seconds: float = 3600
) -> AbstractContextManager[str]:
    """The URL of a scripted teacher, which ends by itself after `seconds`."""
    flags = ("--delay", delay_seconds, "--behaviour", behaviour, "--seconds", seconds)
    return served_by("scripted_teacher", *flags)


def seen_by(url: str) -> Any:
    """What a scripted server was asked so far."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/seen", timeout=10) as response:
        return json.load(response)


def num_asked(url: str) -> int:
    """How often a scripted teacher was asked for a response."""
    return sum(seen_by(url).values())


def free_port(in_a_row: int = 1) -> int:
    """The first of ports on which nothing listens, of those that the system gives to nobody who names none:
    what listens there comes up seconds later, and connections and engines take ports meanwhile."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = range(10_000, 65_536 - in_a_row)
    asked_for = [port for port in ports if not low - in_a_row < port <= high] or ports
    while True:
        first = random.SystemRandom().choice(asked_for)
        with ExitStack() as probes:
            try:
                for port in range(first, first + in_a_row):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return first


def wait_until_served(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 300
    while not answers(port):
        assert server.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.5)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
