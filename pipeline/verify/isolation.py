"""What a process that reads model text cannot reach: no network, and no file that it could write.

`isolate` puts the calling process, and all that it forks, into namespaces of its own: a network without a
device, and mounts that are read-only but for an empty scratch directory. It wants Linux 5.12 or newer, and a
system that lets its users make namespaces (containers often do not); where that is missing the process goes
on, and says what stayed open. Call it before any library has started a thread.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
SCRATCH = "/dev/shm"  # an empty one of 16 MB takes its place
# what Python, the loader and the libraries of the verifiers read
KEPT = {"LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONHASHSEED", "PYTHONHOME", "TZ"}
KEPT |= {"MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}


class Attributes(ctypes.Structure):
    """struct mount_attr"""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def clean_environment(environment: Mapping[str, str], root: Path) -> dict[str, str]:
    """What verifier processes are given: nothing that they do not need, and no key."""
    path = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH")]))
    return {name: value for name, value in environment.items() if name in KEPT} | {"PYTHONPATH": path}


def isolate() -> str:
    """What of network and files this process can still reach, with the reason; "" where nothing is left."""
    if sys.platform != "linux":
        return "network and files: namespaces are Linux's"
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        enter_namespaces(libc)
    except OSError as error:
        return f"network and files: this system makes no namespaces for this user ({error.strerror})"
    try:
        check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
        set_attributes(libc, b"/", Attributes(set=MOUNT_ATTR_RDONLY), AT_RECURSIVE)
        set_attributes(
            libc, b"/proc", Attributes(clear=MOUNT_ATTR_RDONLY), 0
        )  # a nested sandbox writes there
    except OSError as error:
        return f"files: they cannot be made read-only ({error.strerror})"
    with contextlib.suppress(OSError):
        check(libc.mount(b"tmpfs", SCRATCH.encode(), b"tmpfs", 0, b"size=16m"))
        os.environ["HOME"] = os.environ["TMPDIR"] = SCRATCH
    return ""


def enter_namespaces(libc: ctypes.CDLL) -> None:
    """As root is, else as the same user in a user namespace. OSError where neither is allowed."""
    wanted = CLONE_NEWNET | CLONE_NEWNS
    if libc.unshare(wanted) == 0:
        return
    user, group = os.geteuid(), os.getegid()
    check(libc.unshare(wanted | CLONE_NEWUSER))
    with contextlib.suppress(OSError):  # without a map it is nobody's process, and no less isolated
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def set_attributes(libc: ctypes.CDLL, path: bytes, attributes: Attributes, flags: int) -> None:
    check(
        libc.syscall(
            MOUNT_SETATTR, AT_FDCWD, path, flags, ctypes.byref(attributes), ctypes.sizeof(attributes)
        )
    )


def check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
