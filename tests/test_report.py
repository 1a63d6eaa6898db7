"""The report of a finished run: three files that agree with results.json, and nothing that runs."""

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import yaml

from eval.compare import compare
from pipeline.context import Context, load_context
from pipeline.errors import RecipeError, StageError
from pipeline.plan.command import plan_parts
from pipeline.plan.estimate import Assumed
from pipeline.recipe.cards import Tags
from pipeline.report.charts import STROKES, budget_chart, colour, loss_chart, rate_chart, scores_chart
from pipeline.report.gather import Findings, ModelFacts, gather
from pipeline.report.markdown import card_markdown, report_markdown
from pipeline.report.page import inert_json, policy, questions_note, source_hash
from pipeline.report.publish import outputs_note
from pipeline.report.results import RESULTS, TaskResult, read_results
from pipeline.report.stage import finished_stages
from pipeline.report.tables import cost_table, forecast_table, hardware_note, what_is_measured
from pipeline.report.traces import answered_questions, clipped, filtered_traces, shares
from pipeline.run.contract import Usage
from pipeline.run.provenance import machines
from tests.conftest import ROOT
from tests.finished_run import ABILITY, HOSTILE, Run, write_report, write_run


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run of which the report is written."""
    context = write_run(Run(tmp_path_factory.mktemp("report"), questions=25, traces=80))
    write_report(context)
    return context


def text_of(context: Context, name: str) -> str:
    """The file, without the tags inside the cells of its tables."""
    text = (context.directory("report") / name).read_text(encoding="utf-8")
    return re.sub(r"(?<=<td class=\"value\">)<span>(.*?)</span> <span>(.*?)</span>", r"\1 \2", text)


def found(context: Context) -> Findings:
    return gather(context, finished_stages(context))


def reloaded(context: Context, *overrides: str) -> Context:
    """The same run under a changed recipe."""
    return load_context(Path(context.start.recipe), context.runs, context.start, list(overrides))


def test_a_stage_of_shards_names_all_their_machines(context: Context) -> None:
    findings = found(context)
    one = findings.manifests["generate"]
    other = one.hardware | {"gpus": ["NVIDIA H100, 81559 MiB"]}
    merged = msgspec.structs.replace(one, hardware=machines([other, one.hardware, other]))
    note = hardware_note(replace(findings, manifests=findings.manifests | {"generate": merged}))
    assert "1 x NVIDIA H100, 81559 MiB (generate: 2 shards)" in note
    assert re.search(r"no GPU \(problems, generate: 1 shards, filter", note)


def test_the_path_of_the_page_is_all_that_is_printed(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (context.directory("report") / "report.html").stat().st_mtime_ns
    write_report(context)
    assert capsys.readouterr().out == f"{context.directory('report') / 'report.html'}\n"
    assert (context.directory("report") / "report.html").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["report.html", "report.md", "README.md"])
def test_every_file_has_every_score_with_its_interval(context: Context, name: str) -> None:
    text = text_of(context, name)
    for entry in read_results(context.directory("eval") / RESULTS).tasks.values():
        assert list(entry.models) == ["base", "student", "teacher"]
        for held in entry.models.values():
            low, high = held.ci95
            assert f"{100 * held.pass_at_1:.1f}% [{100 * low:.1f}, {100 * high:.1f}]" in text


@pytest.mark.parametrize("name", ["report.html", "report.md", "README.md"])
def test_no_score_stands_without_an_interval(context: Context, name: str) -> None:
    """A percentage in a table cell is followed by its interval, or is one."""
    for cell in re.findall(r"(?:\| |<td[^>]*>)([^|<]*%[^|<]*?)(?: \||</td>)", text_of(context, name)):
        assert re.search(r"%.*\[.*\]", cell), cell


def test_the_card_names_licences_provenance_and_limits(context: Context) -> None:
    card = text_of(context, "README.md")
    assert card.startswith("---\nlicense:")
    for part in (
        "Apache-2.0",
        "embedded-moe",
        "embedded-dense",
        "chain_sum",
        "## Limits",
        "## Funnel",
        "allowed",
    ):
        assert part in card


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ("allowed", None),
        (
            "restricted",
            "The licence of the teacher (Guarded-1.0) restricts what may be trained on its outputs: ",
        ),
        (
            "unstated",
            "The teacher's card does not say whether its licence (Guarded-1.0) allows training on its ",
        ),
    ],
)
def test_a_restriction_is_stated_where_it_was_read_alone(
    context: Context, outputs: str, said: str | None
) -> None:
    changes = {"licence": "Guarded-1.0", "training_on_outputs": outputs}
    teachers = {context.teacher_name: context.teacher_card.model_copy(update=changes)}
    findings = found(replace(context, cards=replace(context.cards, teachers=teachers)))
    for text in (card_markdown(findings), report_markdown(findings)):
        text = " ".join(text.replace("\\", "").split())
        assert ("read it before this checkpoint is passed on" in text) is (said is not None)
        assert said is None or said in text
        assert ("restricts" in text) is (outputs == "restricted")


@pytest.mark.parametrize("outputs", ["allowed", "restricted", "unstated"])
def test_what_a_judge_s_licence_says_is_stated_where_its_verdicts_chose_what_was_trained_on(
    context: Context, tmp_path: Path, outputs: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "Who?", "answer": "It was she."}')
    card = f"model: {ROOT / 'teachers/embedded'}, licence: Guarded-1.0, training_on_outputs: {outputs}"
    judged = reloaded(
        context,
        f"judge={{model: {{{card}}}}}",
        f"problems.sources=[{{path: {tmp_path / 'rows.jsonl'}, verifier: judge}}]",
    )
    texts = [card_markdown(found(judged)), report_markdown(found(judged)), outputs_note(judged)]
    (bill,) = (part for part in plan_parts(judged, Assumed()) if part.title == "judge")
    texts.extend(line.source for line in bill.lines if line.name == "training on outputs")
    said = {
        "restricted": "The licence of the judge (Guarded-1.0) restricts what may be trained on its outputs,",
        "unstated": "The judge's card does not say whether its licence (Guarded-1.0) allows training on its",
    }.get(outputs)
    assert len(texts) == (3 if said is None else 4), "and the bill says it before anything is bought"
    for text in texts:
        text = " ".join(text.replace("\\", "").split())
        assert said is None or said in text
        assert ("where it judges traces it chooses what the student is trained on" in text) is (
            said is not None
        )


def test_the_links_at_the_top_are_the_headings(context: Context) -> None:
    page = text_of(context, "report.html")
    nav = re.search(r"<nav>(.*?)</nav>", page)
    assert nav is not None
    headings = re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', page)
    assert re.findall(r'<a href="#([^"]+)">([^<]+)</a>', nav[1]) == headings
    assert ("use", "Use it") in headings


@pytest.mark.parametrize("name", ["report.html", "report.md", "README.md"])
def test_every_file_says_how_to_use_the_student_and_what_made_it(context: Context, name: str) -> None:
    text = html.unescape(text_of(context, name))
    place = "finished/train/checkpoint"  # below the directory of runs, which is a path of this machine
    assert str(context.runs) not in text
    for part in (
        f"place = '{place}'",
        f"vllm serve {place}",
        "python -m pipeline serve-student --recipe finished.yaml",
        "python -m pipeline chat --recipe finished.yaml",
        "What is 12 + 30?",
    ):
        assert part in text
    assert re.search(r"Made on: .*, \d+ cores, [\d.]+ GiB, ", text)


def test_the_card_has_a_task_for_the_hub(context: Context) -> None:
    front = yaml.safe_load(text_of(context, "README.md").split("---\n")[1])
    assert (front["pipeline_tag"], front["library_name"], front["license"]) == (
        "text-generation",
        "transformers",
        "apache-2.0",
    )


def test_the_cost_has_tokens_a_second_of_sampling_and_of_training(context: Context) -> None:
    train = msgspec.structs.replace(
        finished_stages(context)["train"],
        config={"train": {"epochs": 2}},
        usage=Usage(train_seconds=10.0, tokens_per_epoch=5_000),
    )
    manifests = {**finished_stages(context), "train": train}
    rows = {row[0]: row[-1] for row in cost_table(replace(found(context), manifests=manifests)).rows}
    assert rows["train"] == "1,000"
    assert rows["generate"] == f"{120 * 3 * 40 / 42:,.0f}"
    assert rows["problems"] == "-"


def test_the_ledger_has_tokens_money_and_the_forecast(context: Context) -> None:
    text = text_of(context, "report.md")
    assert "Engine time is what an engine spent on sampling" in text
    assert re.search(r"teacher output tokens per kept trace \| \d+", text)
    assert re.search(r"tokens per point gained \| [\d,]+ \[[\d,]+, [\d,]+\]", text)
    assert "0.5 USD an hour" in text
    assert re.search(r"output tokens \| [\d,]+ \[[\d,]+, [\d,]+\] \| [\d,]+ \| 0\.92", text)


def test_the_funnel_names_every_reason(context: Context) -> None:
    text = text_of(context, "report.md")
    for reason in ("duplicate 5", "contaminated 2", "failed: timeout 1", "wrong", "cut"):
        assert reason in text


@pytest.mark.parametrize("name", ["report.html", "report.md", "README.md"])
def test_the_share_kept_stands_by_difficulty(context: Context, name: str) -> None:
    text = re.sub(r"<[^>]+>", " ", text_of(context, name)).replace("|", " ")
    text = " ".join(text.split())
    assert "right of 100 problems with an example of 100 traces kept of 100" in text
    assert "0 3 0 0 6 0 0" in text
    assert "26-50 2 2 100 4 2 50" in text
    assert "1 of the kept are wrong: one trace of a problem that none solves" in text


def test_no_text_of_a_model_reaches_the_page_as_markup(context: Context) -> None:
    page = text_of(context, "report.html")
    assert HOSTILE not in page
    assert "<img src=x" not in page
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert held is not None
    assert not set(held[1]) & set("<>&")
    traces = json.loads(held[1])["traces"]
    assert any(HOSTILE in trace["thinking"] for trace in traces)


def test_the_page_asks_for_nothing_outside(context: Context) -> None:
    page = html.unescape(text_of(context, "report.html"))
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href|srcset)=\"(?!data:|#)", page)
    assert "@import" not in page
    assert "unsafe" not in page


def test_the_policy_holds_the_hashes_of_what_is_embedded(context: Context) -> None:
    page = html.unescape(text_of(context, "report.html"))
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert style is not None
    assert script is not None
    for part in (style[1], script[1]):
        assert f"'{source_hash(part)}'" in page


def test_json_that_goes_into_a_page_cannot_end_its_element() -> None:
    text = inert_json({"key": HOSTILE})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"key": HOSTILE}
    assert "'none'" in policy("", "")


def test_a_larger_run_is_sampled_and_every_reason_is_there() -> None:
    from collections import Counter

    counts = Counter({"kept": 100_000, "wrong": 40_000, "cut": 3, "looping": 500})
    shown = shares(counts, 1_000)
    assert sum(shown.values()) == 1_000
    assert shown["cut"] == 3
    assert shown["kept"] >= 300
    assert min(shown["wrong"], shown["looping"]) >= 200


def test_a_long_text_is_cut_in_the_middle_and_says_so() -> None:
    text = "a" * 5_000 + "b" * 5_000
    cut = clipped(text)
    assert len(cut) < 6_100
    assert "4,000 characters left out" in cut
    assert cut.endswith("b")


def test_without_an_evaluation_there_is_no_report(tmp_path: Path) -> None:
    context = Run(tmp_path).context
    with pytest.raises(StageError, match=r"report needs .*eval/manifest.json.*make eval"):
        write_report(context)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small run without a report, to be copied and changed."""
    runs = tmp_path_factory.mktemp("small")
    write_run(Run(runs, questions=4, traces=8))
    return runs


