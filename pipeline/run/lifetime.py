"""Nothing outlives the process that started it: its workers, its engine's processes, its temporary files.

A process whose code is ours asks for its own end with `die_with_parent`. A library's processes (vLLM's)
cannot be made to ask: a `Guard`, started before them, kills them all when its parent is gone, at whatever
moment that is.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
SCRATCH = ".tmp"
# a library's name of a socket: vLLM's are UUIDs
LONGEST_SOCKET_NAME = "s" * 45
MARK = "RETORT_GUARD"


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the one that started it is gone; `parent` is its id.

    The thread that starts a process counts as its parent: it must live as long. Where the system is not
    Linux nothing is asked for.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it could be watched
        os._exit(1)


class Guard:
    """A small process that outlives this one just long enough to kill what this one started.

    Its prey are the descendants that it saw, and the processes that hold the other end of its pipe, which
    forks do, or carry `mark` in the environment that they were executed with.
    """

    def __init__(self) -> None:
        self.mark = {MARK: secrets.token_hex(16)}
        script = Path(__file__).with_name("guard.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(os.getpid()), *self.mark.values()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C at the terminal is not for it
            env={"PATH": os.defpath},
        )

    def dismiss(self) -> None:
        """End it: all that it guarded has ended."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def temporary_files_in(directory: Path) -> Iterator[None]:
    """The temporary files of this process and its children go to a folder of `directory`, and go with it.

    What a killed process left there is removed first. Where no socket can be made in it (a path of more than
    60 characters, some network file systems) the system's own place stays, as libraries put sockets there.
    """
    scratch, kept = (directory / SCRATCH).absolute(), (tempfile.tempdir, os.environ.get("TMPDIR"))
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        if _takes_sockets(scratch):
            tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)
        yield
    finally:
        tempfile.tempdir = kept[0]
        os.environ.pop("TMPDIR", None)
        if kept[1] is not None:
            os.environ["TMPDIR"] = kept[1]
        shutil.rmtree(scratch, ignore_errors=True)


def _takes_sockets(scratch: Path) -> bool:
    probe = scratch / LONGEST_SOCKET_NAME
    try:
        scratch.mkdir()
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(probe))
        probe.unlink()
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        return False
    return True
