"""The sandbox by itself, through each way into it that this machine has: limits, isolation, no trace left."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks import breach, breaches

from pipeline.errors import VerifyError
from pipeline.verify import sandbox
from pipeline.verify.sandbox import (
    WAYS,
    Ended,
    Limits,
    Program,
    SandboxFault,
    Stopped,
    Way,
    children_of,
    run_program,
)
from tests.conftest import ROOT, is_running

Run = Callable[..., subprocess.CompletedProcess[str]]
IS_ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True, scope="module")
def _needs_a_sandbox() -> None:
    try:
        sandbox.way()
    except VerifyError as error:
        pytest.skip(str(error))


@pytest.fixture(
    params=[WAYS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in WAYS[1:])],
    ids=lambda one: one.name,
)
def through(request: pytest.FixtureRequest) -> Way:
    """Each way that this machine has; where it could have one, a fault of it is a failure and no skip."""
    fault = sandbox.fault_of(request.param)
    if fault.endswith("is not installed") or (fault and sandbox.spare_ids() is None):
        pytest.skip(fault)
    assert fault == ""
    return request.param


def run(source: str, through: Way, given: bytes = b"", **limits: float) -> Ended:
    held = Limits(**limits)  # type: ignore[arg-type]
    before = set(children_of(os.getpid()))
    start = time.monotonic()
    done = run_program({"main.py": source}, given, held, through=through)
    assert time.monotonic() - start < held.seconds + sandbox.START_SECONDS
    assert set(children_of(os.getpid())) <= before  # all that was left of it is gone, and no zombie of it
    return done


def test_input_output_and_status(through: Way) -> None:
    source = (
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))\nprint('no', file=sys.stderr)\nexit(7)"
    )
    done = run(source, through, b"1 2 3\n" * 50_000)
    assert (done.cause, done.status, done.output, done.errors) == ("exit", 7, b"300000\n", b"no\n")


def test_a_program_is_main_and_a_file(through: Way) -> None:
    source = "import sys, inspect\nif __name__ == '__main__':\n    def f(): return 1\n    print(inspect.getsource(f).strip(), sys.argv)"
    assert run(source, through).output == b"def f(): return 1 ['main.py']\n"


@pytest.mark.parametrize(
    ("source", "limits", "cause", "status"),
    [
        ("while True: pass", {"seconds": 0.5}, "timeout", 0),
        ("import time; time.sleep(100)", {"seconds": 0.5}, "timeout", 0),
        ("import os\nif os.fork(): os._exit(0)\nwhile True: pass", {"seconds": 5}, "exit", 0),
        ("import os\nos.fork()\nos.fork()\nx = b'x' * (120 * 2**20)\nimport time\ntime.sleep(9)", {"memory_mb": 256}, "memory", 0),
        ("import os, time\nos.closerange(0, 3)\nos.fork()\nos.fork()\nx = b'x' * (120 * 2**20)\ntime.sleep(9)", {"memory_mb": 256}, "memory", 0),
        ("x = bytearray(2**30)", {"memory_mb": 256}, "exit", 1),
        ("print('x' * 10**6)", {"output_bytes": 10_000}, "output", 0),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", {"output_bytes": 10_000}, "output", 0),
        ("open('big', 'wb').write(b'x' * 2**21)", {"file_mb": 1}, "exit", 1),
        ("import os\nos.kill(os.getpid(), 11)", {}, "exit", 128 + 11),
        ("import ctypes\nctypes.string_at(0)", {}, "exit", 128 + 11),
        ("import time\nfiles = [open('/dev/null') for _ in range(200)]", {}, "exit", 1),
        pytest.param("import signal\nsignal.signal(24, signal.SIG_IGN)\nwhile True: pass", {"seconds": 1.0}, "timeout", 0, marks=pytest.mark.slow),
    ],
    ids=["busy", "asleep", "child", "memory of all", "memory of all, without output", "memory", "output", "errors", "file", "signal", "segfault", "open files", "deaf"],
)  # fmt: skip
def test_limits(through: Way, source: str, limits: dict[str, float], cause: str, status: int) -> None:
    done = run(source, through, **limits)
    assert (done.cause, done.status) == (cause, status), done.errors[-300:]


@pytest.mark.slow
def test_cpu_time_of_a_program_that_forks_is_bounded_for_each(through: Way) -> None:
    source = "import os, time\nif os.fork():\n    print(os.waitstatus_to_exitcode(os.wait()[1]))\nelse:\n    while True: pass"
    with Program({"main.py": source}, [], Limits(seconds=1), through) as program:
        program.start()
        program.allow(5)  # more time on the clock than of CPU
        program.talk(b"", lambda: b"\n" in program.output)
        assert bytes(program.output) == b"-%d\n" % signal.SIGXCPU


def test_directories_are_bounded(through: Way) -> None:
    """The kernel's memory for them is nobody's: one program made 343,484 in 1.5 s."""
    source = "import os\nn = 0\nwhile True:\n    try:\n        os.mkdir(str(n))\n        n += 1\n    except OSError:\n        break\nopen('/dev/null')\nprint(n, flush=True)\nwhile True: pass"
    with Program({"main.py": source}, [], Limits(seconds=5), through) as program:
        program.start()
        with contextlib.suppress(Stopped):  # of bubblewrap's are counted, util-linux has no more to give
            program.talk(b"", lambda: b"\n" in program.output)
        [inside] = children_of(program._process.pid)[:1]
        assert 1000 < sandbox.num_files(inside) < 100_000


def test_a_fork_bomb_stays_small(through: Way) -> None:
    source = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    before = set(descendants(os.getpid()))

    def num_inside() -> int:
        return len(set(descendants(os.getpid())) - before)

    with Program({"main.py": source}, [], Limits(seconds=1), through) as program:
        program.start()
        end = time.monotonic() + 5
        while num_inside() < Limits().processes // 2:  # three where a program does not fork
            assert time.monotonic() < end, "the bomb did not go off"
            time.sleep(0.02)
        time.sleep(0.3)
        assert num_inside() < Limits().processes + 8
    assert set(descendants(os.getpid())) <= before


def descendants(pid: int) -> list[int]:
    found = children_of(pid)
    return found + [below for one in found for below in descendants(one)]


def test_nothing_that_a_program_must_not_do_can_be_done(
    through: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_SECRET", "x")
    (tmp_path / "secret").write_text("secret")
    rows = breaches(str(tmp_path))
    source = f"for name, source in {rows!r}.items():\n    held = {{}}\n    exec(source, held)\n    print(name, bool(held['out']))"
    done = run(source, through)
    assert done.output.decode().splitlines() == [f"{name} False" for name in rows], done.errors
    assert run(breach("return True") + "\nprint(out)", through).output == b"True\n"
    assert os.listdir(tmp_path) == ["secret"]
    assert (tmp_path / "secret").read_text() == "secret"


def test_the_files_of_one_program_are_not_there_for_the_next(through: Way) -> None:
    assert run("open('/tmp/left', 'w').write('x')", through).status == 0
    assert run("import os\nprint(sorted(os.listdir('/tmp')))", through).output == b"['main.py']\n"


def test_a_program_dies_with_the_process_that_runs_it(through: Way) -> None:
    code = f"""
