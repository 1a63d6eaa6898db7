"""The processes that verify: one zygote that imports each verifier once, and workers that it forks.

Started by pipeline.verify.pool as `python -m pipeline.verify.worker FD`; not for use by hand. A fork of this
small single-threaded process costs milliseconds where a fresh interpreter costs a second, so a worker that
had to be killed is replaced at once. The zygote never sees a response; it spawns, kills and reaps when the
host asks, and kills everything when the host's end of the pipe closes.
"""

import json
import os
import resource
import signal
import socket
import sys
from dataclasses import asdict, replace
from typing import Any

from pipeline.run.lifetime import die_with_parent
from pipeline.verify.frames import frame_of, read_frame
from pipeline.verify.isolation import isolate
from pipeline.verify.outcome import MAX_EXTRACTED, Outcome, unverifiable
from pipeline.verify.table import PRELOADED, function_of


def limit_process(memory_mb: int) -> None:
    size = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_cpu(seconds: float) -> None:
    """Allow this process `seconds` more of CPU: what is left running if the host vanishes ends by itself."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def verify_one(task: dict[str, Any]) -> tuple[Outcome, bool]:
    """The outcome, and whether the worker is still fit for another task."""
    try:
        return function_of(task["verifier"])(task["response"], task["gold"], task["metadata"]), True
    except MemoryError:
        return unverifiable("memory"), False
    except RecursionError:
        return unverifiable("error", layer="recursion"), True


def serve_tasks(connection: socket.socket) -> None:
    fit = True
    while fit:
        try:
            task = read_frame(connection)
        except (EOFError, ConnectionError):
            return
        limit_cpu(task["deadline"])
        outcome, fit = verify_one(task)
        if outcome.extracted is not None:
            # a lone surrogate could not be written to a UTF-8 file later
            extracted = outcome.extracted[:MAX_EXTRACTED].encode(errors="replace").decode()
            outcome = replace(outcome, extracted=extracted)
        try:
            connection.sendall(frame_of({"fit": fit, "outcome": asdict(outcome)}))
        except ConnectionError:
            return


def fork_worker(control: socket.socket, descriptor: int, memory_mb: int) -> int:
    zygote = os.getpid()
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return pid
    status = 1
    try:
        die_with_parent(zygote)
        control.close()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        limit_process(memory_mb)
        serve_tasks(socket.socket(fileno=descriptor))
        status = 0
    finally:
        os._exit(status)  # never back into the zygote's loop, whatever happened


def serve_host(control: socket.socket, reachable: str) -> None:
    """Answer spawn and kill requests until the host closes its end. Killed workers are reaped only here,
    by their parent, so a process id can never have been given to somebody else."""
    pids: set[int] = set()
    for name in PRELOADED:
        function_of(name)
    control.sendall(frame_of({"reachable": reachable}))
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        if not message:
            break
        request = json.loads(message)
        if "spawn" in request:
            for name in request["verifiers"]:
                function_of(name)  # imported once, for all workers from now on
            pid = fork_worker(control, descriptors[0], request["spawn"])
            pids.add(pid)
            control.sendall(frame_of({"pid": pid}))
        else:
            pid = request["kill"]
            pids.discard(pid)
            os.kill(pid, signal.SIGKILL)
            control.sendall(frame_of({"exit": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's to handle; it closes the pipe
    control = socket.socket(fileno=int(sys.argv[1]))
    reachable = isolate()  # for itself and all workers, before a library is imported
    try:
        serve_host(control, reachable)
    except ConnectionError:
        sys.exit(0)


if __name__ == "__main__":
    main()
