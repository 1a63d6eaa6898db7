"""A recipe with polish, from its schema to its bill, its scores and its report: which student is which."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.compare import compare
from eval.results import pairs_of
from eval.stage import inputs_of, trained_in
from pipeline.__main__ import app
from pipeline.context import Context, load_context
from pipeline.errors import RecipeError, StageError
from pipeline.plan.command import plan_parts, polish_memory_lines
from pipeline.plan.estimate import Assumed, replicate, size_of
from pipeline.recipe.cards import ModelSize
from pipeline.recipe.schema import Recipe, load_recipe
from pipeline.recipe.strict_yaml import validate
from pipeline.records import Example, write_examples
from pipeline.report.charts import polish_chart
from pipeline.report.gather import gather
from pipeline.report.markdown import card_markdown
from pipeline.report.publish import run as publish
from pipeline.report.stage import finished_stages
from pipeline.report.tables import ledger_table, polish_note, polish_table
from pipeline.run.contract import Counts
from tests.conftest import ROOT
from tests.finished_run import ABILITY, Run, finish, write_report, write_run

POLISH = "polish={rounds: 20, problems_per_round: 64, max_tokens: 100, learning_rate: 1.0e-4}"
HELD = "train.held_out_share=0.05"


@pytest.fixture(scope="module")
def polished(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A finished run with polish of which the report is written, beside one without."""
    runs = tmp_path_factory.mktemp("polished")
    able = ABILITY | {"unpolished": 0.4}
    write_run(Run(runs, "plain", questions=12, traces=20))
    context = write_run(Run(runs, "polished", questions=12, traces=20, polished=True, ability=able))
    write_report(context)
    return context


def test_both_students_are_measured_unless_the_recipe_says_otherwise(recipe_file: Path) -> None:
    text = recipe_file.read_text().replace("  compare: [base, student, teacher]\n", "")
    recipe_file.write_text(text)
    assert load_recipe(recipe_file).eval.compare == ["base", "student", "teacher"]
    both = load_recipe(recipe_file, [POLISH, HELD])
    assert both.eval.compare == ["base", "unpolished", "student", "teacher"]
    assert load_recipe(recipe_file, [POLISH, HELD, "eval.compare=[student]"]).eval.compare == ["student"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["eval.compare=[unpolished, student]"], "this recipe has no section polish"),
        ([POLISH], r"128 problems are to be answered on which nothing was trained.*held_out_share"),
    ],
    ids=["unpolished", "held-out"],
)
def test_a_recipe_that_cannot_be_measured_is_refused(
    recipe_file: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe_file, overrides)


def test_the_student_is_the_last_checkpoint_and_unpolished_the_one_before(recipe_file: Path) -> None:
    plain = load_context(recipe_file, Path("runs"))
    assert plain.student_stages == {"student": "train"}
    both = load_context(recipe_file, Path("runs"), overrides=[POLISH, HELD])
    assert both.student_stages == {"student": "polish", "unpolished": "train"}
    assert both.checkpoint == Path("runs/small/polish/checkpoint")
    assert trained_in(both) == ["polish"]
    some = load_context(recipe_file, Path("runs"), overrides=[POLISH, HELD, "eval.compare=[unpolished]"])
    assert trained_in(some) == ["train"]


def test_eval_waits_for_the_stages_that_trained_what_it_compares(recipe_file: Path, tmp_path: Path) -> None:
    context = load_context(recipe_file, tmp_path / "runs", overrides=[POLISH, HELD])
    with pytest.raises(StageError, match="problems has not run"):
        inputs_of(context)


def test_the_polished_student_is_set_against_the_unpolished_one() -> None:
    names = ["base", "unpolished", "student", "teacher"]
    assert ("student", "unpolished") in pairs_of(names)
    assert ("student", "unpolished") not in pairs_of(["base", "student", "teacher"])
    assert ("other", "unpolished") in pairs_of([*names, "other"])
    assert ("unpolished", "student") not in pairs_of(names)


def test_the_bill_of_polish_by_hand(recipe_file: Path) -> None:
    """20 rounds of 64 responses of half of 200 tokens, and three evaluations of 128."""
    override = [POLISH, HELD, "generate.sampling={temperature: 1.0, max_tokens: 200}"]
    context = load_context(recipe_file, Path("runs"), overrides=override)
    assumed = Assumed(problems=1000, tokens_share=0.5, prompt_tokens=50, devices=1)
    parts = {part.title: part for part in plan_parts(context, assumed)}
    lines = {line.name: line.value for line in parts["polish"].lines}
    assert lines["responses"] == "1,280"
    assert lines["sampled tokens"] == lines["scored tokens"] == "128,000"
    assert lines["tokens held out"] == f"{3 * 128 * 100:,}"
    assert list(parts)[list(parts).index("train") + 1] == "polish"
    total = sum(part.hours for title, part in parts.items() if title != "total")
    assert parts["total"].hours == pytest.approx(total)
    assert parts["polish"].hours > 0


