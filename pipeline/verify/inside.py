"""What runs first inside a sandbox: it takes the limits, then becomes the program. Imports nothing of ours.

Its source is given to Python as `-c`, as pipeline/verify/sandbox.py starts it. Reads one frame from stdin
(8 bytes of length, then JSON {limits, files, command}), writes the files to the working directory, limits
this process, forbids system calls that no program of a test needs, writes READY to stdout and runs the
command; an empty command runs main.py in this interpreter. The rest of stdin is the program's own.
"""

import builtins
import ctypes
import json
import os
import resource
import struct
import sys
import types

READY = b"\x06"
KILLED = 128  # plus the signal: the exit status of what a signal ended, as shells have it

NUMBERS = {  # of system calls, as (x86_64, aarch64)
    # ways into other namespaces, and to other mounts than those that are there
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "chroot": (161, 51),
    "pivot_root": (155, 41), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    # other processes' memory and files
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    # memory that no limit of a process counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190),
    # kernel interfaces with a history
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
}  # fmt: skip
CLONE, CLONE3, SOCKET = (56, 220), (435, 435), (41, 198)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
NEW_NAMESPACES = 0x7E020000  # the CLONE_NEW* flags
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


def read_exactly(size: int) -> bytes:
    """From stdin, and not a byte more: what follows is the program's input."""
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            sys.exit("the sandbox was given no program")
        data += part
    return data


def take_limits(limits: dict[str, int]) -> None:
    for name in ("CPU", "AS", "NPROC", "FSIZE", "NOFILE", "CORE"):
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        wanted = limits[name] if hard == resource.RLIM_INFINITY else min(limits[name], hard)
        spare = 1 if name == "CPU" else 0  # SIGXCPU at the limit, SIGKILL a second later
        resource.setrlimit(kind, (wanted, wanted + spare if hard == resource.RLIM_INFINITY else wanted))


def instruction(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def calls_filter(machine: str) -> bytes:
    """A seccomp program (man 2 seccomp): sockets of one machine only, no new namespaces, none of NUMBERS."""
    column, architecture = MACHINES[machine]
    load, equal, above, mask, give = 0x20, 0x15, 0x35, 0x45, 0x06
    number, kind, argument = 0, 4, 16  # offsets in struct seccomp_data
    steps = [
        instruction(load, 0, 0, kind),
        instruction(equal, 1, 0, architecture),
        instruction(give, 0, 0, KILL),
        instruction(load, 0, 0, number),
        instruction(above, 0, 1, 0x40000000),  # the x32 calls of x86_64
        instruction(give, 0, 0, EPERM),
        instruction(equal, 0, 1, CLONE3[column]),  # its flags lie in memory; libc then calls clone
        instruction(give, 0, 0, ENOSYS),
    ]
    for pair in NUMBERS.values():
        steps += [instruction(equal, 0, 1, pair[column]), instruction(give, 0, 0, EPERM)]
    steps += [
        instruction(equal, 0, 4, CLONE[column]),
        instruction(load, 0, 0, argument),
        instruction(mask, 0, 1, NEW_NAMESPACES),
        instruction(give, 0, 0, EPERM),
        instruction(give, 0, 0, ALLOW),
        instruction(equal, 0, 3, SOCKET[column]),
        instruction(load, 0, 0, argument),
        instruction(equal, 1, 0, 1),  # AF_UNIX
        instruction(give, 0, 0, EPERM),
        instruction(give, 0, 0, ALLOW),
    ]
    return b"".join(steps)


def forbid_calls() -> None:
    """No privileges can be gained from here on, and the filter holds for all that this process starts."""
    program = calls_filter(os.uname().machine)
    held = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.byref(Program(len(program) // 8, ctypes.cast(held, ctypes.c_void_p)))
    no_new_privileges, seccomp, filtered = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(seccomp, filtered, address, 0, 0):
        sys.exit(f"the kernel takes no filter of system calls: {os.strerror(ctypes.get_errno())}")


def be_first_process() -> None:
    """As process 1 of its namespace, which limits and signals do not end: wait for a child that they do end.
    When this process ends, the kernel ends all others of the namespace."""
    child = os.fork()
    if child == 0:
        return
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else KILLED - code)


def run_file(path: str) -> None:
    """As `python FILE` does, in this interpreter."""
    import _sitebuiltins

    for name in ("exit", "quit"):  # the module `site`, which is left out for speed, defines them
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))
    main = types.ModuleType("__main__")
    main.__file__ = path
    sys.modules["__main__"] = main
    sys.argv = [path]
    with open(path, encoding="utf-8") as file:
        source = file.read()
    exec(compile(source, path, "exec"), main.__dict__)


def start() -> None:
    if os.getpid() == 1:
        be_first_process()
    (size,) = struct.unpack("!Q", read_exactly(8))
    asked = json.loads(read_exactly(size))
    for name, text in asked["files"].items():
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    take_limits(asked["limits"])
    forbid_calls()
    os.write(1, READY)
    if asked["command"]:
        os.execvp(asked["command"][0], asked["command"])
    run_file("main.py")


if __name__ == "__main__":
    start()
