"""A clock that goes backwards: rates, durations, timeouts and the time left go by one that cannot."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.sampling import Store
from tests.conftest import ROOT
from tests.served import scripted_server
from tests.test_kills import start_child, tell_to_go
from tests.test_layout import MODULES

WALL = {"time", "time_ns", "localtime", "gmtime", "ctime", "now", "utcnow", "today", "st_mtime", "st_ctime"}
MEANT = {
    ("pipeline/run/contract.py", "now"): "when a stage was started, for a reader",
    ("pipeline/sampling/engines/faults.py", "now"): "a Retry-After may name a time of day",
    ("eval/results.py", "st_mtime"): "which file of failures was written last, for its words in an error",
}

# the wall clock falls by an hour every 50 milliseconds; the others go as they went
FALLING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static int (*real)(clockid_t, struct timespec *);
int clock_gettime(clockid_t id, struct timespec *now) {
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    struct timespec steady;
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) && !real(CLOCK_MONOTONIC, &steady))
        now->tv_sec -= 3600 * ((steady.tv_sec % 3600) * 20 + steady.tv_nsec / 50000000);
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec; now->tv_usec = exact.tv_nsec / 1000;
    return failed;
}
time_t time(time_t *into) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (into) *into = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_wall_clock_is_read_where_a_date_is_meant(path: Path) -> None:
    """By attribute or by name: `time.time()`, `datetime.now(...)`, `stat().st_mtime`, `from time import time`."""
    name, found = str(path.relative_to(ROOT)), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in WALL:
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found |= {alias.name for alias in node.names} & WALL
    assert {(name, what) for what in found} <= MEANT.keys()


@pytest.fixture(scope="module")
def falling_clock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes whose wall clock falls."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler, so no clock that falls")
    directory = tmp_path_factory.mktemp("clock")
    (directory / "falling.c").write_text(FALLING)
    library = directory / "falling.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, directory / "falling.c", "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(library)}
    code = "import time; a = time.time(); time.sleep(0.2); print(time.time() - a)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    assert float(done.stdout) < -3600
    return environment


@pytest.mark.slow
def test_a_collection_goes_by_a_clock_that_cannot_fall(falling_clock: dict[str, str], tmp_path: Path) -> None:
    with scripted_server(0.2, "busy") as url:
        child = start_child("tests.collect_child", url, tmp_path, 100, 32, **falling_clock)
        tell_to_go(child)
        begun = time.monotonic()
        said, errors = child.communicate(timeout=120)
    lasted = time.monotonic() - begun
    assert child.returncode == 0, errors
    assert "is down" not in errors
    assert "failed=Counter()" in said
    first, last = (float(re.findall(rf"{name}=([\d.]+)", said)[0]) for name in ("first_launch", "last_trace"))
    assert 0.2 < last - first < lasted
    verdicts = list(Store(tmp_path).verdicts())
    assert len(verdicts) > 100
    assert all(0 < verdict.seconds < lasted and verdict.reason != "timeout" for verdict in verdicts)


STAGES = """
import json, sys
from pathlib import Path
from tests.test_generate import flags_for, manifest_of, with_problems
from teachers import generate
directory, url = Path(sys.argv[1]), sys.argv[2]
context = with_problems(directory)
generate.run(context, flags_for(url))
usage = manifest_of(context).usage
print(json.dumps([manifest_of(context).seconds, usage.engine_seconds, usage.tokens_per_second]))
"""


@pytest.mark.slow
def test_a_manifest_holds_durations_that_are_ones(falling_clock: dict[str, str], tmp_path: Path) -> None:
    begun = time.monotonic()
    with scripted_server(0.1) as url:
        done = subprocess.run(
            [sys.executable, "-c", STAGES, tmp_path, url], cwd=ROOT, capture_output=True, text=True, timeout=300,
            check=False, env={**os.environ, **falling_clock, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    lasted = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    seconds, engine_seconds, rate = json.loads(done.stdout)
    assert 0 < engine_seconds <= seconds < lasted
    assert 0 < rate < 1e6
