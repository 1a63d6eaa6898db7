"""The stage contract: finished, up to date, refused, forced, resumed, locked, conserved."""

import json
from pathlib import Path

import pytest

from pipeline.errors import StageError
from pipeline.stage import (
    Counts,
    Plan,
    Start,
    begin,
    check_outputs,
    difference,
    fingerprint,
    inputs_of,
    read_manifest,
    require,
)

PLAN = Plan("filter", 1, {"rules": ["correct"]}, {"generate": "ab"}, 0)
OTHER = Plan("filter", 1, {"rules": ["finished"]}, {"generate": "ab"}, 0)


def finish(directory: Path, plan: Plan = PLAN, text: str = "one\n", force: bool = False) -> None:
    run = begin(directory, plan, Start(force=force))
    assert run is not None
    with run:
        (directory / "kept.jsonl").write_text(text)
        run.finish(Counts(3, 1, {"wrong": 2}), {"kept.jsonl": 1}, {"tokens": 5})


def test_the_manifest_holds_what_the_contract_names(tmp_path: Path) -> None:
    finish(tmp_path / "filter")
    manifest = read_manifest(tmp_path / "filter")
    assert manifest is not None
    assert manifest["fingerprint"] == PLAN.fingerprint
    assert manifest["counts"] == {"in": 3, "kept": 1, "dropped": {"wrong": 2}, "failed": {}}
    assert manifest["outputs"]["kept.jsonl"]["rows"] == 1
    wanted = {
        "stage",
        "stage_version",
        "config",
        "inputs",
        "code",
        "versions",
        "hardware",
        "started",
        "seconds",
    }
    assert wanted | {"usage", "argv", "seed"} <= manifest.keys()
    assert not (tmp_path / "filter/progress.json").exists()


def test_the_same_plan_is_up_to_date(tmp_path: Path) -> None:
    finish(tmp_path / "filter")
    assert begin(tmp_path / "filter", PLAN, Start()) is None


def test_another_plan_is_refused_with_the_difference_and_both_ways_out(tmp_path: Path) -> None:
    finish(tmp_path / "filter")
    with pytest.raises(StageError, match="is finished under a different plan") as caught:
        begin(tmp_path / "filter", OTHER, Start(recipe="r.yaml"))
    message = str(caught.value)
    assert 'config.rules[0]: "correct" -> "finished"' in message
    assert "new `name:`" in message
    assert "make filter RECIPE=r.yaml FORCE=1" in message
    assert (tmp_path / "filter/kept.jsonl").read_text() == "one\n"


def test_force_moves_aside_and_deletes_nothing(tmp_path: Path) -> None:
    finish(tmp_path / "filter")
    finish(tmp_path / "filter", OTHER, "two\n", force=True)
    finish(tmp_path / "filter", OTHER, "three\n", force=True)
    texts = [(tmp_path / name / "kept.jsonl").read_text() for name in ("filter.1", "filter.2", "filter")]
    assert texts == ["one\n", "two\n", "three\n"]


def test_an_interrupted_stage_resumes_under_its_own_plan_only(tmp_path: Path) -> None:
    run = begin(tmp_path / "filter", PLAN, Start())
    assert run is not None
    with run:
        (tmp_path / "filter/part.jsonl").write_text("paid for\n")
    with pytest.raises(StageError, match="was started and not finished under a different plan"):
        begin(tmp_path / "filter", OTHER, Start())
    again = begin(tmp_path / "filter", PLAN, Start(force=True))
    assert again is not None
    with again:
        assert (tmp_path / "filter/part.jsonl").read_text() == "paid for\n"


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    run = begin(tmp_path / "filter", PLAN, Start())
    assert run is not None
    with run, pytest.raises(StageError, match=r"another process \(pid \d+\) is writing there"):
        begin(tmp_path / "filter", PLAN, Start())


def test_files_of_unknown_origin_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "filter").mkdir()
    (tmp_path / "filter/mine.txt").write_text("mine")
    with pytest.raises(StageError, match=r"found mine\.txt\); nothing was touched"):
        begin(tmp_path / "filter", PLAN, Start())


