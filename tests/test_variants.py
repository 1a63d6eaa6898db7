"""Variants: a sibling for each combination of values, and nothing that is equal made twice."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from eval.compare import compared
from eval.flags import EvalFlags
from eval.stage import run as run_eval
from pipeline.context import Context, load_context
from pipeline.errors import RecipeError, StageError
from pipeline.filter.stage import run as run_filter
from pipeline.flags import AdoptFlags, EngineFlags, ModelFlags, TrainFlags, WorkerFlags
from pipeline.problems.stage import run as run_problems
from pipeline.report.board import groups_of, read_board, show_board, spread_table
from pipeline.report.stage import run as run_report
from pipeline.report.variants import Variant, axes_of, run_variants, write_variants
from pipeline.run.contract import Counts
from pipeline.run.stages import Stage
from students.train import plan_of as train_plan
from students.train import run as run_train
from teachers.generate import GenerateFlags
from teachers.generate import plan_of as generate_plan
from teachers.generate import run as run_generate
from tests.browser import CHROMIUM, Browser
from tests.finished_run import finish
from tests.served import scripted_server, seen_by

ONE = WorkerFlags(workers=1)
RATES = "train.learning_rate=1e-3,2e-3,4e-3"
SEEDS = "train.seed=0,1"


def finishing(calls: list[tuple[str, str, list[str]]], *, failing: str = "") -> Callable[..., int]:
    """A launch that finishes stages with a file each, and says what it was asked for."""

    def launch(stage: Stage, variant: Variant, adopt: Sequence[str]) -> int:
        name = variant.context.recipe.name
        calls.append((stage.name, name, list(adopt)))
        if name == failing and stage.name == "train":
            return 1
        finish(variant.context, stage.name, Counts(0, 0), {"made": name.encode()})
        return 0

    return launch


def parent_of(recipe_file: Path) -> Context:
    return load_context(recipe_file, recipe_file.parent / "runs")


def test_every_combination_is_a_recipe_that_differs_in_it_alone(recipe_file: Path) -> None:
    parent = parent_of(recipe_file)
    variants = write_variants(parent, recipe_file, [RATES, SEEDS, "problems.sources.0.size=8"])
    assert len(variants) == 6
    assert variants[-1].path.name == "small-learning_rate-0.004-seed-1-size-8.yaml"
    loaded = load_context(variants[-1].path, parent.runs).recipe
    assert (loaded.train.learning_rate, loaded.train_seed, loaded.generate_seed) == (0.004, 1, 0)
    assert loaded.problems.sources[0].size == 8
    changed = {"name": loaded.name, "train": loaded.train, "problems": loaded.problems}
    assert parent.recipe.model_copy(update=changed) == loaded
    before = variants[0].path.read_bytes()
    assert (
        write_variants(parent, recipe_file, [RATES, SEEDS, "problems.sources.0.size=8"])[0].path
        == variants[0].path
    )
    assert variants[0].path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], r"give --set KEY=VALUE,VALUE"),
        (["train.epochs"], r"--set train.epochs: expected key=value,value"),
        (["train.epochs="], r"expected key=value,value"),
        (["name=a,b"], r"no stage reads this key"),
        (["trian.epochs=1"], r"no stage reads this key; sections are problems, .*seed"),
        (["train.epohcs=1,2"], r"small-epohcs-1.yaml: train.epohcs: unknown key; did you mean 'epochs'"),
        (["train.epochs=1", "train.epochs=2"], r"each key once"),
        (["train.epochs=1,1"], r"two of them are alike"),
        (["seed=[1,2"], r"--set seed=\[1,2: line 1 is not valid YAML"),
        ([f"seed={','.join(map(str, range(201)))}"], r"201 combinations are too many"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_no_variant_is_one_error_and_writes_nothing(
    recipe_file: Path, changes: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        write_variants(parent_of(recipe_file), recipe_file, changes)
    assert [path.name for path in recipe_file.parent.glob("*.yaml")] == ["small.yaml"]


def test_stages_that_no_value_reaches_are_made_once_and_shared(recipe_file: Path) -> None:
    parent, calls = parent_of(recipe_file), list[tuple[str, str, list[str]]]()
    changes = ["generate.seed=0,1", "train.epochs=1,2"]
    variants = write_variants(parent, recipe_file, changes)
    run_variants(parent, variants, axes_of(changes), finishing(calls))
    names = [variant.context.recipe.name for variant in variants]
    made = {stage: [name for called, name, _ in calls if called == stage] for stage, _, _ in calls}
    assert made["problems"] == names[:1]
    assert made["generate"] == made["filter"] == [names[0], names[2]]
    assert made["train"] == made["eval"] == made["report"] == names
    held = [variant.context.directory("problems") / "made" for variant in variants]
    assert len({path.stat().st_ino for path in held}) == 1
    [adopted] = [adopt for stage, name, adopt in calls if (stage, name) == ("eval", names[-1])]
    assert adopted == names[:-1]


def test_the_parent_s_stages_are_taken_and_asked_whether_they_still_hold(recipe_file: Path) -> None:
    parent, calls = parent_of(recipe_file), list[tuple[str, str, list[str]]]()
    for stage in ("problems", "generate"):
        finish(parent, stage, Counts(0, 0), {"made": b"parent"})
    variants = write_variants(parent, recipe_file, ["train.seed=0,1"])
    run_variants(parent, variants, axes_of(["train.seed=0,1"]), finishing(calls))
    assert [name for stage, name, _ in calls if stage in ("problems", "generate")] == ["small-seed-0"] * 2
    for variant in variants:
        assert (variant.context.directory("generate") / "made").read_bytes() == b"parent"
        assert (variant.context.directory("filter") / "made").read_bytes() == b"small-seed-0"


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ("train.student=qwen3-4b", "filter"),
        ("train.student.thinking=none", "filter"),
        ("train.students=1", "train"),
        ("eval.tasks.0.size=50,60", "problems"),
        ("eval.samples=1", "eval"),
        ("seed=1", "problems"),
    ],
)
def test_the_first_stage_that_a_key_reaches(change: str, stage: str) -> None:
    [axis] = axes_of([change])
    assert axis.first_stage == stage


def test_a_variant_that_fails_stops_no_other_and_is_named(recipe_file: Path) -> None:
    parent, calls = parent_of(recipe_file), list[tuple[str, str, list[str]]]()
    variants = write_variants(parent, recipe_file, ["train.seed=0,1"])
    with pytest.raises(StageError, match=r"1 of 2 did not finish: small-seed-0 \(train\)"):
        run_variants(parent, variants, axes_of(["train.seed=0,1"]), finishing(calls, failing="small-seed-0"))
    assert variants[1].context.manifest("report") is not None
    run_variants(parent, variants, axes_of(["train.seed=0,1"]), finishing(calls))
    assert variants[0].context.manifest("report") is not None


def test_a_stage_that_was_begun_and_not_finished_is_not_written_over(recipe_file: Path) -> None:
    parent = parent_of(recipe_file)
    variants = write_variants(parent, recipe_file, ["train.seed=0,1"])
    begun = variants[1].context.directory("generate")
    begun.mkdir(parents=True)
    (begun / "mine").write_text("mine")
    with pytest.raises(StageError, match=r"generate: exists and is not finished; nothing was touched"):
        run_variants(parent, variants, axes_of(["train.seed=0,1"]), finishing([]))
    assert (begun / "mine").read_text() == "mine"


def test_a_stated_seed_bears_identity_by_its_value_alone(recipe_file: Path) -> None:
    """The recipe's seed stated again is the same plan, another one is another."""
    parent = parent_of(recipe_file)
    finish(parent, "problems", Counts(0, 0), {"problems.jsonl": b""})
    made = parent.require("problems", "the test")

    def plans(*overrides: str) -> tuple[str, str]:
        context = load_context(recipe_file, parent.runs, overrides=list(overrides))
        return generate_plan(context, made).fingerprint, train_plan(context, context.base, made).fingerprint

    plain = plans()
    assert plans("generate.seed=0", "train.seed=0") == plain
    other = plans("generate.seed=7", "train.seed=7")
    assert other[0] != plain[0]
    assert other[1] != plain[1]
    assert plans("train.seed=7") == (plain[0], other[1])