import time
from pipeline.verify.sandbox import WAYS, Limits, Program
way = next(one for one in WAYS if one.name == {through.name!r})
with Program({{"main.py": "import time; time.sleep(1000)"}}, [], Limits(seconds=900), way) as program:
    program.start()
    print("started", flush=True)
    time.sleep(1000)
"""
    host = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline() == b"started\n"
    pids = descendants(host.pid)
    assert len(pids) >= 2
    host.kill()
    host.wait()
    host.stdout.close()
    end = time.monotonic() + 10
    while any(is_running(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(is_running(pid) for pid in pids)


def test_a_sandbox_that_does_not_come_up_is_no_verdict() -> None:
    broken = Way("broken", lambda limits: ["sh", "-c", "echo out of order >&2; exit 3"])
    with (
        Program({"main.py": "print(1)"}, [], Limits(), broken) as program,
        pytest.raises(SandboxFault, match=r"the sandbox did not start \(out of order\).*sandbox --check"),
    ):
        program.start()
    assert isinstance(SandboxFault("x"), VerifyError)
    assert sandbox.fault_of(Way("none", lambda limits: ["no-such-tool"])) == "no-such-tool is not installed"


@pytest.mark.slow
def test_the_command_says_what_the_machine_offers(retort: Run) -> None:
    done = retort("sandbox", "--check")
    assert done.returncode == 0
    assert "used: " in done.stdout
    assert "limits of a program: 10 s, 1024 MB, 16 processes" in done.stdout
    done = retort("sandbox")
    assert (done.returncode, done.stderr) == (2, "error: sandbox: say what to do; there is --check\n")


@pytest.mark.skipif(not IS_ROOT, reason="takes a mount namespace of its own, as root")
def test_without_a_sandbox_there_is_one_error_and_no_verdict(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"gold": {"kind": "function", "tests": "assert f(1) == 1"}, "response": "def f(x): return x"}\n'
    )
    for arguments in ("sandbox --check", f"verify {rows} --verifier code"):
        hidden = f"mount -t tmpfs none /usr/local/bin; mount -t tmpfs none /usr/bin; exec {sys.executable} -m pipeline {arguments}"
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", hidden], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1
        assert (
            "no sandbox for programs on this machine (bubblewrap: bwrap is not installed; util-linux: "
            in done.stderr
        )
        assert "install bubblewrap" in done.stderr


@pytest.mark.skipif(not IS_ROOT, reason="tests of another user, started by root; the others test this one")
def test_whoever_is_not_root_has_the_same_sandbox() -> None:
    python = shutil.which("python3", path="/usr/bin")
    if (
        python is None
        or subprocess.run(
            [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False
        ).returncode
    ):
        pytest.skip("no Python 3.11 in /usr/bin, which another user could run")
    with tempfile.TemporaryDirectory() as place:
        for name in ("errors.py", "verify/sandbox.py", "verify/inside.py"):
            target = Path(place) / "pipeline" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "pipeline" / name, target)
        subprocess.run(["chmod", "-R", "a+rX", place], check=True)
        done = subprocess.run(
            ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
             python, "-c", "from pipeline.verify.sandbox import report; print(report())"],
            cwd=place, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if "user namespaces" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert "used: bubblewrap, under a user namespace" in done.stdout
    assert "util-linux: works" in done.stdout
