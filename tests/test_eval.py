"""eval with real vLLM on the embedded models: complete, resumed, up to date, closed by force, and served."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tokenizers import Tokenizer

from pipeline.recipe.cards import Tags, sampled_student, student_card
from pipeline.render import split_response
from pipeline.sampling.engines.processes import kill, with_children
from tests.conftest import RECIPE, ROOT, command_line
from tests.served import free_port, wait_until_served

pytestmark = pytest.mark.slow

BASE = sampled_student("base", student_card("embedded-dense"))
Retort = Callable[..., CompletedProcess[str]]

TASKS = "tasks: [{reasoning_gym: chain_sum, size: 30, config: {min_terms: 2, max_terms: 2}}]"
SECTION = f"""\
eval:
  {TASKS}
  samples: 2
  compare: [teacher]
  extra: [{{name: copy, student: embedded-dense, checkpoint: CHECKPOINT}}]
  forced_budgets: [8]
"""
SERVED = f"""\
eval:
  {TASKS}
  samples: 2
  compare: [teacher]
  extra: [{{name: again, teacher: embedded-moe}}]
"""


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, "subprocess.Popen[bytes]", Path]]:
    """A `serve-teacher` process, which starts while other tests run: its port and its log."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = command_line("serve-teacher", "--port", port)
    with log.open("wb") as file:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=environment)
    yield port, process, log
    kill(with_children(process.pid))
    process.wait()


@pytest.fixture(scope="module")
def directory(retort: Retort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What eval left of a recipe that compares the teacher with a copy of the base in another directory."""
    runs = tmp_path_factory.mktemp("runs")
    copy = runs / "copy of the base"
    shutil.copytree(ROOT / "students/embedded", copy, ignore=shutil.ignore_patterns("*.py"))
    section = SECTION.replace("CHECKPOINT", json.dumps(str(copy)))
    (runs / "small.yaml").write_text(RECIPE[: RECIPE.index("eval:")] + section)
    done = run_eval(retort, runs)
    assert done.returncode == 0, done.stderr[-3000:]
    return runs / "small/eval"


def run_eval(retort: Retort, runs: Path) -> CompletedProcess[str]:
    return retort("eval", "--recipe", runs / "small.yaml", "--runs", runs)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def thinking(row: dict) -> str:
    return split_response(row["response"], Tags()).thinking or ""


def test_an_extra_model_is_compared_by_its_checkpoint(directory: Path) -> None:
    results = json.loads((directory / "results.json").read_text())
    entry = results["tasks"]["chain_sum"]
    assert (entry["teacher"]["n"], entry["teacher"]["k"]) == (30, 2)
    assert entry["paired"]["copy-teacher"]["ci95"][1] < 0
    assert entry["teacher"]["failed"] == entry["copy"]["failed"] == 0
    assert results["models"]["copy"]["content"] == BASE.identity["content"]


def test_every_sample_is_stored_with_its_verdict(directory: Path) -> None:
    for model in ("teacher", "copy", "teacher.forced-8"):
        samples = rows(directory / f"chain_sum.{model}.samples-00000.jsonl")
        assert len(samples) == 60
        verdicts = rows(directory / f"chain_sum.{model}.verdicts.jsonl")
        keys = {(row["problem_id"], row["sample"]) for row in samples}
        assert {(row["problem_id"], row["sample"]) for row in verdicts} == keys
    counts = json.loads((directory / "manifest.json").read_text())["counts"]
    assert counts["in"] == counts["kept"] == 240


def test_forced_thinking_is_no_longer_than_its_budget(directory: Path) -> None:
    free = {
        (r["problem_id"], r["sample"]): r for r in rows(directory / "chain_sum.teacher.samples-00000.jsonl")
    }
    forced = rows(directory / "chain_sum.teacher.forced-8.samples-00000.jsonl")
    pairs = [(thinking(row), thinking(free[row["problem_id"], row["sample"]])) for row in forced]
    cut = [pair for pair in pairs if pair[0] != pair[1]]
    assert cut
    tokenizer = Tokenizer.from_file(str(ROOT / "teachers/embedded/tokenizer.json"))
    for kept, whole in cut:
        assert len(tokenizer.encode(kept, add_special_tokens=False).ids) == 8
        assert whole.startswith(kept)
    points = json.loads((directory / "results.json").read_text())["tasks"]["chain_sum"]["forced_budget"][
        "teacher"
    ]
    assert [point["thinking_tokens"] for point in points] == [8]


def test_a_second_run_does_nothing(retort: Retort, directory: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    done = run_eval(retort, directory.parent.parent)
    assert "eval: up to date" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_an_interrupted_run_takes_only_what_is_missing(
    retort: Retort, directory: Path, tmp_path: Path
) -> None:
    """As after a kill: no manifest, one sample torn, one verdict missing. Only one engine has work."""
    runs = shutil.copytree(directory.parent.parent, tmp_path / "runs")
    directory = runs / "small/eval"
    manifest = json.loads((directory / "manifest.json").read_text())
    plan = {
        key: manifest[key] for key in ("stage", "stage_version", "config", "inputs", "seed", "fingerprint")
    }
    (directory / "progress.json").write_text(json.dumps(plan))
    (directory / "manifest.json").unlink()
    path = directory / "chain_sum.copy.samples-00000.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-40])
    torn = rows_by_key(whole)
    done = run_eval(retort, runs)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "torn by a kill" in done.stderr
    assert done.stderr.count("starting vLLM") == 1
    assert rows_by_key(path.read_text()).keys() == torn.keys()
    assert len(path.read_text().splitlines()) == 60


def rows_by_key(text: str) -> dict[tuple[str, int], dict]:
    return {(row["problem_id"], row["sample"]): row for row in map(json.loads, text.splitlines())}


def test_the_same_model_by_two_urls_scores_as_in_this_process(
    retort: Retort, directory: Path, server: tuple[int, "subprocess.Popen[bytes]", Path], tmp_path: Path
) -> None:
    """The server calls it embedded-moe: the teacher's own name, and not that of the extra model."""
    port, process, log = server
    wait_until_served(port, process, log)
    (tmp_path / "served.yaml").write_text(RECIPE[: RECIPE.index("eval:")] + SERVED)
    urls = [f"--url={name}=http://127.0.0.1:{port}/v1" for name in ("teacher", "again")]
    command = ["eval", "--recipe", tmp_path / "served.yaml", "--runs", tmp_path, *urls]

    refused = retort(*command)
    assert refused.returncode == 1
    assert "does not serve again" in refused.stderr
    assert "it serves embedded-moe" in refused.stderr
    assert "--served-name" in refused.stderr

    done = retort(*command, "--served-name", "again=embedded-moe")
    assert done.returncode == 0, done.stderr[-3000:]
    held, entry = (
        json.loads((path / "results.json").read_text())["tasks"]["chain_sum"]
        for path in (directory, tmp_path / "small/eval")
    )
    low, high = entry["paired"]["again-teacher"]["ci95"]
    assert low <= 0 <= high
    low, high = held["teacher"]["ci95"]
    assert low <= entry["teacher"]["pass@1"] <= high
    assert entry["teacher"]["failed"] == entry["again"]["failed"] == 0
    usage = json.loads((tmp_path / "small/eval/manifest.json").read_text())["usage"]["models"]
    assert usage["again"]["engine"]["prompts_compared"]
    assert next(iter(usage["again"]["engine"]["servers"].values()))["answered"] == 60
