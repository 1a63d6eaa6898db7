"""Whoever is killed leaves nothing behind: no process of any stage, and no temporary file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.verify.sandbox import children_of
from tests.campaign.work import ORPHAN_SECONDS, STAGES, Work, belonging, left_behind
from tests.conftest import RECIPE, ROOT
from tests.served import scripted_server

FILTERING = """
from pipeline.filter.apply import RuleSet, apply_rules
from pipeline.filter.examples import Format
from pipeline.recipe.cards import Tags
from pipeline.recipe.prompts import PROMPTS
import time

def chunks():
    for _ in range(6):
        yield []
    time.sleep(5)
    print("ready", flush=True)
    time.sleep(600)

rules = RuleSet(["finished"], Format(PROMPTS["plain"], Tags(), Tags(), ""))
for _ in apply_rules(chunks(), rules, 2):
    pass
"""
VERIFYING = """
from pipeline.verify import VerifierPool
import time

with VerifierPool(workers=2) as pool:
    rows = [((str(i), 0), "text", "1", "1", {}) for i in range(50)]
    print(len(list(pool.map(rows))) and "ready", flush=True)
    time.sleep(600)
"""
ENGINE = """
from pipeline.run.lifetime import Guard
import os, re, subprocess, time

def naps():
    with open(f"/proc/{guard._process.pid}/status") as file:
        return int(re.search(r"^voluntary_ctxt_switches:\\s+(\\d+)", file.read(), re.M)[1])

guard = Guard()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    time.sleep(600)
subprocess.Popen(["sleep", "600"], env={**os.environ, **guard.mark}, start_new_session=True)
seen = {"CAMPAIGN_RUN": os.environ["CAMPAIGN_RUN"]}  # but neither token nor pipe: it was only seen to be a child
subprocess.Popen(["sleep", "600"], env=seen, start_new_session=True)
enough = naps() + 6  # so often it looked around since
while naps() < enough:
    assert guard._process.poll() is None
    time.sleep(0.1)
print("ready", flush=True)
time.sleep(600)
"""
ASKING = """
from pipeline.recipe.cards import sampled_student, student_card
from students import in_vllm
from students.model import load_base
import psutil, threading, time

def tell():
    while not psutil.Process().children():
        time.sleep(0.05)
    time.sleep(3)
    print("ready", flush=True)

in_vllm.ANSWERING = frozenset()
card = student_card("embedded-dense")
model = sampled_student("base", card)
student = load_base(card, model)
threading.Thread(target=tell, daemon=True).start()
in_vllm.check_answers(model, student, [1, 2, 3])
"""
PARENTS = [
    pytest.param(FILTERING, id="rule workers"),
    pytest.param(VERIFYING, id="verifiers"),
    pytest.param(ENGINE, id="an engine"),
    pytest.param(ASKING, id="an engine that is tried", marks=pytest.mark.slow),
]


def start(command: list[str], mark: str, **more: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CAMPAIGN_RUN": mark, **more}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("code", PARENTS)
def test_workers_die_with_a_killed_parent(code: str, tmp_path: Path) -> None:
    mark = f"lifetime-{tmp_path}"
    parent = start([sys.executable, "-c", code], mark)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        assert len(belonging(mark, parent.pid)) > 2, "there are workers to be left behind"
    finally:
        parent.kill()
        parent.wait()
    assert left_behind(mark, parent.pid) == []


def imports_torch(pid: int) -> bool:
    try:
        return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("core", [False, True], ids=["imports", "core"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_an_engine_that_is_starting_leaves_nothing(
    number: signal.Signals, core: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As its libraries are imported, by the command or by a process that it started."""
    folder = tmp_path_factory.mktemp("e")
    recipe, system = folder / "small.yaml", folder / "tmp"
    recipe.write_text(RECIPE)
    system.mkdir()
    command = [sys.executable, "-m", "pipeline", "{}", f"--recipe={recipe}", f"--runs={folder}/r"]
    subprocess.run([word.format("problems") for word in command], cwd=ROOT, check=True)
    mark, end = f"lifetime-{folder}", time.monotonic() + 240
    child = start([word.format("generate") for word in command], mark, TMPDIR=str(system))
    while not any(map(imports_torch, children_of(child.pid) if core else [child.pid])):
        assert child.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    child.send_signal(number)
    child.wait(timeout=2 * ORPHAN_SECONDS)
    assert left_behind(mark, child.pid) == []
    if number is signal.SIGTERM or len(str(folder)) < 50:
        assert list(system.rglob("*")) == []


@pytest.mark.slow
def test_no_stage_leaves_a_process_or_a_file_when_it_is_killed(tmp_path: Path) -> None:
    with scripted_server(0.02) as url:
        work = Work(tmp_path, url)
        for stage in STAGES:
            command = work.command(stage, tmp_path / "r")
            for seconds in (6.0,) if stage == "train" else (1.0, 2.0):
                killed = work.run(command, kill_after=seconds)
                assert killed.clean, killed
            ended = work.run(command)
            assert (ended.code, ended.clean) == (0, True), ended