def copied(small: Path, tmp_path: Path) -> Context:
    shutil.copytree(small, tmp_path / "runs")
    return Run(tmp_path / "runs").context


@pytest.mark.parametrize(
    "name",
    [
        "eval/results.json",
        "eval/chain_sum.student.verdicts.jsonl",
        "filter/kept.jsonl",
        "problems/problems.jsonl",
        "train/metrics.jsonl",
    ],
)
def test_what_was_changed_after_its_stage_is_not_reported(small: Path, tmp_path: Path, name: str) -> None:
    context = copied(small, tmp_path)
    path = context.directory(name.partition("/")[0]) / Path(name).name
    path.write_text(path.read_text().replace("0", "1", 1))
    with pytest.raises(StageError, match=rf"{path.name}: was changed after {path.parent.name} finished"):
        write_report(context)
    path.unlink()
    with pytest.raises(StageError, match=rf"{path.name}: is an output .* and is missing"):
        write_report(context)


def changed_findings(small: Path, tmp_path: Path, extra: str) -> Findings:
    """The findings of a run whose recipe and results name an extra model `other`."""
    context = reloaded(copied(small, tmp_path), f"eval.extra=[{extra}]")
    path = context.directory("eval") / RESULTS
    results = json.loads(path.read_text())
    results["models"]["other"] = {"model": "somewhere", "content": "c" * 64}
    path.write_text(json.dumps(results))
    return found(context)


