"""eval with real vLLM on the embedded models: complete, resumed, up to date, and closed by force."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tokenizers import Tokenizer

from tests.conftest import RECIPE, ROOT

pytestmark = pytest.mark.slow

Retort = Callable[..., CompletedProcess[str]]

SECTION = """\
eval:
  tasks: [{reasoning_gym: chain_sum, size: 30, config: {min_terms: 2, max_terms: 2}}]
  samples: 2
  compare: [teacher]
  extra: [{name: copy, teacher: embedded-moe}]
  forced_budgets: [8]
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that compares the teacher with a copy of itself: its eval directory."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "small.yaml").write_text(RECIPE[: RECIPE.index("eval:")] + SECTION)
    return runs / "small/eval"


def run_eval(retort: Retort, directory: Path) -> CompletedProcess[str]:
    runs = directory.parent.parent
    return retort("eval", "--recipe", runs / "small.yaml", "--runs", runs)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_same_model_twice_scores_alike(retort: Retort, directory: Path) -> None:
    done = run_eval(retort, directory)
    assert done.returncode == 0, done.stderr[-3000:]
    entry = json.loads((directory / "results.json").read_text())["tasks"]["chain_sum"]
    assert (entry["teacher"]["n"], entry["teacher"]["k"]) == (30, 2)
    paired = entry["paired"]["copy-teacher"]
    low, high = paired["ci95"]
    assert low <= 0 <= high
    assert entry["teacher"]["failed"] == 0


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
    cut = [row for row in forced if row["thinking"] != free[row["problem_id"], row["sample"]]["thinking"]]
    assert cut
    tokenizer = Tokenizer.from_file(str(ROOT / "teachers/embedded/tokenizer.json"))
    for row in cut:
        assert len(tokenizer.encode(row["thinking"], add_special_tokens=False).ids) == 8
        assert free[row["problem_id"], row["sample"]]["thinking"].startswith(row["thinking"])
    points = json.loads((directory / "results.json").read_text())["tasks"]["chain_sum"]["forced_budget"][
        "teacher"
    ]
    assert [point["thinking_tokens"] for point in points] == [8]


def test_a_second_run_does_nothing(retort: Retort, directory: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    done = run_eval(retort, directory)
    assert "eval: up to date" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_an_interrupted_run_takes_only_what_is_missing(retort: Retort, directory: Path) -> None:
    """As after a kill: no manifest, one sample torn, one verdict missing. Only one engine has work."""
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
    done = run_eval(retort, directory)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "torn by a kill" in done.stderr
    assert done.stderr.count("starting vLLM") == 1
    assert rows_by_key(path.read_text()).keys() == torn.keys()
    assert len(path.read_text().splitlines()) == 60


def rows_by_key(text: str) -> dict[tuple[str, int], dict]:
    return {(row["problem_id"], row["sample"]): row for row in map(json.loads, text.splitlines())}
