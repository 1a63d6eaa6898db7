"""make check-gpu: its rows one by one where there is a GPU, what of them a CPU can do, and how faults are told."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.gpu.__main__ import FAILS, NOT_HERE, WORKS, counted, last_words, next_rows, table, wait_for, work
from tests.gpu.processes import DATA, against_the_cpu
from tests.gpu.rows import ROWS, Row
from tests.gpu.setting import NotHere, Setting, hold_estimate

NEVER_HERE = Row("never", "machine:machine", needs=("no_such_module_of_anybody",))


@pytest.mark.gpu
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_works_or_is_not_for_this_machine(row: Row) -> None:
    (found,) = next_rows([row], "cuda", time.monotonic() + 600)
    if found["state"] == NOT_HERE:
        pytest.skip(found["figures"])
    assert found["state"] == WORKS, found


@pytest.mark.slow
def test_what_a_cpu_can_do_of_it_works(tmp_path: Path) -> None:
    """So that on a GPU only that fails where GPUs differ."""
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "tests.gpu", "--dry", "--out", str(out), "--minutes", "12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())
    assert [row["name"] for row in rows] == [row.name for row in ROWS]
    works = {row["name"] for row in rows if row["state"] == WORKS}
    assert works >= {
        "machine",
        "train: full, bf16, checkpoint",
        "train: LoRA",
        "train: stopped and resumed",
        "train: other architectures",
        "memory: 0.6B full, 8k",
        "memory: 0.6B full, 8k, checkpointed",
        "memory: 1.7B LoRA, 8k",
        "vLLM: embedded teacher, seeds",
        "train: vLLM is asked",
    }


def test_every_row_has_a_function_and_a_name_of_its_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        module, function, *_ = row.home.split(":")
        assert f"def {function}(" in (ROOT / f"tests/gpu/{module}.py").read_text(), row.home


def test_a_row_about_memory_fails_where_the_estimate_is_not_the_peak() -> None:
    assert hold_estimate({"estimate_gib": 1.0}) == {"estimate_gib": 1.0}  # on a CPU there is no peak
    assert hold_estimate({"peak_gib": 9.0, "estimate_over_peak": 1.13})
    with pytest.raises(KeyError):
        hold_estimate({"peak_gib": 9.0})
    for ratio in (0.79, 1.26):
        with pytest.raises(AssertionError, match="estimate_over_peak"):
            hold_estimate({"peak_gib": 9.0, "estimate_over_peak": ratio})


@pytest.mark.parametrize(("name", "scores"), [("demo", (0.7, 0.95)), ("demo-polish", (0.7,))])
def test_a_recipe_fails_where_its_scores_are_not_the_cpus(
    name: str, scores: tuple[float, ...], tmp_path: Path
) -> None:
    """demo-polish has no committed results: its student is at least not below the demo's."""
    results = json.loads((DATA / "demo-results.json").read_text())
    found = against_the_cpu(DATA / "demo-results.json", name)
    assert found["student, here and demo on a CPU"] == [0.8227, 0.8227]
    for score in scores:
        results["tasks"]["all"]["student"]["pass@1"] = score
        (tmp_path / "results.json").write_text(json.dumps(results))
        with pytest.raises(AssertionError, match=str(score)):
            against_the_cpu(tmp_path / "results.json", name)


def test_no_row_takes_code_that_does_not_import_for_a_machine_that_lacks_it() -> None:
    """`needs` names packages; a fault of ours is a failure."""
    for path in {f"tests/gpu/{row.home.partition(':')[0]}.py" for row in ROWS}:
        assert "except ImportError" not in (ROOT / path).read_text(), path


def test_a_row_without_its_package_is_not_begun() -> None:
    (found,) = next_rows([NEVER_HERE, *ROWS], "cuda", time.monotonic() + 60)
    assert (found["state"], found["figures"]) == (NOT_HERE, "not installed: no_such_module_of_anybody")


@pytest.mark.parametrize(
    ("row", "torch_version", "capability", "error", "said"),
    [
        ("variable_length", "2.9.1+cu130", (9, 0), NotHere, r"torch 2\.9.*begins with 2\.10"),
        ("variable_length", "2.13.0+cu130", (7, 5), NotHere, r"capability \(7, 5\)"),
        ("variable_length", "2.13.0+cu130", (9, 0), AssertionError, "has no torch.nn.attention.varlen"),
        ("flash_attention", "2.13.0+cu130", (9, 0), NotHere, "transformers takes no flash_attn"),
    ],
)
def test_what_a_machine_lacks_is_not_here_and_what_it_should_have_fails(
    row: str,
    torch_version: str,
    capability: tuple[int, int],
    error: type[Exception],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A newer torch without its kernel is a fault, which an older one is not."""
    import torch

    from students import varlen
    from tests.gpu import kernels

    monkeypatch.setattr(torch, "__version__", torch_version)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(kernels, "is_flash_attn_2_available", lambda: False)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    varlen.parameters.cache_clear()
    try:
        with pytest.raises(error, match=said):
            getattr(kernels, row)(Setting("cuda", tmp_path))
    finally:
        varlen.parameters.cache_clear()


def test_rows_are_counted_by_what_became_of_them() -> None:
    rows = [{"state": state} for state in (WORKS, NOT_HERE, WORKS, FAILS, NOT_HERE, NOT_HERE)]
    assert counted(rows) == "of 6 rows 2 work, 1 fail, 3 need what is not here"


@pytest.mark.slow  # it imports torch
def test_a_row_that_finds_no_gpu_says_so_and_nothing_else(tmp_path: Path) -> None:
    """Not what clearing the device up after it makes of that."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    work([ROWS[1]], "cuda", tmp_path)
    (found,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert found == {"state": NOT_HERE, "figures": "needs 1 GPU, found 0"}


def test_a_row_that_hangs_or_dies_fails(tmp_path: Path) -> None:
    hangs = subprocess.Popen(["sleep", "60"])
    try:
        row = Row("hangs", "machine:machine", seconds=0)
        found = wait_for(hangs, row, tmp_path / "none", "cuda", time.monotonic() + 60)
        assert (found["state"], found["error"]) == (FAILS, "not finished after 0 s")
    finally:
        hangs.kill()
        hangs.wait()
    dies = subprocess.Popen(["false"])
    found = wait_for(dies, Row("dies", "machine:machine"), tmp_path / "none", "cuda", time.monotonic() + 60)
    dies.wait()
    assert found["state"] == FAILS
    assert "error" not in found  # its log says why


def test_the_error_of_a_row_is_the_last_line_of_its_traceback() -> None:
    text = "INFO ready\nTraceback (most recent call last):\n  File x\nRuntimeError: no kernel image\nexit\n"
    assert last_words(text) == "RuntimeError: no kernel image"
    assert last_words("Killed\n\n") == "Killed"
    shown = table([{"name": "a", "state": WORKS, "seconds": 1.0, "figures": {"rate": 3}}])
    assert shown == "a  works        1.0 s  rate 3"
