"""The judge in eval, on the bill, in the report and in an ablation; and once for real, in vLLM."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.flags import EvalFlags
from eval.stage import run as run_eval
from pipeline.context import Context, load_context
from pipeline.errors import RecipeError, StageError
from pipeline.filter import stage as filter_stage
from pipeline.filter.funnel import show_funnel
from pipeline.flags import AdoptFlags, EngineFlags, ModelFlags, WorkerFlags
from pipeline.judging import stage as judge_stage
from pipeline.plan.command import plan_parts
from pipeline.plan.estimate import Assumed
from pipeline.records import Trace, read_lines
from pipeline.report.ablate import ablate
from pipeline.report.gather import gather
from pipeline.report.markdown import card_markdown, report_markdown
from pipeline.report.page import report_page
from pipeline.report.results import RESULTS, Results, read_results
from pipeline.report.traces import answered_questions, filtered_traces
from pipeline.run.contract import Start, Usage, read_manifests
from pipeline.verify.judge import read_reply
from tests.scripted_judge import is_right, scripted_judge
from tests.served import scripted_server, seen_by
from tests.test_judge import NOWHERE, NUM_PROBLEMS, fresh, judge_flags, sampled, verdicts_in
from tests.test_plan import number, value

__all__ = ["sampled"]  # a fixture
NUM_QUESTIONS = 12


@pytest.fixture(scope="module")
def teacher_url() -> Iterator[str]:
    with scripted_server(0.0) as address:
        yield address


def eval_context(sampled: Path, directory: Path, name: str = "small", **override: Any) -> Context:
    """The recipe of test_judge with a task whose golds are sentences, and the teacher alone compared."""
    fresh(sampled, directory, name)
    rows = [
        {"question": f"Add {n} and {5 * n}.", "answer": f"It is {6 * n}."}
        for n in range(1, NUM_QUESTIONS + 1)
    ]
    (directory / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = directory / f"{name}.yaml"
    text = path.read_text()
    tasks = f"  tasks: [{{path: {directory / 'task.jsonl'}, verifier: judge}}]\n  samples: 2\n  compare: [teacher]\n"
    path.write_text(text[: text.index("  tasks: ")] + tasks)
    overrides = [f"{key}={value}" for key, value in override.items()]
    return load_context(path, directory / "runs", Start(recipe=str(path)), overrides)


def evaluate(context: Context, teacher: str, judge: str, *adopt: str) -> Usage:
    models = ModelFlags(
        model_urls=(f"teacher={teacher}", f"judge={judge}"),
        model_names=("teacher=scripted", "judge=scripted"),
    )
    run_eval(context, EvalFlags(EngineFlags(), models, AdoptFlags(adopt=adopt), WorkerFlags(workers=1)))
    return context.require("eval", "a test").usage


def results_of(context: Context) -> Results:
    return read_results(context.directory("eval") / RESULTS)


def right_share(context: Context) -> float:
    golds = {
        json.loads(line)["id"]: json.loads(line)["gold"]
        for line in (context.directory("eval") / "task.problems.jsonl").open()
    }
    traces = list(read_lines(Trace, context.directory("eval") / "task.teacher.samples-00000.jsonl"))
    right = [is_right({"answer": t.response, "reference": golds[t.problem_id]}) for t in traces]
    return sum(right) / len(right)


def test_eval_asks_the_judge_before_it_scores(sampled: Path, tmp_path: Path, teacher_url: str) -> None:
    context = eval_context(sampled, tmp_path)
    with scripted_judge("right") as url:
        usage = evaluate(context, teacher_url, url)
        asked = seen_by(url)["asked"]
    results = results_of(context)
    score = results.tasks["task"].models["teacher"]
    assert score.pass_at_1 == pytest.approx(right_share(context))
    assert 0 < score.pass_at_1 < 1
    assert score.unverifiable == 0
    assert results.judge is not None
    assert (results.judge.canaries, results.judge.false_accept.total) == (40, 35)
    assert sum(results.judge.samples.values()) == 2 * NUM_QUESTIONS
    assert usage.models["judge"]["sampled"] == len(asked) == results.judge.cases + 40
    assert usage.sampled == 2 * NUM_QUESTIONS + len(asked)
    outputs = context.require("eval", "a test").outputs
    assert {"judge.cases.jsonl", "judge.canaries.jsonl", "judge.audit.jsonl"} <= outputs.keys()
    assert outputs["judge.samples-00000.jsonl"].rows == len(asked)
    # again by force: everything is adopted, and the judge's verdicts are made of its adopted replies
    before = results.to_json()
    evaluate(replace(context, start=replace(context.start, force=True)), NOWHERE, NOWHERE)
    assert results_of(context).to_json() == before


@pytest.mark.slow
def test_eval_refuses_a_judge_that_accepts_everything_and_keeps_all(
    sampled: Path, tmp_path: Path, teacher_url: str
) -> None:
    context = eval_context(sampled, tmp_path)
    with (
        scripted_judge("yes") as url,
        pytest.raises(StageError, match=r"accepted 35 of 35.*max_false_accept"),
    ):
        evaluate(context, teacher_url, url)
    assert not (context.directory("eval") / RESULTS).exists()
    looser = eval_context(sampled, tmp_path, **{"judge.max_false_accept": 1})
    evaluate(looser, NOWHERE, NOWHERE)
    assert results_of(looser).tasks["task"].models["teacher"].pass_at_1 == 1.0
    # another judge: the samples are adopted, the first judge's verdicts are not
    other = eval_context(sampled, tmp_path, **{"judge.max_tokens": 200})
    with scripted_judge("right") as url:
        usage = evaluate(replace(other, start=replace(other.start, force=True)), NOWHERE, url)
    assert usage.models["teacher"]["adopted"] == 2 * NUM_QUESTIONS
    assert results_of(other).tasks["task"].models["teacher"].pass_at_1 == pytest.approx(right_share(other))


def test_a_finished_eval_is_held_to_a_bound_that_was_lowered(
    sampled: Path, tmp_path: Path, teacher_url: str
) -> None:
    loose = {"judge.max_false_accept": 1}
    with scripted_judge("yes") as url:
        evaluate(eval_context(sampled, tmp_path, **loose), teacher_url, url)
    evaluate(eval_context(sampled, tmp_path, **loose), NOWHERE, NOWHERE)  # up to date
    with pytest.raises(StageError, match=r"accepted 35 of 35.*max_false_accept: 0\.02; other_gold 5"):
        evaluate(eval_context(sampled, tmp_path), NOWHERE, NOWHERE)


def test_a_url_for_a_judge_that_the_recipe_does_not_have_is_refused(
    tmp_path: Path, recipe_file: Path
) -> None:
    flags = EvalFlags(models=ModelFlags(model_urls=(f"judge={NOWHERE}",)))
    with pytest.raises(RecipeError, match="no model 'judge' is compared"):
        flags.check(["teacher"], [])
    flags.check(["teacher"], [64], judge=True)


# --- the bill ---


def test_the_bill_counts_the_judge_and_all_samples_of_its_problems(sampled: Path, tmp_path: Path) -> None:
    context = fresh(sampled, tmp_path)
    parts = plan_parts(context, Assumed())
    assert number(parts, "generate", "traces") == 3 * NUM_PROBLEMS
    assert number(parts, "generate", "traces for the judge") == 3 * NUM_PROBLEMS
    assert number(parts, "judge", "its own traces") == 3 * NUM_PROBLEMS
    assert value(parts, "judge", "second opinions") == "0"
    assert value(parts, "judge", "canaries") == "40"
    assert number(parts, "judge", "output tokens") == 100 * (3 * NUM_PROBLEMS + 40)
    asked = context.require("generate", "a test").counts.kept
    assert asked == 3 * NUM_PROBLEMS  # as it came
    hours = [part.hours for part in parts if part.title != "total"]
    assert parts[-1].hours == pytest.approx(sum(hours))
    assert parts[3].title == "judge"
    assert "teacher, judge, train and eval" in parts[-1].lines[0].source
    opinions = fresh(sampled, tmp_path, "opinions", **{"judge.second_opinion": "[math]"})
    parts = plan_parts(opinions, Assumed(unverifiable_share=0.5))
    assert value(parts, "judge", "second opinions") == "0"  # every problem is the judge's own


def test_the_bill_counts_the_samples_of_a_majority(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n}?", "answer": None} for n in range(30)]
    (tmp_path / "open.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from tests.test_plan import context_of

    sources = f"{{path: {tmp_path / 'open.jsonl'}, majority: {{of: 16}}}}, {{reasoning_gym: gcd, size: 10}}"
    parts = plan_parts(context_of(tmp_path, sources), Assumed(pass_rate=1.0))
    assert number(parts, "generate", "traces") == 30 * 16 + 10
    assert number(parts, "generate", "traces for the majority") == 30 * 16
    assert number(parts, "generate", "problems solved") == 10


# --- the report ---


def test_the_report_says_who_judged_and_how_often_it_errs(
    sampled: Path, tmp_path: Path, teacher_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    context = eval_context(sampled, tmp_path)
    with scripted_judge("right") as url:
        judge_stage.run(context, judge_flags(url))
        filter_stage.run(context, WorkerFlags(workers=1))
        evaluate(context, teacher_url, url)
    manifests = read_manifests(context.run, [stage.name for stage in context.stages])
    assert list(manifests) == ["problems", "generate", "judge", "filter", "eval"]
    findings = gather(context, manifests)
    said = f"| traces | {3 * NUM_PROBLEMS} | correct "
    for text in (report_markdown(findings), card_markdown(findings)):
        assert "## Judge" in text
        assert said in text
        assert re.search(rf"\| eval samples \| {2 * NUM_QUESTIONS} \| correct \d+, wrong \d+ \| 40 \|", text)
        assert text.count("0 of 35 = 0.0% [0.0%, 9.9%]") == 2
        assert text.count("0 of 5 = 0.0% [0.0%, 43.4%]") == 2
    assert "| judge | " in report_markdown(findings)  # a row of the cost table
    assert "a model judged" in card_markdown(findings)
    traces = filtered_traces(context.directory("filter"), context.teacher_card.thinking)
    page = report_page(findings, traces, answered_questions(findings))
    assert re.search(r"Judge</h3>", page), page[page.index('id="funnel"') : page.index('id="lengths"')][
        -1500:
    ]
    assert "0 of 35 = 0.0%" in page
    show_funnel(context)
    printed = capsys.readouterr().out
    assert "false accepts on canaries: 0 of 35 = 0.0% [0.0%, 9.9%]" in printed


def test_an_ablation_shares_the_judge_of_its_parent(sampled: Path, tmp_path: Path) -> None:
    context = fresh(sampled, tmp_path)
    with scripted_judge("right") as url:
        judge_stage.run(context, judge_flags(url))
    filter_stage.run(context, WorkerFlags(workers=1))
    sibling = ablate(context, Path(context.start.recipe), [("drop-rule", "correct")])
    child = load_context(sibling, context.runs, Start(recipe=str(sibling)))
    judge_stage.run(child, judge_flags(NOWHERE))
    assert verdicts_in(child) == verdicts_in(context)
    filter_stage.run(child, WorkerFlags(workers=1))


# --- for real ---


@pytest.mark.slow
def test_the_embedded_teacher_is_no_judge(sampled: Path, tmp_path: Path, retort: Any) -> None:
    """Its replies are structured, for vLLM holds them to it, and worth nothing: the canaries tell."""
    context = fresh(sampled, tmp_path)
    arguments = ["judge", "--recipe", context.start.recipe, "--runs", context.runs, "--workers", 1]
    done: subprocess.CompletedProcess[str] = retort(*arguments, "--concurrency", 64, "--kv-cache-gib", 1)
    assert done.returncode == 1, done.stderr
    assert re.search(r"^error: judge: embedded-moe (accepted|did not accept) \d+ of \d+", done.stderr, re.M)
    print(done.stderr)
    replies = list(read_lines(Trace, context.directory("judge") / "judge.samples-00000.jsonl"))
    reasons = [read_reply(reply.response, reply.finish_reason, "</think>").reason for reply in replies]
    assert len(replies) > 100
    assert set(reasons) <= {"equal", "different", "judge_unsure"}, reasons
    with pytest.raises(StageError, match=r"gold answers|must refuse"):  # nor is it asked again
        judge_stage.run(context, judge_flags(NOWHERE))
    bounds = {"judge.max_false_accept": 1, "judge.max_false_reject": 1}
    judge_stage.run(fresh(sampled, tmp_path, **bounds), judge_flags(NOWHERE))
    assert {verdict.layer for verdict in verdicts_in(context).values()} == {"judge"}