@pytest.mark.parametrize(
    ("extra", "model", "card", "licence", "outputs"),
    [
        (
            "teacher: deepseek-v3.2",
            "deepseek-ai/DeepSeek-V3.2",
            "teachers/cards/deepseek-v3.2.yaml",
            "MIT",
            "allowed",
        ),
        ("student: gemma-3-270m", "google/gemma-3-270m", "students/cards/gemma-3-270m.yaml", "gemma", "-"),
        (
            "student: gemma-3-270m, checkpoint: x",
            "x",
            "students/cards/gemma-3-270m.yaml",
            "as its base: gemma",
            "-",
        ),
    ],
    ids=["teacher", "student", "checkpoint"],
)
def test_an_extra_model_has_the_licence_of_its_own_card(
    small: Path, tmp_path: Path, extra: str, model: str, card: str, licence: str, outputs: str
) -> None:
    held = changed_findings(small, tmp_path, f"{{name: other, {extra}}}").models["other"]
    assert held == ModelFacts("other", model, card, "c" * 16, licence, outputs, held.tags)


def test_charts_of_long_names_and_many_models_have_room_for_their_bars(
    context: Context, recwarn: pytest.WarningsRecorder
) -> None:
    findings = found(context)
    names = ["base", *[f"other-model-of-a-long-name-{number}" for number in range(6)]]
    task = findings.results.tasks["chain_sum"]
    entry = TaskResult(
        models=dict.fromkeys(names, task.models["base"]),
        paired={},
        budget=dict.fromkeys(names, task.budget["base"]),
    )
    results = msgspec.structs.replace(findings.results, tasks={"a" * 100: entry, "b" * 100: entry})
    part = replace(findings, results=results, models=dict.fromkeys(names, findings.models["base"]))
    assert scores_chart(part).light != budget_chart(part).light
    assert [str(warning.message) for warning in recwarn] == []  # matplotlib warns where no room is left
    assert len({colour(name, names, dark) for name in names for dark in (False, True)}) == 14


