"""Processes of an engine: found while it lives, killed when it does not end by itself."""

import contextlib
from typing import Any

import psutil


def with_children(pid: int) -> list[Any]:
    """All processes below `pid`, then its own (psutil.Process); empty where it is gone."""
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []


def kill(processes: list[Any]) -> None:
    """Kill those that are still there; psutil knows a process from another that has got its number."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running():
                process.kill()
