"""train.stop_on: what early stopping compares."""

import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import TrainFlags
from pipeline.records import Problem, ProblemFile, Trace, read_lines, to_json
from pipeline.run.contract import Counts
from students.pass_rate import EVALUATIONS, MAX_ASKED, held_out_problems
from students.train import PROBLEMS, run
from tests.finished_run import finish
from tests.polish_run import context_in, polish_recipe, train_student
from tests.students_fixtures import build_student, card_of, context_of, finished_filter, sums

CPU = TrainFlags(device="cpu", log_every=1)
NOTHING_LEARNED = ["train.epochs=6", "train.held_out_share=0.3", "train.learning_rate=1.0e-12"]
PASS_RATE = [
    *NOTHING_LEARNED,
    "train.evaluations=8",
    "train.stop_on=pass_rate",
    "generate.sampling.max_tokens=8",
]


def metrics(context: Context) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (context.directory("train") / "metrics.jsonl").open()]


def with_problems(context: Context, verifier: str = "math") -> Context:
    """The problems that `sums` are traces of, as a finished stage."""
    problems = [
        Problem(one.problem_id, one.messages[0]["content"], "1", verifier, "sums", "MIT", {})
        for one in sums(32)
    ]
    lines = "".join(to_json(problem) + "\n" for problem in problems)
    finish(context, "problems", Counts(32, 32), {PROBLEMS: lines.encode()})
    return context


def test_stop_on_without_early_stopping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="stop_on says what early_stopping looks at; set that too"):
        context_of(tmp_path, "train.stop_on=token_accuracy", "train.held_out_share=0.3")


def test_a_student_is_sampled_by_one_process(tmp_path: Path) -> None:
    context = context_of(tmp_path, *PASS_RATE, "train.early_stopping=2")
    with pytest.raises(RecipeError, match="2 processes were launched, and a student is sampled by one"):
        run(context, TrainFlags(processes=2))


def test_only_held_out_problems_with_an_answer_are_asked(tmp_path: Path) -> None:
    context = context_of(tmp_path, *PASS_RATE, "train.early_stopping=2")
    assert 0 < len(held_out_problems(with_problems(context))) < 16 <= MAX_ASKED
    voted = context_of(tmp_path, *PASS_RATE, "train.early_stopping=2", "name=voted")
    with_problems(voted, "majority")
    with pytest.raises(StageError, match=r"none of 0 is held out by train.held_out_share 0.3. Raise it"):
        held_out_problems(voted)


def interrupt_at_step_4(record: logging.LogRecord) -> bool:
    if "after step 4 " in record.getMessage():
        signal.raise_signal(signal.SIGINT)
    return True


@pytest.mark.slow
def test_the_run_ends_when_token_accuracy_gets_no_better(tmp_path: Path) -> None:
    """Nothing is learned, so no evaluation after the first is better: two more, and the run ends."""
    overrides = [*NOTHING_LEARNED, "train.early_stopping=2", "train.evaluations=8"]
    overrides += ["train.stop_on=token_accuracy"]
    context = finished_filter(tmp_path, sums(32), *overrides, card=card_of(build_student(tmp_path / "base")))
    run(context, CPU)
    measured = [row["eval_mean_token_accuracy"] for row in metrics(context) if "eval_loss" in row]
    assert len(measured) == 3
    assert len(set(measured)) == 1


@pytest.mark.slow
def test_a_killed_run_counts_on_and_asks_nothing_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No answer is right, so three more evaluations than the first end it, a Ctrl-C between them or not."""
    overrides = [*PASS_RATE, "train.early_stopping=3"]
    card = card_of(build_student(tmp_path / "base"))
    context = with_problems(finished_filter(tmp_path, sums(32), *overrides, card=card))
    caplog.set_level(logging.INFO, "students.pass_rate")
    logging.getLogger("students.pass_rate").addFilter(interrupt_at_step_4)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(context, CPU)
    finally:
        logging.getLogger("students.pass_rate").removeFilter(interrupt_at_step_4)
    assert context.manifest("train") is None
    asked = context.directory("train") / EVALUATIONS
    before = {path: path.stat().st_mtime_ns for path in asked.glob("*/*.jsonl")}
    run(context, CPU)
    assert before
    assert {path: path.stat().st_mtime_ns for path in before} == before
    rates = {row["step"]: row["eval_pass_rate"] for row in metrics(context) if "eval_pass_rate" in row}
    assert list(rates.values()) == [0.0] * 4
    assert sorted(int(path.name) for path in asked.iterdir()) == list(rates)
    assert context.require("train", "the test").notes["kept_step"] == min(rates)


@pytest.mark.slow
def test_the_checkpoint_with_the_best_pass_rate_is_kept(tmp_path: Path) -> None:
    """The embedded student on the teacher's own answers: it learns, and the figures are those of its answers."""
    polish_recipe(tmp_path)
    # so many epochs that it is done with learning: in mid-climb the rate hangs on rounding
    changes = ("train.early_stopping=5", "train.evaluations=5", "train.stop_on=pass_rate", "train.epochs=7.5")
    context = context_in(tmp_path / "runs", *changes, "generate.sampling.max_tokens=120")
    train_student(context)
    rates = {row["step"]: row["eval_pass_rate"] for row in metrics(context) if "eval_pass_rate" in row}
    notes = context.require("train", "the test").notes
    assert len(rates) == 5
    assert rates[notes["kept_step"]] == max(rates.values()) > 0.2
    problems = {one.id for one in ProblemFile(context.directory("problems") / PROBLEMS)}
    folder = context.directory("train") / EVALUATIONS / f"{notes['kept_step']:05d}"
    (answered,) = folder.glob("held_out.samples-*.jsonl")
    asked = [trace.problem_id for trace in read_lines(Trace, answered)]
    assert len(asked) == len(set(asked)) > 20
    assert set(asked) < problems