def test_the_card_names_a_base_of_the_hub_and_none_that_the_hub_does_not_know(context: Context) -> None:
    assert "base_model" not in text_of(context, "README.md")
    card = card_markdown(found(reloaded(context, "train.student=gemma-3-270m")))
    assert "license: gemma\n" in card
    assert "base_model: google/gemma-3-270m\n" in card


def test_a_forecast_whose_fact_is_unknown_has_a_dash(context: Context) -> None:
    findings = found(context)
    notes = {"forecast": {"tokens_per_second": {"forecast": 900.0, "fact": None, "ratio": None}}}
    manifest = msgspec.structs.replace(findings.manifests["generate"], notes=notes)
    table = forecast_table(replace(findings, manifests={"generate": manifest}))
    assert table is not None
    assert table.rows == [["tokens per second", "900.0", "-", "-"]]


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["all", "chain_sum", "basic_arithmetic"], "pass@1 over the 50 questions of all 2 tasks, 4 samples"),
        (["all", "chain_sum"], "pass@1 over the 25 questions of chain_sum, 4 samples of each."),
        (["chain_sum", "basic_arithmetic"], r"questions of chain_sum, the first task \(tasks have different"),
    ],
    ids=["all", "one task", "different k"],
)
def test_the_headline_says_of_which_questions_it_is(context: Context, tasks: list[str], said: str) -> None:
    findings = found(context)
    held = {task: findings.results.tasks[task] for task in tasks}
    part = replace(findings, results=msgspec.structs.replace(findings.results, tasks=held))
    assert re.search(said, what_is_measured(part))
    assert [task for task, _ in part.pool_first()] == [t for t in tasks if t != "all" or len(tasks) > 2]


