"""Rows without a gold answer that nobody verifies: from the problems to the examples, over a real connection."""

import json
from pathlib import Path

import pytest

from pipeline.filter import stage as filter_stage
from pipeline.flags import WorkerFlags
from pipeline.problems import stage as problems_stage
from pipeline.records import ProblemFile, read_filtered
from pipeline.sampling import Store
from teachers import generate
from tests.test_generate import flags_for, recipe_of

pytestmark = pytest.mark.slow


def test_what_nobody_verifies_is_sampled_as_often_as_it_is_kept(url: str, tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text("x")
    lines = [json.dumps({"question": f"Tell me of the number {n * n}, please."}) + "\n" for n in range(20)]
    (tmp_path / "asked.jsonl").write_text("".join(lines))
    source = f"[{{path: {tmp_path / 'asked.jsonl'}, columns: {{gold: null}}, verifier: none}}]"
    context = recipe_of(tmp_path, tmp_path, **{"problems.sources": source})
    problems_stage.run(context, WorkerFlags(workers=1))
    problems = list(ProblemFile(context.directory("problems") / "problems.jsonl"))
    assert {(problem.verifier, problem.gold) for problem in problems} == {("none", "")}
    generate.run(context, flags_for(url))
    verdicts = list(Store(context.directory("generate")).verdicts())
    assert len(verdicts) == 2 * len(problems)
    assert {(verdict.status, verdict.reason) for verdict in verdicts} == {("unverifiable", "no_verifier")}
    filter_stage.run(context, WorkerFlags(workers=1))
    manifest = context.require("filter", "the test")
    kept = list(read_filtered(context.directory("filter") / "kept.jsonl"))
    assert len(kept) == manifest.counts.kept == len(problems)  # one of each is selected
