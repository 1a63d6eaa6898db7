"""train.stop_on: what early stopping compares."""

import json
from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.flags import TrainFlags
from students.train import run
from tests.students_fixtures import build_student, card_of, context_of, finished_filter, sums


def test_stop_on_without_early_stopping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="stop_on says what early_stopping looks at; set that too"):
        context_of(tmp_path, "train.stop_on=token_accuracy", "train.held_out_share=0.3")


@pytest.mark.slow
def test_the_run_ends_when_token_accuracy_gets_no_better(tmp_path: Path) -> None:
    """Nothing is learned, so no evaluation after the first is better: two more, and the run ends."""
    overrides = ["train.epochs=6", "train.held_out_share=0.3", "train.learning_rate=1.0e-12"]
    overrides += ["train.early_stopping=2", "train.evaluations=8", "train.stop_on=token_accuracy"]
    context = finished_filter(tmp_path, sums(32), *overrides, card=card_of(build_student(tmp_path / "base")))
    run(context, TrainFlags(device="cpu", log_every=1))
    rows = [json.loads(line) for line in (context.directory("train") / "metrics.jsonl").open()]
    measured = [row["eval_mean_token_accuracy"] for row in rows if "eval_loss" in row]
    assert len(measured) == 3
    assert len(set(measured)) == 1