@pytest.mark.parametrize(("room", "samples"), [(4_000, 4), (100, 2), (30, 1)], ids=["all", "two", "one"])
def test_the_note_says_how_many_samples_are_shown(
    context: Context, monkeypatch: pytest.MonkeyPatch, room: int, samples: int
) -> None:
    monkeypatch.setattr("pipeline.report.traces.MAX_ANSWERS", 2 * room)
    findings = found(context)
    two = {name: findings.models[name] for name in ("base", "student")}
    answered = answered_questions(replace(findings, models=two))
    assert answered.samples == samples
    for item in answered.shown:
        assert [len(held) for held in item["models"].values()] == [samples, samples]
    each = "the first sample" if samples == 1 else f"the first {samples} samples"
    assert f"with {each} of every model" in questions_note(answered)


def test_a_trace_is_split_by_the_teachers_tags_and_a_chat_of_the_mix_is_shown_whole(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "why?"}]
    chat = [*turns, {"role": "assistant", "content": "so", "reasoning_content": "as"}]
    verdict = {"status": "correct", "reason": "equal", "extracted": "4", "verifier": "math"}
    trace = {"problem_id": "1", "sample": 0, "source": "sums", "finish_reason": "stop", "output_tokens": 9}
    kept = [
        {**trace, "kind": "trace", "response": "[2 + 2] 4", "verdict": verdict},
        {**trace, "kind": "trace", "sample": 1, "response": "[2 +", "verdict": verdict},
        {"kind": "mix", "problem_id": "mix-1", "source": "chats", "messages": chat, "verdict": None},
    ]
    (tmp_path / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    not_drawn = {"kind": "mix", "source": "chats", "rule": "mix", "reason": "not_drawn"}
    (tmp_path / "dropped.jsonl").write_text(2 * (json.dumps(not_drawn) + "\n"))
    tags = Tags(open="[", close="]", opened_by_prompt=False)
    found = filtered_traces(tmp_path, tags)
    assert found.counts == {"kept": 3, "not_drawn": 2}
    assert found.lengths == {"kept": {9: 2}}  # a chat of the mix was not sampled
    entries = {(entry["question"], entry["thinking"], entry["answer"]) for entry in found.shown}
    assert entries >= {("", "2 + 2", "4"), ("", "2 +", ""), ("why?", "as", "so")}
    (tmp_path / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(kept)))
    assert filtered_traces(tmp_path, tags).shown == found.shown