@pytest.mark.parametrize(
    ("problems", "max_tokens", "rows"), [(64, 200, 64), (1024, 974, 128), (64, 131072 // 4 - 50, 4)]
)
def test_sampling_is_billed_in_batches_of_the_sampler(
    recipe_file: Path, problems: int, max_tokens: int, rows: int
) -> None:
    """A batch is what a round asks, as far as it fits, and never the sequences that an engine would hold."""
    override = [POLISH, HELD, f"polish.problems_per_round={problems}", f"polish.max_tokens={max_tokens}"]
    context = load_context(recipe_file, Path("runs"), overrides=override)
    assumed = Assumed(problems=2000, tokens_share=1.0, prompt_tokens=50, devices=1)
    parts = {part.title: part for part in plan_parts(context, assumed)}
    [line] = [line for line in parts["polish"].lines if line.name == "hours of sampling"]
    each = min(context.recipe.generate.sampling.max_tokens, max_tokens)
    student = size_of(context.student_card)[0]
    rate = replicate(student, each + 50, 1, replace(assumed, concurrency=rows)).tokens_per_second
    assert f"{rate:,.0f} tokens a second: {rows} rows a batch" in line.source
    hours = (20 * problems + 3 * 128) * each / rate / 3600
    assert float(line.value) == pytest.approx(hours, abs=6e-4)


@pytest.mark.parametrize(
    ("memory", "overrides", "said"),
    [
        (80, [], "no room for them beside the student: serve it on other devices (make serve-teacher there"),
        (80, ["polish.divergence=reverse_kl"], "beside the student: take polish.divergence: sampled, and"),
        (
            141,
            [],
            "polish --engine server --url here); or run vLLM beside the student: --gpu-memory-share 0.65",
        ),
        (141, ["polish.divergence=reverse_kl"], "beside the student, as divergence: reverse_kl asks"),
    ],
)
def test_the_plan_says_where_the_teacher_of_polish_can_be(
    memory: float, overrides: list[str], said: str
) -> None:
    """One GPU, a teacher of 30 billion parameters and a student of 1.7."""
    recipe = ROOT / "recipes/qwen3_30b-qwen3_1.7b-gsm8k_math-polish.yaml"
    context = load_context(recipe, Path("runs"), overrides=overrides)
    assumed = Assumed(problems=1000, devices=1, memory=memory)
    parts = {part.title: part for part in plan_parts(context, assumed)}
    lines = {line.name: line for line in parts["polish"].lines}
    assert said in lines["weights of the teacher"].source
    assert lines["memory of the student"].source == f"of a device of {memory:g} GiB (memory)"
    if not overrides:  # 8,192 tokens by 151,936 rows, three numbers of 4 bytes each; nothing is in tiles
        assert f"logits {8192 * 151_936 * 12 / 2**30:.2f}" in lines["of it, in GiB"].source


def test_the_plan_names_the_model_that_no_device_holds() -> None:
    recipe = ROOT / "recipes/qwen3_30b-qwen3_1.7b-gsm8k_math-polish.yaml"
    context = load_context(recipe, Path("runs"))
    with pytest.raises(RecipeError, match=r"the teacher: 1 device of 24 GiB cannot hold 56.8 .*devices=N"):
        plan_parts(context, Assumed(problems=1000, devices=1, memory=24))


def test_a_student_that_polish_cannot_hold_is_told_how_to_shrink(recipe_file: Path) -> None:
    size = ModelSize(
        parameters=8e9, active_parameters=8e9, layers=36, kv_values_per_layer=2048, hidden=4096, mlp=12288,
        queries=4096, vocabulary=151_936,
    )  # fmt: skip
    section = load_context(recipe_file, Path("runs"), overrides=[POLISH, HELD]).recipe.polish
    assert section is not None
    student, _, teacher = polish_memory_lines(section, size, size, 400, 2**17, Assumed(memory=80))
    assert student.source == (
        "more than a device of 80 GiB (memory) has: lower polish.max_tokens, take polish.method: lora"
    )
    assert "no room for them" in teacher.source


@pytest.mark.parametrize(("rounds", "every", "times"), [(1, 10, 2), (20, 10, 3), (25, 10, 4), (3, 1, 4)])
def test_the_bill_has_every_evaluation(recipe_file: Path, rounds: int, every: int, times: int) -> None:
    """Before the first round, after every so many, and after the last one."""
    override = [POLISH, HELD, f"polish.rounds={rounds}", f"polish.evaluate_every={every}"]
    context = load_context(recipe_file, Path("runs"), overrides=override)
    assumed = Assumed(problems=1000, tokens_share=0.5, prompt_tokens=50, devices=1)
    parts = {part.title: part for part in plan_parts(context, assumed)}
    lines = {line.name: line.value for line in parts["polish"].lines}
    assert lines["tokens held out"] == f"{times * 128 * 100:,}"


def test_the_report_has_the_curve_and_the_cost_beside_the_score(polished: Context) -> None:
    findings = gather(polished, finished_stages(polished))
    curve = polish_table(findings)
    assert curve is not None
    assert [row[0] for row in curve.rows] == ["0", "10", "20"]
    assert curve.head == [
        "after round",
        "divergence",
        "right, of its own",
        "right, held out",
        "tokens",
        "cut",
        "entropy",
    ]
    assert curve.rows[2] == ["20", "-", "90.0%", "80.0%", "80", "1.0%", "-"]
    note = polish_note(findings)
    assert note is not None
    assert "20 of 20 rounds of 32 problems x 1" in note
    assert "after 20 rounds, the best on held-out problems" in note
    assert "student - unpolished: +" in note
    ledger = ledger_table(findings)
    assert ledger is not None
    costs = dict(ledger.rows)
    assert costs["polish: tokens that the student sampled"] == "50,000"
    assert costs["polish: tokens that the teacher scored"] == "40,000"
    assert costs["polish: time"] == "30 s sampling, 12 s scoring, 60 s training, 102 s in all"
    assert costs["polish: sampling, scoring and training at 0.5 USD an hour"] == "0.0142 USD"
    assert "[" in costs["polish: tokens scored per point gained by it"]


def test_the_curve_of_sampled_tokens_has_the_importance_ratio(polished: Context) -> None:
    findings = gather(polished, finished_stages(polished))
    rows = [
        row | ({"importance_ratio": 1.02} if row["round"] < 20 else {}) for row in findings.metrics["polish"]
    ]
    curve = polish_table(replace(findings, metrics={**findings.metrics, "polish": rows}))
    assert curve is not None
    assert [curve.head[-1], *(row[-1] for row in curve.rows)] == ["importance ratio", "1.020", "1.020", "-"]


def test_page_text_and_card_say_that_the_student_was_polished(polished: Context) -> None:
    directory = polished.directory("report")
    page, text, card = ((directory / name).read_text() for name in ("report.html", "report.md", "README.md"))
    for held in (page, text, card):
        assert "then polished by it" in held
        assert "rounds of 32 problems" in held
    assert 'id="polish"' in page
    assert "share of right responses by round of polish" in page
    assert "on-policy-distillation" in card
    assert "polish/checkpoint" in text
    assert "train/checkpoint" in text  # where unpolished is


def test_the_report_of_a_run_without_polish_says_nothing_of_it(polished: Context) -> None:
    plain = Run(polished.runs, "plain").context
    findings = gather(plain, finished_stages(plain))
    assert polish_note(findings) is None
    assert polish_table(findings) is None
    assert polish_chart(findings) is None
    assert "polish" not in card_markdown(findings).lower()


def test_publish_lays_out_what_polish_left(tmp_path: Path) -> None:
    context = Run(tmp_path, polished=True).context
    chat = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    write_examples(tmp_path / "examples.parquet", [Example("0", 0, chat, 5, 1, "sums", "MIT")])
    examples = {"examples.parquet": (tmp_path / "examples.parquet").read_bytes()}
    finish(context, "filter", Counts(1, 1), examples)
    for stage in ("train", "polish"):
        finish(context, stage, Counts(1, 1), {"checkpoint/model.safetensors": stage.encode()})
    finish(context, "report", Counts(0, 0), {"README.md": b"# the card\n"})
    publish(context, None, None, dry_run=True)
    assert (context.directory("publish") / "model/model.safetensors").read_bytes() == b"polish"
    assert context.student.model.endswith("polish/checkpoint")  # what chat and serve-student start


def test_what_polish_took_is_a_budget_of_its_own(polished: Context) -> None:
    text = compare(polished.runs / "plain", polished.runs / "polished")
    assert "| tokens sampled in polish | - | 50,000 | no |" in text
    assert "| tokens scored in polish | - | 40,000 | no |" in text
    assert "NOT at equal budgets" in text


def test_the_paired_difference_of_both_students_is_in_the_results(polished: Context) -> None:
    results: dict[str, Any] = json.loads((polished.directory("eval") / "results.json").read_text())
    held = results["tasks"]["all"]
    assert list(held)[:4] == ["base", "unpolished", "student", "teacher"]
    assert held["paired"]["student-unpolished"]["delta"] > 0


def test_what_the_page_about_polish_shows_is_a_recipe_and_commands(recipe_file: Path) -> None:
    page = (ROOT / "docs/polish.md").read_text()
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    values, shown = yaml.safe_load(recipe_file.read_text()), yaml.safe_load(block)
    for section, keys in shown.items():
        values[section] = values.get(section, {}) | keys
    assert validate(Recipe, values, "docs/polish.md").polish is not None
    named = re.findall(r"recipes/[\w.-]+\.yaml", page)
    assert named
    assert all((ROOT / name).is_file() for name in named)
    commands = re.findall(r"python -m pipeline (\w+)", page)
    assert set(commands) <= {command.name for command in app.registered_commands}


@pytest.mark.parametrize("name", ["demo-polish", "qwen3_30b-qwen3_1.7b-gsm8k_math-polish"])
def test_recipes_with_polish_measure_both_students(name: str) -> None:
    context = load_context(ROOT / f"recipes/{name}.yaml", Path("runs"))
    assert context.recipe.eval.compare == ["base", "unpolished", "student", "teacher"]
    assert context.student_stage == "polish"
