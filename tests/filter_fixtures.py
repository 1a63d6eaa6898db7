"""Finished problems and generate stages written by hand, so that filter can be tested without a teacher."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Context
from pipeline.filter.stage import run as run_filter
from pipeline.flags import WorkerFlags
from pipeline.recipe.cards import Tags, load_cards
from pipeline.recipe.schema import Recipe
from pipeline.recipe.strict_yaml import validate
from pipeline.records import Problem, Status, Trace, Verdict, problem_id, to_json
from pipeline.render import Split, join_response
from pipeline.run.contract import Counts, Plan, Start, begin
from pipeline.verify.basis import basis_of, tags_digest
from pipeline.verify.table import VERSIONS

TAGS = Tags()


def make_recipe(**sections: Any) -> Recipe:
    """A valid recipe whose sections are updated key by key."""
    values: dict[str, Any] = {
        "name": "small",
        "problems": {"sources": [{"reasoning_gym": "chain_sum", "size": 20}]},
        "generate": {
            "teacher": "embedded-moe",
            "samples": {"keep": 2, "max": 4},
            "sampling": {"temperature": 1.0, "max_tokens": 256},
        },
        "filter": {"rules": ["finished", "closed_thinking", "correct"], "select": {"per_problem": 2}},
        "train": {
            "student": "embedded-dense",
            "method": "full",
            "epochs": 1,
            "learning_rate": 1e-3,
            "max_length": 512,
        },
        "eval": {"tasks": [{"reasoning_gym": "chain_sum", "size": 20}]},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(section, dict) else section
    return validate(Recipe, values, "recipe")


def make_problem(number: int, source: str = "sums") -> Problem:
    question, gold = f"What is {number} + 1?", str(number + 1)
    return Problem(problem_id(question), question, gold, "math", source, "MIT", {})


def make_trace(
    problem: Problem, sample: int, answer: str | None = None, thinking: str | None = None, **changes: Any
) -> Trace:
    """A trace as a teacher whose opening tag is in the prompt samples it."""
    text = f"\\boxed{{{problem.gold if answer is None else answer}}}"
    split = Split(f"Sample {sample}." if thinking is None else thinking, text, "closed")
    response = join_response(split, TAGS, opening=f"{TAGS.open}\n")
    trace = Trace(problem.id, sample, 7, "request", response, "stop", 20, 10, "teacher")
    return replace(trace, **changes)


def make_verdict(
    problem: Problem, sample: int, status: Status = "correct", version: str = VERSIONS["math"]
) -> Verdict:
    basis = basis_of(problem, tags_digest(TAGS))
    reason = "equal" if status == "correct" else "different"
    return Verdict(problem.id, sample, status, basis, reason, "1", "string", "math", version, 0.001)


@dataclass(frozen=True)
class Stages:
    """Problems, lines of trace shards and verdicts, as they go to disk."""

    problems: list[Problem]
    traces: list[str]
    verdicts: list[str] = field(default_factory=list)
    protected: list[dict[str, Any]] = field(default_factory=list)


def write_stages(runs: Path, stages: Stages, name: str = "small") -> None:
    """Finished problems/ and generate/ directories of a run."""
    plans = {stage: Plan(stage, 1, {}, {}, 0) for stage in ("problems", "generate")}
    run = begin(runs / name / "problems", plans["problems"], Start())
    assert run is not None
    with run:
        write_lines(run.directory / "problems.jsonl", map(to_json, stages.problems))
        write_lines(run.directory / "dropped.jsonl", [])
        write_lines(run.directory / "protected.jsonl", map(json.dumps, stages.protected))
        (run.directory / "templates.json").write_text("{}")
        num = len(stages.problems)
        rows: dict[str, int | None] = {"problems.jsonl": num, "protected.jsonl": None, "templates.json": None}
        run.finish(Counts(num, num), rows)
    run = begin(runs / name / "generate", plans["generate"], Start())
    assert run is not None
    with run:
        write_lines(run.directory / "traces-00000.jsonl", stages.traces)
        write_lines(run.directory / "verdicts.jsonl", stages.verdicts)
        num = len(stages.traces)
        run.finish(Counts(num, num), {"traces-00000.jsonl": num, "verdicts.jsonl": len(stages.verdicts)})


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A "\\udcff" in a line becomes the byte ff, which is no UTF-8."""
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="surrogateescape")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ordinary_stages(num_problems: int = 6, samples: int = 4) -> Stages:
    """Of each problem sample 1 is wrong and sample 3 is cut at the limit; two sources."""
    problems = [make_problem(n, "sums" if n % 2 else "others") for n in range(num_problems)]
    traces, verdicts = [], []
    for problem in problems:
        for sample in range(samples):
            wrong = sample == 1
            trace = make_trace(
                problem,
                sample,
                "0.5" if wrong else None,
                finish_reason="length" if sample == 3 else "stop",
                thinking="word " * (1 + sample),
            )
            traces.append(to_json(trace))
            verdicts.append(to_json(make_verdict(problem, sample, "wrong" if wrong else "correct")))
    return Stages(problems, traces, verdicts)


def make_context(recipe: Recipe, runs: Path, path: str = "recipes/small.yaml") -> Context:
    return Context(recipe, load_cards(recipe), runs, Start(recipe=path))


def filtered_run(recipe: Recipe, runs: Path, stages: Stages, workers: int = 1, **more: Any) -> Context:
    """A run whose filter stage is finished; `more` is for that stage."""
    context = make_context(recipe, runs)
    write_stages(runs, stages)
    run_filter(context, WorkerFlags(workers=workers), **more)
    return context


@pytest.fixture
def context_of(tmp_path: Path) -> Callable[[Recipe], Context]:
    """A stage context over a fresh runs directory."""
    return lambda recipe: make_context(recipe, tmp_path / "runs")