def test_each_stage_that_leaves_a_checkpoint_has_its_curve() -> None:
    rows = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3)]
    charts = [loss_chart(rows, stage) for stage in ("train", "polish")]
    assert [chart.words for chart in charts if chart] == ["training loss by step", "loss of polish by step"]
    assert loss_chart(rows[:1], "train") is None


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on the same questions: `plain`, and `better`, whose student is."""
    runs = tmp_path_factory.mktemp("pair")
    write_run(Run(runs, "plain", questions=25, traces=40))
    write_run(Run(runs, "better", questions=25, traces=40, ability=ABILITY | {"student": 0.95}))
    path = runs / "plain/filter/manifest.json"
    changed = json.loads(path.read_text())
    changed["config"]["rules"] = ["finished"]
    del changed["seal"]  # as an earlier version wrote it
    path.write_text(json.dumps(changed))
    return runs


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_an_ablation_is_shown_beside_its_parent(pair: Path, name: str) -> None:
    context = Run(pair, "better").context
    write_report(context, "plain")
    text = html.unescape(text_of(context, name))
    assert "Against plain" in text
    assert re.search(r"filter\.rules: .*finished", text)
    assert "Differences are better - plain on the same questions" in text
    assert "The budgets are equal within 5%." in text
    printed = compare(pair / "plain", pair / "better")
    (row,) = [line for line in printed.splitlines() if line.startswith("| all |")]
    for cell in row.strip("| ").split(" | "):
        assert html.unescape(cell) in text, cell
    manifest = context.manifest("report")
    write_report(context)  # as the next `make all` does
    assert context.manifest("report") == manifest


def test_a_parent_that_is_not_finished_is_said_and_its_results_are_taken_in_by_force(pair: Path) -> None:
    runs = pair.parent / "late"
    shutil.copytree(pair / "better", runs / "better", ignore=shutil.ignore_patterns("report"))
    (runs / "plain").mkdir()
    context = Run(runs, "better").context
    write_report(context, "plain")
    assert "Not compared: compare needs" in text_of(context, "report.md")
    shutil.copytree(pair / "plain", runs / "plain", dirs_exist_ok=True)
    with pytest.raises(StageError, match=r"inputs\.against: \(not stated\) -> "):
        write_report(context)
    write_report(replace(context, start=replace(context.start, force=True)))
    assert "Differences are better - plain" in text_of(context, "report.md")


def test_a_run_that_is_not_there_cannot_be_set_against(pair: Path) -> None:
    with pytest.raises(RecipeError, match=r"--against plane: .* does not exist; did you mean 'plain'\?"):
        write_report(Run(pair, "better").context, "plane")
    (pair / "better/against.json").write_text("[]")
    with pytest.raises(StageError, match=r"against\.json: does not hold .*; remove it"):
        write_report(Run(pair, "better").context)
    (pair / "better/against.json").unlink()


def test_two_curves_that_lie_on_each_other_can_be_told_apart() -> None:
    """No two have the same dashes, marker and thickness, and what is drawn later is thinner."""
    dashes, markers, thick = zip(*STROKES, strict=True)
    assert len(set(dashes)) == len(set(markers)) == len(STROKES)
    assert list(thick) == sorted(thick, reverse=True)


def test_the_learning_rate_and_the_loss_held_out_are_drawn_where_they_were_logged() -> None:
    rows = [{"step": step, "loss": 2 / step, "learning_rate": 1e-3 / step} for step in range(1, 9)]
    rate = rate_chart(rows, "train")
    assert rate is not None
    assert rate.words == "learning rate of train by step"
    assert rate_chart([{"step": 1, "loss": 1.0}], "train") is None
    plain, measured = (loss_chart([*rows, *more], "train") for more in ([], [{"step": 8, "eval_loss": 0.4}]))
    assert plain is not None
    assert measured is not None
    assert plain.light != measured.light
