"""Run a program that nobody trusts, in a sandbox that needs no daemon: bubblewrap, or util-linux.

What it does not protect from: a fault of the kernel itself (the program is an ordinary process of this
kernel, not a virtual machine); what the hardware leaks (timing, caches); the load that it makes until its
deadline (CPU, and memory: each process is held to `memory_mb` by the kernel, all of them together only by
a look at them every WATCH_SECONDS, so that up to `processes` times `memory_mb` can be held for that
moment; there are no cgroups here; and the kernel's own memory for what a program opens: some 100 MB for
`processes` times `open_files` sockets full of unread bytes, and a kilobyte for each file and directory of
/tmp: util-linux holds them to MAX_FILES, and bubblewrap's are counted at each look, which lets through what
is made between two, some 10,000); and reading: all of /usr and of this Python's own directory can be read,
so keep no secret there.

What it does: the program sees no network (a namespace of its own, and no sockets but Unix ones), a
read-only root of /usr and this Python, no home, no /etc but the loader's cache, no /proc, a private /tmp
of `file_mb`, its own process, IPC, host-name and cgroup namespaces, no capabilities and no way to new
ones, no environment but PATH, LANG and PYTHONHASHSEED, stdin, stdout and stderr as pipes, and limits on
CPU, time, memory, processes, file size, open files and output. As root it runs under a user id that nobody
has; else in a user namespace. All its processes end with the first one, at the deadline, and when this
process dies.

    python -m pipeline sandbox --check
"""

import contextlib
import ctypes
import json
import math
import os
import random
import selectors
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from pipeline.errors import VerifyError, in_one_line

