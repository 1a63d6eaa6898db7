"""All runs side by side: what compares stands together, what differs is named, seeds are one experiment."""

import re
from pathlib import Path

import msgspec
import pytest

from pipeline.errors import RecipeError
from pipeline.report.board import (
    BoardRun,
    Group,
    flattened,
    groups_of,
    mean_interval,
    read_board,
    scores_table,
    show_board,
    spread_table,
    taken,
)
from pipeline.report.board_page import without_start
from pipeline.report.page import source_hash
from pipeline.run.contract import Counts, Plan, Usage, begin
from tests.finished_run import Run, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that asked the same questions, one of which has a report, and one that asked others."""
    runs = tmp_path_factory.mktemp("board")
    for name, questions, share in (("first", 12, 0.4), ("second", 12, 0.9), ("other", 8, 0.5)):
        ability = {"base": 0.1, "student": share, "teacher": 0.9}
        context = write_run(Run(runs, name, questions=questions, traces=20, ability=ability))
    config = {"report": {"price_per_engine_hour": 0.5, "price": {"input": 1, "output": 1000}}}
    stage = begin(runs / "second" / "report", Plan("report", 1, config, {}, 0), context.start)
    assert stage is not None
    with stage:
        stage.finish(Counts(0, 0), {})
    return runs


def with_plan(run: BoardRun, name: str, seed: int, **train: object) -> BoardRun:
    """The same scores under another train plan."""
    manifest = msgspec.structs.replace(run.manifests["train"], config={"train": train}, seed=seed)
    return BoardRun(run.path.with_name(name), {**run.manifests, "train": manifest}, run.results)


def test_scores_stand_beside_each_other_where_they_were_measured_alike(runs: Path) -> None:
    groups = groups_of(read_board(runs, []))
    assert [[run.name for run in group.runs] for group in groups] == [["first", "second"], ["other"]]
    assert groups[0].measured == "all of chain_sum, basic_arithmetic: 24 questions, 4 samples of each"
    table = scores_table(groups[0])
    assert table.head[:6] == ["run", "what differs", "student", "base", "teacher", "student - base"]
    for run, row in zip(groups[0].runs, table.rows, strict=True):
        held = run.headline.models["student"]
        assert row[2] == f"{100 * held.pass_at_1:.1f}% [{100 * held.ci95[0]:.1f}, {100 * held.ci95[1]:.1f}]"
        assert re.fullmatch(r"[+-][\d.]+ points \[[+-][\d.]+, [+-][\d.]+\]", row[5])
    assert [row[-1] for row in table.rows] == ["-", "3.61 USD"]  # a price stands in the recipe of a report


def test_what_polish_scores_and_trains_costs_as_what_it_samples_does(runs: Path) -> None:
    [run] = read_board(runs, ["second"])
    usage = Usage(engine_seconds=3600.0, scoring_seconds=7200.0, train_seconds=1800.0)
    polish = msgspec.structs.replace(run.manifests["train"], usage=usage)
    polished = BoardRun(run.path, {**run.manifests, "polish": polish}, run.results)
    plain, dearer = (float(taken(each)[-1].split()[0]) for each in (run, polished))
    assert dearer - plain == pytest.approx(3.5 * 0.5, abs=0.011)


def test_runs_that_differ_in_seeds_are_one_experiment_with_its_spread(runs: Path) -> None:
    low, high = read_board(runs, ["first", "second"])
    held = [
        with_plan(low, "a", 0, learning_rate=0.001),
        with_plan(high, "b", 1, learning_rate=0.001),
        with_plan(high, "b-again", 1, learning_rate=0.001),
        with_plan(high, "c", 0, learning_rate=0.002),
    ]
    [group] = groups_of(held)
    assert group.differing == ["train.learning_rate", "train.seed"]
    assert group.differences(group.runs[0]) == ["train.learning_rate 0.002", "train.seed 0"]
    spread = spread_table(group)
    assert spread is not None
    [row] = spread.rows
    values = [run.headline.models["student"].pass_at_1 for run in (low, high)]
    assert row[:2] == ["train.learning_rate 0.001", "2"]
    assert row[2].startswith(f"{50 * sum(values):.1f}% [")
    assert row[3] == f"{100 * values[0]:.1f}% to {100 * values[1]:.1f}%"


def test_runs_that_differ_in_more_than_seeds_are_no_experiment(runs: Path) -> None:
    run = read_board(runs, ["first"])[0]
    long = "x" * 70

    def other(name: str, stage: str, **change: object) -> BoardRun:
        manifests = {"problems": run.manifests["train"], **run.manifests}  # with a plan of its own
        changed = msgspec.structs.replace(manifests[stage], **change)
        return BoardRun(run.path.with_name(name), {**manifests, stage: changed}, run.results)

    held = [
        other("a", "train", config={"train": {"note": long + "1"}}),
        other("b", "train", config={"train": {"note": long + "2"}}),
        other("c", "train", config={"student": {"model": "m", "thinking": {"open": "<a>"}}}),
        other("d", "train", config={"student": {"model": "m", "thinking": {"open": "<b>"}}}),
        other("e", "problems", inputs={"mine.jsonl": "1" * 64}),
        other("f", "problems", inputs={"mine.jsonl": "2" * 64}),
        other("g", "filter", inputs={"mix.chat": "1" * 64}),
        other("h", "generate", inputs={"file": "1" * 64}),
        other("i", "generate", inputs={"problems": "1" * 64}),  # what a stage made follows from the rest
        other("j", "generate", inputs={"problems": "2" * 64}),
    ]
    texts = [each.experiment for each in held]
    assert len({*texts[:8]}) == 8
    assert texts[8] == texts[9]
    [group] = groups_of(held[:2])
    assert group.setting(held[0], "train.note") == "x" * 57 + "..."


def test_a_seed_of_the_recipe_is_named_once() -> None:
    run = BoardRun(Path("a"), {}, None)
    other = BoardRun(Path("b"), {}, None)
    run.__dict__["settings"] = {"seed": "0", "generate.seed": "0", "train.seed": "0"}
    other.__dict__["settings"] = {"seed": "1", "generate.seed": "1", "train.seed": "1"}
    assert Group([run, other]).differing == ["seed"]


def test_the_interval_of_a_mean_is_student_s() -> None:
    """Of 0.5, 0.6 and 0.7: half a width of 4.303 standard errors of 0.1 over the root of 3."""
    assert mean_interval([0.5, 0.6, 0.7]) == pytest.approx((0.6 - 0.2484, 0.6 + 0.2484), abs=1e-4)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["sums-rate-0.001-seed-0", "sums-rate-0.002-seed-0"], ["0.001-seed-0", "0.002-seed-0"]),
        (["demo", "demo-lora"], ["demo", "demo-lora"]),
        (["alone"], ["alone"]),
        (["demo", "gsm8k"], ["demo", "gsm8k"]),
    ],
    ids=["variants", "one begins with the other", "one", "unlike"],
)
def test_what_all_names_begin_with_is_left_out_of_the_chart(names: list[str], shown: list[str]) -> None:
    assert without_start(names) == shown


def test_a_list_of_rules_is_compared_rule_by_rule() -> None:
    plan = {
        "filter": {"rules": ["finished", {"too_long": {"limit": 9}}]},
        "sources": [{"path": "a", "size": 1}],
    }
    assert dict(flattened(plan)) == {
        "filter.rules finished": "yes",
        "filter.rules too_long": "yes",
        "filter.rules.too_long.limit": "9",
        "sources.0.path": "a",
        "sources.0.size": "1",
    }


def test_the_board_is_printed_and_written_as_a_page_that_asks_for_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "started" / "problems").mkdir(parents=True, exist_ok=True)
    show_board(runs, [])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(runs / "board.html")
    for part in ("first", "second", "other", "Measured on all of chain_sum"):
        assert part in said
    page = (runs / "board.html").read_text(encoding="utf-8")
    assert '<a href="second/report/report.html">second</a>' in page
    assert not re.search(r"(src|srcset)=\"(?!data:)", page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert source_hash(style[1]) in page
    assert "<script" not in page
    nav = re.search(r"<nav>(.*?)</nav>", page)
    assert nav is not None
    assert re.findall(r">([^<]+)</a>", nav[1]) == re.findall(r"<h2[^>]*>([^<]*)</h2>", page)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["frist"], r"board: .*frist does not exist; did you mean 'first'"), (["empty"], r"holds no run with")],
    ids=["a mistyped name", "nothing finished"],
)
def test_what_is_not_there_is_one_error(runs: Path, names: list[str], message: str) -> None:
    (runs / "empty").mkdir(exist_ok=True)
    with pytest.raises(RecipeError, match=message):
        read_board(runs, names)
