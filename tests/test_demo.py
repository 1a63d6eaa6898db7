"""The demo recipe end to end with real vLLM, TRL and verifiers: the bars that the README states.

One run serves all tests of this module. It takes minutes; its time and memory are printed, and only the
memory is a bar (`make demo` must fit a laptop).
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.context import load_context
from pipeline.problems.sources import is_reserved
from pipeline.run.stages import BY_NAME, NAMES
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

COMMITTED = ROOT / "tests/data/demo-results.json"
STAGES = [stage.name for stage in load_context(ROOT / "recipes/demo.yaml", Path("runs")).stages]
PASSED_OVER = [name for name in NAMES if name not in STAGES]


@dataclass(frozen=True)
class Demo:
    directory: Path
    output: str
    seconds: float
    peak_gib: float

    def manifest(self, stage: str) -> dict[str, Any]:
        return json.loads((self.directory / stage / "manifest.json").read_text())

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        for path in sorted(self.directory.glob(name)):
            with path.open() as lines:
                yield from map(json.loads, lines)


def make_all(runs: Path) -> tuple[str, float, float]:
    """Run `make demo` into `runs`: its output, seconds, and the peak of its processes' proportional memory in GiB."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = ["make", "demo", f"RUNS={runs}"]
    started, peak = time.monotonic(), 0.0
    log = runs / "demo.log"
    runs.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, memory_of_tree(process.pid))
            time.sleep(1)
    assert process.returncode == 0, log.read_text()[-4000:]
    return log.read_text(), time.monotonic() - started, peak


def memory_of_tree(pid: int) -> float:
    """PSS in GiB of a process and its descendants: shared pages count once."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 2**30


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    runs = tmp_path_factory.mktemp("demo") / "runs"
    output, seconds, peak = make_all(runs)
    print(f"\nmake demo: {seconds:.0f} s, peak {peak:.2f} GiB")
    return Demo(runs / "demo", output, seconds, peak)


def test_it_fits_a_laptop(demo: Demo) -> None:
    assert demo.peak_gib <= 4.0


def test_every_stage_finished_and_its_counts_add_up(demo: Demo) -> None:
    for stage in STAGES:
        counts = demo.manifest(stage)["counts"]
        assert counts["in"] == counts["kept"] + sum(counts["dropped"].values()) + sum(
            counts["failed"].values()
        )


def test_a_stage_reads_what_the_table_says(demo: Demo) -> None:
    for stage in STAGES:
        row = BY_NAME[stage]
        read = {name.removesuffix(" outputs") for name in demo.manifest(stage)["inputs"]}
        assert read <= set(row.reads), stage


def test_files_conserve_problems_and_traces(demo: Demo) -> None:
    problems = {row["id"] for row in demo.rows("problems/problems.jsonl")}
    traces = [(row["problem_id"], row["sample"]) for row in demo.rows("generate/traces-*.jsonl")]
    assert len(traces) == len(set(traces))
    assert {problem for problem, _ in traces} <= problems
    kept = [(row["problem_id"], row["sample"]) for row in demo.rows("filter/kept.jsonl")]
    dropped = [(row["problem_id"], row["sample"]) for row in demo.rows("filter/dropped.jsonl")]
    assert sorted(kept + dropped) == sorted(traces)


def test_no_training_question_is_reserved(demo: Demo) -> None:
    questions = [row["question"] for row in demo.rows("problems/problems.jsonl")]
    assert questions
    assert not any(map(is_reserved, questions))


def test_the_student_learned_what_the_readme_says(demo: Demo) -> None:
    everything = json.loads((demo.directory / "eval/results.json").read_text())["tasks"]["all"]
    assert everything["student"]["n"] >= 500
    base, student, teacher = (everything[model]["pass@1"] for model in ("base", "student", "teacher"))
    assert base <= 0.15
    assert 0.60 <= teacher <= 0.95
    assert (student - base) / (teacher - base) >= 0.80


def test_its_intervals_overlap_the_committed_ones(demo: Demo) -> None:
    new = json.loads((demo.directory / "eval/results.json").read_text())["tasks"]["all"]
    old = json.loads(COMMITTED.read_text())["tasks"]["all"]
    for model in ("base", "student", "teacher"):
        (low, high), (old_low, old_high) = new[model]["ci95"], old[model]["ci95"]
        assert low <= old_high, f"{model}: {new[model]} against {old[model]}"
        assert old_low <= high, f"{model}: {new[model]} against {old[model]}"


def test_a_second_run_does_nothing_and_says_so(demo: Demo) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.directory.rglob("*") if path.is_file()}
    output, seconds, _ = make_all(demo.directory.parent)
    print(f"\nsecond make demo: {seconds:.1f} s")
    assert [stage for stage in STAGES if f"{stage}: up to date" in output] == STAGES
    assert [stage for stage in NAMES if f"{stage}: not in this recipe" in output] == PASSED_OVER
    assert PASSED_OVER == ["judge", "polish"]
    assert before == {path: path.stat().st_mtime_ns for path in demo.directory.rglob("*") if path.is_file()}