PATH = "/usr/local/bin:/usr/bin:/bin"
ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}  # the order of sets is always the same
TOOLS_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
ETC = ("/etc/ld.so.cache", "/etc/alternatives")
LINKED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")  # links into /usr on most systems
READY = b"\x06"
START_SECONDS = 20.0  # a start takes 0.03 s; a loaded machine may need far more
WATCH_SECONDS = 0.05
MAX_FILES = 4096  # and directories of /tmp: each costs the kernel a kilobyte
CHUNK = 65_536
HEADER = struct.Struct("!Q")
LAUNCHER = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
INSTALL = (
    "install bubblewrap (apt-get install bubblewrap, dnf install bubblewrap), or util-linux with unshare, "
    "setpriv, mount and pivot_root, and allow namespaces: as root with CAP_SYS_ADMIN, else "
    "user.max_user_namespaces above 0 and, on Ubuntu, kernel.apparmor_restrict_unprivileged_userns 0 (in a "
    "container: --privileged, or --cap-add SYS_ADMIN with --security-opt seccomp=unconfined)"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program. `seconds` is time on the clock after its start, and of CPU for each of its processes;
    `file_mb` holds for a file and for /tmp as a whole; `output_bytes` for stdout and stderr together."""

    seconds: float = 10.0
    memory_mb: int = 1024
    processes: int = 16
    file_mb: int = 16
    open_files: int = 32
    output_bytes: int = 1_000_000

    def for_launcher(self) -> dict[str, int]:
        return {
            "CPU": math.ceil(self.seconds),
            "AS": self.memory_mb * 2**20,
            "NPROC": self.processes,
            "FSIZE": self.file_mb * 2**20,
            "NOFILE": self.open_files,
            "CORE": 0,
        }


class Stopped(Exception):
    """A program was killed for what it did: `cause` is timeout, memory or output."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class SandboxFault(VerifyError):
    """The sandbox did not come up, so the program never ran."""


@dataclass(frozen=True, slots=True)
class Ended:
    """`cause` is exit, or why the program was killed: timeout, memory, output. `status` as shells have it:
    128 plus the signal where a signal ended it."""

    cause: str
    status: int
    output: bytes
    errors: bytes


@dataclass(frozen=True, slots=True)
class Way:
    """One way into a sandbox: `command` gives what starts the launcher inside, under these limits."""

    name: str
    command: Callable[[Limits], list[str]]


class Program:
    """A program in a sandbox, which leaving the context kills. It begins as the launcher inside.py."""

    def __init__(
        self, files: dict[str, str], command: list[str], limits: Limits, through: Way | None = None
    ) -> None:
        """Without a `command`, main.py of `files` runs under this Python, with the standard library alone."""
        self.limits = limits
        self._stdin: IO[bytes]
        self._stdout: IO[bytes]
        self._stderr: IO[bytes]
        self._process = subprocess.Popen(
            (through or way()).command(limits),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._stdin, self._stdout, self._stderr = streams  # type: ignore[assignment]
        os.set_blocking(self._stdin.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._selector.register(self._stderr, selectors.EVENT_READ)
        self.output, self.errors = bytearray(), bytearray()
        self._received = 0
        self._first_inside: list[int] = []
        self._end = time.monotonic() + START_SECONDS
        self._watch = 0.0
        body = json.dumps({"limits": limits.for_launcher(), "files": files, "command": command}).encode()
        self._first = HEADER.pack(len(body)) + body

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._selector.close()
        for stream in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def start(self) -> None:
        """Returns when the program begins; its time counts from here. SandboxFault where it does not."""
        try:
            self.talk(self._first, lambda: len(self.output) > 0)
        except Stopped:
            self.errors += b"no answer in time"
        if self.output[:1] != READY:
            said = bytes(self.errors[-500:]).decode(errors="replace").strip() or "nothing was said"
            raise SandboxFault(f"the sandbox did not start ({said}). See: python -m pipeline sandbox --check")
        del self.output[:1]
        self._first_inside = children_of(self._process.pid)
        self._received = 0
        self._end = time.monotonic() + self.limits.seconds

    def talk(self, data: bytes, until: Callable[[], bool], close: bool = False) -> None:
        """Write `data` to its stdin while collecting what it says, until `until` or the end of its output.
        `close` ends its stdin after `data`. Raises Stopped."""
        rest = memoryview(data)
        if rest:
            self._selector.register(self._stdin, selectors.EVENT_WRITE)
        elif close:
            self._stdin.close()
        try:
            while (rest or not until()) and self._open():
                for key, _ in self._ready():
                    if key.fileobj is not self._stdin:
                        self._take(key.fileobj, key.fd)
                        continue
                    try:
                        rest = rest[os.write(key.fd, rest[:CHUNK]) :]
                    except BrokenPipeError:  # it reads no more: what it says, or its end, tells the rest
                        rest = rest[:0]
                    if not rest:
                        self._selector.unregister(self._stdin)
                        if close:
                            self._stdin.close()
        finally:
            if not self._stdin.closed and self._stdin.fileno() in self._selector.get_map():
                self._selector.unregister(self._stdin)

    def _open(self) -> bool:
        return self._stdout.fileno() in self._selector.get_map()

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        """What can be read or written. Raises Stopped."""
        while True:
            if ready := self._selector.select(self._check()):
                return ready

    def _check(self) -> float:
        """The seconds until the next look. Raises Stopped at the deadline, and for too much memory."""
        now = time.monotonic()
        if now >= self._end:
            raise Stopped("timeout")
        if now >= self._watch:
            self._watch = now + WATCH_SECONDS
            too_many = any(num_files(pid) > MAX_FILES for pid in self._first_inside)
            if too_many or resident_mb(self._process.pid) > self.limits.memory_mb:
                raise Stopped("memory")
        return min(self._end, self._watch) - now

    def _take(self, stream: object, descriptor: int) -> None:
        data = os.read(descriptor, CHUNK)
        if not data:
            self._selector.unregister(descriptor)
            return
        (self.output if stream is self._stdout else self.errors).extend(data)
        self._received += len(data)
        if self._received > self.limits.output_bytes:
            raise Stopped("output")

    def send(self, data: bytes) -> None:
        """Send a frame. Raises Stopped."""
        self.talk(HEADER.pack(len(data)) + data, lambda: True)

    def answer(self, data: bytes) -> bytes:
        """Send a frame and receive one: 8 bytes of length and a body each. EOFError where the program ended
        instead. Raises Stopped; a frame longer than all that a program may say is `output`, too."""

        self.send(data)

        def complete() -> bool:
            if len(self.output) < HEADER.size:
                return False
            size = HEADER.unpack_from(self.output)[0]
            if size > self.limits.output_bytes:
                raise Stopped("output")
            return len(self.output) >= HEADER.size + size

        self.talk(b"", complete)
        if not complete():
            raise EOFError("the program ended")
        end = HEADER.size + HEADER.unpack_from(self.output)[0]
        body = bytes(self.output[HEADER.size : end])
        del self.output[:end]
        self._received = len(self.output)  # the bound is on one frame, not on a conversation
        return body

    def allow(self, seconds: float) -> None:
        """More time, as for what it was kept waiting."""
        self._end += seconds

    def wait(self) -> int:
        """The exit status of a program whose output has ended. Raises Stopped."""
        while (status := self._process.poll()) is None:
            time.sleep(min(self._check(), 0.001))
        return status if status >= 0 else 128 - status

    def kill(self) -> None:
        """End all of its processes, and wait until they are gone: they hold its stdout. What was process 1
        inside is an orphan then; where this process adopts orphans it leaves no zombie."""
        inside = self._first_inside or children_of(self._process.pid)
        self._process.kill()
        self._process.wait()
        end = time.monotonic() + START_SECONDS
        while self._open() and (left := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                if not os.read(key.fd, CHUNK):
                    self._selector.unregister(key.fd)
        for pid in inside:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


@cache
def adopt_orphans() -> None:
    """Become the parent of what is left of a sandbox, for the life of this process: a worker calls it, which
    runs nothing else. Else it is process 1, which in many containers waits for nobody: a zombie for each
    program, until no process can be started."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def run_program(
    files: dict[str, str],
    given: bytes,
    limits: Limits,
    command: list[str] | None = None,
    through: Way | None = None,
) -> Ended:
    """Run to its end with `given` as its stdin. Raises VerifyError where no sandbox can be had."""
    with Program(files, command or [], limits, through) as program:
        program.start()
        cause, status = "exit", 0
        try:
            program.talk(given, lambda: False, close=True)
            status = program.wait()
        except Stopped as stopped:
            cause = stopped.cause
        return Ended(cause, status, bytes(program.output), bytes(program.errors))


def children_of(pid: int) -> list[int]:
    """Of all its threads; none where it has ended."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def resident_mb(pid: int) -> float:
    """What a process and all its descendants hold in memory; pages that they share count for each."""
    pages, left = 0, [pid]
    while left:
        one = left.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
        left += children_of(one)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def num_files(pid: int) -> int:
    """Of the private /tmp of a process inside; 0 where it has ended, or may not be looked at."""
    with contextlib.suppress(OSError):
        place = os.statvfs(f"/proc/{pid}/root/tmp")
        return place.f_files - place.f_ffree
    return 0


def interpreter() -> tuple[str, str]:
    """This Python outside any virtual environment, and the directory that holds it with its library."""
    return os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)


def bound() -> list[str]:
    """What of the host is seen inside, read-only."""
    places = ["/usr", *(place for place in ETC if os.path.exists(place))]
    places += [place for place in LINKED if os.path.isdir(place) and not os.path.islink(place)]
    executable, prefix = interpreter()
    for place in (prefix, os.path.dirname(executable)):
        if not any(os.path.commonpath([place, other]) == other for other in places):
            places.append(place)
    return places


def links() -> list[tuple[str, str]]:
    return [(os.readlink(place), place) for place in LINKED if os.path.islink(place)]


def python() -> list[str]:
    """The launcher: no user's and no site's packages, no files of compiled code."""
    return [interpreter()[0], "-s", "-S", "-B", "-c", LAUNCHER]


def spare_ids() -> tuple[int, int] | None:
    """First and number of the user ids from which root here may take one that nobody has; None where this
    process cannot make namespaces or change its id, so that it needs a user namespace."""
    with open("/proc/self/status", encoding="ascii") as file:
        held = int(next(line for line in file if line.startswith("CapEff:")).split()[1], 16)
    needed = (1 << 6) | (1 << 7) | (1 << 8) | (1 << 21)  # CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_ADMIN
    with open("/proc/self/uid_map", encoding="ascii") as file:
        first, _, count = max((tuple(map(int, line.split())) for line in file), key=lambda row: row[2])
    if os.geteuid() != 0 or held & needed != needed or count < 65_536:
        return None
    return first + min(count // 2, 2**30), min(count // 4, 2**24)


def without_privileges(ids: tuple[int, int] | None, inside_uid: int) -> list[str]:
    """setpriv for the last step: another user where there are any to choose from, no capability, and the
    death signal, which a change of user clears."""
    one = ids and str(ids[0] + random.SystemRandom().randrange(ids[1]))
    user = [f"--reuid={one}", f"--regid={one}", "--clear-groups"] if one else []
    dropped = ["--bounding-set=-all", "--inh-caps=-all"] if one or inside_uid == 0 else []
    return ["setpriv", *user, *dropped, "--no-new-privs", "--pdeathsig=KILL", "--"]


def bubblewrap(limits: Limits) -> list[str]:
    ids = spare_ids()
    # of root, a namespace of users would map root alone, whose processes the kernel does not count
    user = [] if ids else ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    parents = sorted({os.path.dirname(place) for place in (*bound(), *DEVICES)} - {"/"})
    see = [
        part for place in parents for part in ("--perms", "0755", "--dir", place)
    ]  # it would make them 0700
    see += [part for place in bound() for part in ("--ro-bind", place, place)]
    see += [part for target, place in links() for part in ("--symlink", target, place)]
    see += [part for device in DEVICES for part in ("--dev-bind", device, device)]
    return [
        "bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        *user, "--die-with-parent", "--new-session", *see,
        "--perms", "1777", "--size", str(limits.file_mb * 2**20), "--tmpfs", "/tmp", "--chdir", "/tmp",
        "--remount-ro", "/", "--", *without_privileges(ids, 65534), *python(),
    ]  # fmt: skip


MOUNT = """
PATH={tools}
new=/sys  # a mount point that is everywhere, and nothing here needs what it hides
mount -n -t tmpfs -o size=1m,nr_inodes=1k,mode=755,nosuid none $new
cd $new
mkdir -p old tmp dev {directories}
ln -s old/proc {links} .  # umount looks into /proc once more; afterwards it leads nowhere
touch {files}
{renamed}
{mounts}
mount -n -t tmpfs -o size={file_mb}m,nr_inodes={max_files},mode=1777,nosuid,nodev none tmp
mount -n -o remount,bind,ro,nosuid $new
pivot_root . old
cd /tmp
umount -n -l /old
PATH={path}
exec "$@"
"""


def quoted(place: str) -> str:
    """Of a path, as the script writes it: below the new root."""
    return shlex.quote(place.lstrip("/"))


def namespaces(limits: Limits) -> list[str]:
    """util-linux: new namespaces, a root of our own put together by mount and entered by pivot_root."""
    ids = spare_ids()
    files = [place for place in (*bound(), *DEVICES) if not os.path.isdir(place)]
    directories = {place for place in bound() if os.path.isdir(place)} | {os.path.dirname(f) for f in files}
    read_only = [f"mount -n -o bind,ro,nosuid,nodev /{quoted(place)} {quoted(place)}" for place in bound()]
    script = MOUNT.format(
        tools=TOOLS_PATH,
        directories=" ".join(map(quoted, sorted(directories))),
        files=" ".join(map(quoted, files)),
        links=" ".join(quoted(target) for target, place in links() if target.endswith(place)),
        renamed="\n".join(
            f"ln -s {quoted(target)} {quoted(place)}"
            for target, place in links()
            if not target.endswith(place)
        ),
        mounts="\n".join([*read_only, *(f"mount -n --bind {d} {quoted(d)}" for d in DEVICES)]),
        file_mb=limits.file_mb,
        max_files=MAX_FILES,
        path=PATH,
    )
    return [
        *([] if ids else ["unshare", "--user", "--map-root-user"]),
        "setpriv", "--pdeathsig=KILL", "--",
        "unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child",
        "sh", "-euc", script, "sh", *without_privileges(ids, 0), *python(),
    ]  # fmt: skip


WAYS = (Way("bubblewrap", bubblewrap), Way("util-linux", namespaces))

PROBE = """
import json, os, socket

def fails(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        return True
    return False

def forks():
    for count in range(32):
        try:
            if os.fork() == 0:
                os.read(waiting, 1)
                os._exit(0)
        except OSError:
            return count
    return 32

waiting, ending = os.pipe()
known = {"PATH", "LANG", "PYTHONHASHSEED", "LC_CTYPE", "PWD", "OLDPWD"}  # a shell sets the last two
print(json.dumps({
    "no capabilities": fails(os.setgroups, [0]) and fails(socket.sethostname, "x"),
    "no network": all(fails(socket.socket, family) for family in (socket.AF_INET, socket.AF_INET6, 40)),
    "private /tmp": os.listdir("/tmp") == ["main.py"] and not fails(open, "/tmp/x", "w"),
    "read-only root": fails(open, "/x", "w") and fails(open, "/usr/x", "w"),
    "no home, no /proc": fails(open, "/etc/passwd") and fails(os.listdir, "/proc"),
    "own processes": os.getpid() < 100,
    "no environment": set(os.environ) <= known,
    "bounded processes": forks() < 8,
}), flush=True)
os._exit(0)
"""


def fault_of(one: Way) -> str:
    """Why a way into a sandbox does not hold here; "" where it does."""
    tool = one.command(Limits())[0]
    if shutil.which(tool, path=PATH) is None:
        return f"{tool} is not installed"
    try:
        with Program({"main.py": PROBE}, [], Limits(seconds=10, processes=8), one) as program:
            program.start()
            program.talk(b"", lambda: b"\n" in program.output, close=True)
            found = json.loads(bytes(program.output) or b"{}")
    except (OSError, Stopped, SandboxFault, ValueError) as error:
        return in_one_line(error)
    if not found:
        return bytes(program.errors[-200:]).decode(errors="replace").strip() or "the program ended at once"
    missing = [name for name, held in found.items() if not held]
    return f"it does not hold: {', '.join(missing)}" if missing else ""


@cache
def way() -> Way:
    """The first way that holds on this machine. VerifyError, with what to install, where none does."""
    faults = {}
    for one in WAYS:
        faults[one.name] = fault_of(one)
        if not faults[one.name]:
            return one
    said = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
    raise VerifyError(f"no sandbox for programs on this machine ({said}): {INSTALL}. No program was run")


def report() -> str:
    """What this machine offers, one line a fact. VerifyError where nothing does."""
    faults = {one.name: fault_of(one) for one in WAYS}
    chosen = way()
    limits = Limits()
    user = "a user id that nobody has" if spare_ids() else "a user namespace"
    lines = [f"{name}: {fault or 'works'}" for name, fault in faults.items()]
    lines += [
        f"used: {chosen.name}, under {user}",
        f"limits of a program: {limits.seconds:g} s, {limits.memory_mb} MB, {limits.processes} processes, "
        f"{limits.file_mb} MB of files, {limits.output_bytes:,} bytes of output",
        f"seen inside, read-only: {', '.join(bound())}",
    ]
    return "\n".join(lines)
