"""The processes that verify: one zygote that imports each verifier once, and workers that it forks.

Started by pipeline.verify.pool as `python -m pipeline.verify.worker FD`; not for use by hand. A fork of this
small single-threaded process costs milliseconds where a fresh interpreter costs a second, so a worker that
had to be killed is replaced at once. The zygote never sees a response; it spawns, kills and reaps on the
host's word, and kills everything when the host's end of the pipe closes.
"""

import json
import os
import resource
import signal
import socket
import sys
from typing import Any

from pipeline.verify.frames import frame_of, read_frame
from pipeline.verify.outcome import MAX_EXTRACTED, Outcome, unverifiable
from pipeline.verify.several import Verify
from pipeline.verify.table import COMMON, load_verifiers

Verifiers = dict[str, Verify]


def limit_process(memory_mb: int) -> None:
    size = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_cpu(seconds: float) -> None:
    """Allow this process `seconds` more of CPU: what is left running if the host vanishes ends by itself."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def verify_one(verifiers: Verifiers, task: dict[str, Any]) -> tuple[Outcome, bool]:
    """The outcome, and whether the worker is still fit for another task."""
    try:
        return verifiers[task["verifier"]](task["response"], task["gold"], task["metadata"]), True
    except MemoryError:
        return unverifiable("memory"), False
    except RecursionError:
        return unverifiable("error", layer="recursion"), True


def serve_tasks(connection: socket.socket, verifiers: Verifiers) -> None:
    fit = True
    while fit:
        try:
            task = read_frame(connection)
        except (EOFError, ConnectionError):
            return
        limit_cpu(task["deadline"])
        outcome, fit = verify_one(verifiers, task)
        extracted = outcome.extracted
        if extracted is not None:
            # a lone surrogate could not be written to a UTF-8 file later
            extracted = extracted[:MAX_EXTRACTED].encode(errors="replace").decode()
        answer = {
            "status": outcome.status,
            "reason": outcome.reason,
            "extracted": extracted,
            "layer": outcome.layer,
            "fit": fit,
        }
        try:
            connection.sendall(frame_of(answer))
        except ConnectionError:
            return


def fork_worker(control: socket.socket, descriptor: int, memory_mb: int, verifiers: Verifiers) -> int:
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return pid
    status = 1
    try:
        control.close()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        limit_process(memory_mb)
        serve_tasks(socket.socket(fileno=descriptor), verifiers)
        status = 0
    finally:
        os._exit(status)  # never back into the zygote's loop, whatever happened


def serve_host(control: socket.socket) -> None:
    """Answer spawn and kill requests until the host closes its end. Killed workers are reaped only here,
    by their parent, so a process id can never have been given to somebody else."""
    pids: set[int] = set()
    loaded = {COMMON: load_verifiers(COMMON)}
    control.sendall(frame_of({"ready": True}))
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        if not message:
            break
        request = json.loads(message)
        if "spawn" in request:
            names = frozenset(request["verifiers"])
            if names not in loaded:
                loaded[names] = load_verifiers(names)
            pid = fork_worker(control, descriptors[0], request["spawn"], loaded[names])
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
    try:
        serve_host(control)
    except (ConnectionError, BrokenPipeError):
        sys.exit(0)


if __name__ == "__main__":
    main()
