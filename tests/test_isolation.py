"""What verifier processes are given, and what they cannot reach: keys, the network, files."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.verify import VerifierPool
from pipeline.verify.isolation import KEPT, SCRATCH, clean_environment
from pipeline.verify.pool import say_what_stays_open
from tests.conftest import ROOT
from tests.test_verify_pool import descendants

# tries what a process should not do, before and after it is cut off
TRY = """
import json, os, socket, subprocess, sys
from pipeline.verify.isolation import isolate

def attempt(act):
    try:
        act()
        return "done"
    except OSError as error:
        return type(error).__name__

def all_of_it():
    def connect():
        socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5).close()
    acts = {"connect": connect}
    for name in sys.argv[2:]:
        acts[name] = lambda name=name: open(os.path.join(name, "made"), "w").close()
    return {name: attempt(act) for name, act in acts.items()}

before = all_of_it()
reachable = isolate()
print(json.dumps([reachable, before, all_of_it(), os.listdir("/dev/shm"), open("/dev/null", "w").write("x")]))
"""


def test_an_isolated_process_has_no_network_and_writes_no_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-c", TRY, str(listening.getsockname()[1]), str(tmp_path), SCRATCH]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (Path(SCRATCH) / "made").unlink(missing_ok=True)
    reachable, before, after, scratch, _ = json.loads(done.stdout)
    assert before == {"connect": "done", str(tmp_path): "done", SCRATCH: "done"}
    if reachable:  # a system that makes no namespaces: all is as it was, and it says so
        assert re.match(r"(network and )?files: ", reachable)
        assert after[str(tmp_path)] == "done"
    else:
        assert after == {"connect": "OSError", str(tmp_path): "OSError", SCRATCH: "done"}
        assert scratch == ["made"], "a directory of its own"


def test_workers_are_cut_off_or_the_log_says_once_that_they_are_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    say_what_stays_open.cache_clear()
    before = set(descendants(os.getpid()))
    for _ in range(2):
        with VerifierPool(workers=1) as pool:
            assert pool.submit(("a", 0), "math", "1", "\\boxed{1}", {}).result().status == "correct"
            places = {
                os.readlink(f"/proc/{child}/ns/net") for child in set(descendants(os.getpid())) - before
            }
    said = caplog.text.count("verifier processes are not cut off from")
    assert len(places) == 1
    assert (said == 0) == (places != {os.readlink("/proc/self/ns/net")})
    assert said <= 1


def test_what_stays_open_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    say_what_stays_open.cache_clear()
    for reachable in ("", "files: they cannot be made read-only", "files: they cannot be made read-only"):
        say_what_stays_open(reachable)
    assert caplog.messages == ["verifier processes are not cut off from files: they cannot be made read-only"]


def test_verifier_processes_are_given_what_they_need() -> None:
    mine = {
        "PATH": "/bin",
        "HOME": "/root",
        "PYTHONPATH": "/mine",
        "LD_PRELOAD": "x.so",
        "OMP_NUM_THREADS": "1",
    }
    given = clean_environment(mine, Path("/retort"))
    assert given == {"PATH": "/bin", "PYTHONPATH": f"/retort{os.pathsep}/mine", "OMP_NUM_THREADS": "1"}
    assert not KEPT & {"HOME", "LD_PRELOAD", "PYTHONSTARTUP"}
