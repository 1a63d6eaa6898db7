"""Another eval set after traces were bought: nothing is refused, and no question of it is trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Context
from pipeline.errors import StageError
from pipeline.filter.stage import run as run_filter
from pipeline.flags import WorkerFlags
from pipeline.problems.eval_sets import EVAL_SET, barred_problems, read_eval_set
from pipeline.problems.stage import run
from pipeline.recipe.schema import Recipe
from tests.filter_fixtures import (
    context_of,
    filtered_run,
    make_recipe,
    ordinary_stages,
    read_rows,
)
from tests.test_problems import free_questions, write

__all__ = ["context_of"]

ONE = WorkerFlags(workers=1)
QUESTIONS = free_questions(20)
TRAIN, ASKED, OTHERS = QUESTIONS[:8], QUESTIONS[8:12], QUESTIONS[12:]


@pytest.fixture
def asked_with(context_of: Callable[[Recipe], Context], tmp_path: Path) -> Callable[..., Context]:
    """The context of one run, whose problems are made once with ASKED, under another eval set."""

    def context(rows: list[dict[str, Any]], name: str = "test.jsonl", **problems: Any) -> Context:
        tasks = [{"path": write(tmp_path / name, rows)}]
        sources = [{"path": write(tmp_path / "train.jsonl", TRAIN)}]
        return context_of(make_recipe(problems={"sources": sources, **problems}, eval={"tasks": tasks}))

    run(context(ASKED), ONE)
    return context


def manifest_bytes(context: Context) -> bytes:
    return (context.directory("problems") / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("rows", "new"), [(ASKED[:2], 0), (OTHERS, 8), (ASKED + OTHERS, 8)], ids=["smaller", "other", "larger"]
)
def test_another_eval_set_leaves_the_problems_up_to_date(
    asked_with: Callable[..., Context], rows: list[dict[str, Any]], new: int, caplog: pytest.LogCaptureFixture
) -> None:
    context = asked_with(rows, "others.jsonl")
    before = manifest_bytes(context)
    with caplog.at_level("INFO"):
        run(context, ONE)
    assert "problems: up to date" in caplog.text
    assert f"{new} of its {len(rows)} questions are new, and 0 problems are among them" in caplog.text
    assert manifest_bytes(context) == before
    assert barred_problems(context.directory("problems")) == {}


def test_problems_that_another_eval_set_asks_are_found_once_and_named(
    asked_with: Callable[..., Context], caplog: pytest.LogCaptureFixture
) -> None:
    context = asked_with([*OTHERS, TRAIN[3]])
    with caplog.at_level("INFO"):
        run(context, ONE)
    assert "1 problems are among them; filter drops their traces" in caplog.text
    [reason] = barred_problems(context.directory("problems")).values()
    assert reason == f"exact: test: {TRAIN[3]['question']}"
    written = (context.directory("problems") / EVAL_SET).stat().st_mtime_ns
    run(context, ONE)
    assert (context.directory("problems") / EVAL_SET).stat().st_mtime_ns == written
    run(asked_with(ASKED), ONE)
    assert read_eval_set(context.directory("problems")) == {}


def test_other_sources_are_refused_as_ever(asked_with: Callable[..., Context], tmp_path: Path) -> None:
    context = asked_with(OTHERS)
    write(tmp_path / "train.jsonl", TRAIN[:5])
    with pytest.raises(StageError, match=r"problems is finished under a different plan"):
        run(context, ONE)


def test_questions_that_may_not_be_taken_out_are_refused(
    asked_with: Callable[..., Context], context_of: Callable[[Recipe], Context], tmp_path: Path
) -> None:
    kept = asked_with(ASKED, decontaminate=False).recipe.model_copy(update={"name": "kept"})
    run(context_of(kept), ONE)
    taken = asked_with([TRAIN[0]], decontaminate=False).recipe.model_copy(update={"name": "kept"})
    with pytest.raises(StageError, match=r"1 training problems are questions of the eval task test"):
        run(context_of(taken), ONE)


def test_filter_drops_the_traces_of_a_problem_that_is_asked_now(tmp_path: Path) -> None:
    stages = ordinary_stages()
    context = filtered_run(make_recipe(), tmp_path / "runs", stages)
    barred = stages.problems[2]
    found = (
        f'{{"matched": {{"{barred.id}": {{"rule": "exact", "task": "test", "question": "What is it?"}}}}}}'
    )
    (context.directory("problems") / EVAL_SET).write_text(found)
    with pytest.raises(StageError, match=r"inputs\.eval_set: \(not stated\)"):
        run_filter(context, ONE)
    context.directory("filter").rename(tmp_path / "before")
    run_filter(context, ONE)
    kept, dropped = (read_rows(context.directory("filter") / f"{name}.jsonl") for name in ("kept", "dropped"))
    assert barred.id not in {row["problem_id"] for row in kept}
    reasons = {
        (row["rule"], row["reason"], row["detail"]) for row in dropped if row["problem_id"] == barred.id
    }
    assert reasons == {("eval_set", "contaminated", "exact: test: What is it?")}


def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / EVAL_SET).write_text('{"matched": 3}')
    with pytest.raises(StageError, match=r"eval_set.json: is not what problems wrote there .*remove it"):
        read_eval_set(tmp_path)