@pytest.mark.parametrize("name", ["mine.txt", "manifest.json"], ids=["foreign file", "torn manifest"])
def test_force_moves_aside_what_it_cannot_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "filter").mkdir()
    (tmp_path / "filter" / name).write_text("{")
    finish(tmp_path / "filter", force=True)
    assert (tmp_path / "filter.1" / name).read_text() == "{"


def test_an_abandoned_attempt_puts_back_what_force_moved(tmp_path: Path) -> None:
    finish(tmp_path / "filter")
    run = begin(tmp_path / "filter", OTHER, Start(force=True))
    assert run is not None
    with run:
        run.abandon()
    assert begin(tmp_path / "filter", PLAN, Start()) is None
    assert not (tmp_path / "filter.1").exists()


def test_an_abandoned_attempt_leaves_what_an_interrupted_one_wrote(tmp_path: Path) -> None:
    for written in (True, False):
        run = begin(tmp_path / "filter", PLAN, Start())
        assert run is not None
        with run:
            if written:
                (run.directory / "part.txt").write_text("part")  # as after a kill
            else:
                run.abandon()
    assert begin(tmp_path / "filter", PLAN, Start()) is not None
    assert (tmp_path / "filter/part.txt").read_text() == "part"


@pytest.mark.parametrize("text", ["[]", "{}", "7"])
def test_json_that_is_no_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StageError, match="is no manifest, it has no fingerprint"):
        read_manifest(tmp_path)


def test_a_runs_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StageError, match=r"cannot be (read|written) \(.*choose another --runs"):
        begin(tmp_path / "runs/demo/filter", PLAN, Start())


def test_counts_that_do_not_add_up_write_no_manifest(tmp_path: Path) -> None:
    run = begin(tmp_path / "filter", PLAN, Start())
    assert run is not None
    with run, pytest.raises(StageError, match="in 3 != kept 1 \\+ dropped 1 \\+ failed 0"):
        run.finish(Counts(3, 1, {"wrong": 1}), {})
    assert read_manifest(tmp_path / "filter") is None


def test_an_unfinished_input_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"generate has not run\. Run: make generate RECIPE=r\.yaml"):
        require(tmp_path / "generate", "filter", "r.yaml")


def test_a_broken_manifest_is_no_completion(tmp_path: Path) -> None:
    finish(tmp_path / "filter")
    (tmp_path / "filter/manifest.json").write_text("{")
    with pytest.raises(StageError, match=r"manifest\.json: cannot be read as JSON"):
        read_manifest(tmp_path / "filter")


@pytest.mark.parametrize(("change", "message"), [("edit", "was changed after"), ("remove", "is missing")])
def test_an_edited_output_is_noticed(tmp_path: Path, change: str, message: str) -> None:
    finish(tmp_path / "filter")
    kept = tmp_path / "filter/kept.jsonl"
    check_outputs(tmp_path / "filter")
    kept.write_text("edited\n") if change == "edit" else kept.unlink()
    with pytest.raises(StageError, match=message):
        check_outputs(tmp_path / "filter")


def test_inputs_change_with_the_outputs_of_the_stage_before(tmp_path: Path) -> None:
    finish(tmp_path / "a" / "filter")
    finish(tmp_path / "b" / "filter", text="other\n")
    one, two = (inputs_of({"filter": read_manifest(tmp_path / run / "filter") or {}}) for run in "ab")
    assert one["filter"] == two["filter"]
    assert one["filter.outputs"] != two["filter.outputs"]


def test_fingerprints_are_canonical_and_refuse_what_json_cannot_hold() -> None:
    assert fingerprint({"a": 1, "b": [1.5, None]}) == fingerprint({"b": [1.5, None], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    with pytest.raises(TypeError):
        fingerprint({"path": Path("x")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"a": float("nan")})


def test_difference_names_each_field() -> None:
    old = {"a": 1, "b": {"c": [1, 2]}, "gone": True}
    new = {"a": 1, "b": {"c": [1, 3]}, "new": "x"}
    assert difference(old, new) == ["b.c[1]: 2 -> 3", "gone: true -> (absent)", 'new: (absent) -> "x"']


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    finish(tmp_path / "filter")
    assert json.loads((tmp_path / "filter/manifest.json").read_text())["stage"] == "filter"