RECIPE = """\
name: sums
problems: {{sources: [{{path: {folder}/train.jsonl, licence: CC0-1.0}}]}}
generate:
  teacher: embedded-moe
  samples: {{keep: 1, max: 4}}
  sampling: {{temperature: 1.0, max_tokens: 160}}
filter: {{rules: [finished, closed_thinking, correct]}}
train: {{student: embedded-dense, method: full, epochs: 2, learning_rate: 1.0e-3, batch_size: 8, max_length: 256}}
eval: {{tasks: [{{path: {folder}/test.jsonl}}], samples: 2}}
"""


def served(url: str, runs: Path) -> Callable[..., int]:
    """Every stage in this process, its models at a scripted server; the training is real."""
    engine = EngineFlags(engine="server", urls=(url,), served_name="scripted")
    names = ("base", "student", "teacher")
    models = ModelFlags(
        model_urls=tuple(f"{name}={url}" for name in names),
        model_names=tuple(f"{name}=scripted" for name in names),
    )

    def launch(stage: Stage, variant: Variant, adopt: Sequence[str]) -> int:
        context, taken = variant.context, AdoptFlags(adopt=tuple(adopt))
        stages: dict[str, Callable[[], None]] = {
            "problems": lambda: run_problems(context, ONE),
            "generate": lambda: run_generate(context, GenerateFlags(engine, taken, ONE)),
            "filter": lambda: run_filter(context, ONE),
            "train": lambda: run_train(context, TrainFlags(device="cpu", log_every=1)),
            "eval": lambda: run_eval(context, EvalFlags(EngineFlags(), models, taken, ONE)),
            "report": lambda: run_report(context, compared),
        }
        stages[stage.name]()
        return 0

    return launch


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Context, list[Variant], str]]:
    """Three learning rates on two seeds, each trained, measured and reported."""
    folder = tmp_path_factory.mktemp("variants")
    sums = {"train": "What is {} + {}?", "test": "Adding up {} and {} gives which total?"}
    for name, text in sums.items():
        rows = [{"question": text.format(n, n + 5), "answer": str(2 * n + 5)} for n in range(10, 50)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "sums.yaml"
    path.write_text(RECIPE.format(folder=folder))
    parent = load_context(path, folder / "runs")
    variants = write_variants(parent, path, [RATES, SEEDS])
    with scripted_server(0.0) as url:
        run_variants(parent, variants, axes_of([RATES, SEEDS]), served(url, parent.runs))
        yield parent, variants, url


@pytest.mark.slow
def test_no_trace_and_no_answer_is_bought_twice(swept: tuple[Context, list[Variant], str]) -> None:
    _, variants, url = swept
    seen = seen_by(url)
    asked = [key for key in seen if key.startswith("Adding up")]
    bought = seen.keys() - set(asked)
    assert {seen[key] for key in bought} == {1}
    assert len(asked) == 80  # forty questions, two samples
    assert {seen[key] for key in asked} == {8}  # of the base, of the teacher, and of six students
    digests = [variant.context.manifest("train") for variant in variants]
    assert len({manifest.digest(["checkpoint/model.safetensors"]) for manifest in digests if manifest}) == 6


@pytest.mark.slow
def test_the_board_shows_all_of_them_and_the_spread_over_seeds(
    swept: tuple[Context, list[Variant], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, _, _ = swept
    [group] = groups_of(read_board(parent.runs, []))
    assert len(group.runs) == 6
    assert group.differing == ["train.learning_rate", "train.seed"]
    spread = spread_table(group)
    assert spread is not None
    assert [row[:2] for row in spread.rows] == [
        [f"train.learning_rate {rate}", "2"] for rate in (0.001, 0.002, 0.004)
    ]
    show_board(parent.runs, [])
    page = Path(capsys.readouterr().out.splitlines()[-1])
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian's package: chromium)")
    with Browser() as browser:
        for width, dark in ((360, False), (1200, True)):
            browser.open(page, width, dark)
            assert browser.requests == [page.as_uri()]
            assert browser.complaints == []
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            if folder := os.environ.get("SCREENSHOTS"):
                browser.screenshot(Path(folder) / f"board-{width}.png", 1600)


@pytest.mark.slow
def test_the_command_shares_a_finished_run_and_prints_the_board(
    swept: tuple[Context, list[Variant], str], retort: Callable[..., CompletedProcess[str]]
) -> None:
    """Nothing but the report is made: no engine starts, though no server is named."""
    parent, variants, _ = swept
    flags = ["--recipe", variants[0].path, "--runs", parent.runs, "--set", "report.currency=EUR,CHF"]
    done = retort("variants", *flags, "--run")
    assert done.returncode == 0, done.stderr
    names = [f"{variants[0].context.recipe.name}-currency-{currency}" for currency in ("EUR", "CHF")]
    assert done.stdout.splitlines()[:2] == [str(variants[0].path.with_name(f"{name}.yaml")) for name in names]
    assert done.stdout.splitlines()[-1] == str(parent.runs / "board.html")
    for name in names:
        assert (parent.runs / name / "report/report.html").is_file()
        checkpoint = parent.runs / name / "train/checkpoint/model.safetensors"
        assert checkpoint.samefile(variants[0].context.checkpoint / "model.safetensors")
    assert "starting" not in done.stderr
