"""The stage contract: finished, up to date, refused, forced, resumed, locked, conserved."""

import errno
import fcntl
import json
import os
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import EngineError, StageError
from pipeline.run.contract import (
    Counts,
    Plan,
    StageRun,
    Start,
    Usage,
    begin,
    check_outputs,
    difference,
    fingerprint,
    read_manifest,
    require,
)

PLAN = Plan("filter", 1, {"rules": ["correct"]}, {"generate": "ab"}, 0)
OTHER = Plan("filter", 1, {"rules": ["finished"]}, {"generate": "ab"}, 0)


def take(directory: Path, plan: Plan = PLAN, force: bool = False) -> StageRun:
    """The stage, which has work to do."""
    run = begin(directory, plan, Start(force=force))
    assert run is not None
    return run


def finish(directory: Path, plan: Plan = PLAN, text: str = "one\n", force: bool = False) -> None:
    with take(directory, plan, force) as run:
        (directory / "kept.jsonl").write_text(text)
        run.finish(Counts(3, 1, {"wrong": 2}), {"kept.jsonl": 1}, Usage(trained_tokens=5))


def test_the_manifest_holds_what_the_contract_names(tmp_path: Path) -> None:
    finish(tmp_path / "filter")
    manifest = read_manifest(tmp_path / "filter")
    assert manifest is not None
    assert manifest.fingerprint == PLAN.fingerprint
    assert manifest.counts == Counts(3, 1, {"wrong": 2})
    assert manifest.outputs["kept.jsonl"].rows == 1
    assert manifest.usage == Usage(trained_tokens=5)
    held = json.loads((tmp_path / "filter/manifest.json").read_text())
    assert held["counts"] == {"in": 3, "kept": 1, "dropped": {"wrong": 2}, "failed": {}}
    assert held["usage"] == {"trained_tokens": 5}
    assert manifest.to_json() == held
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
    with take(tmp_path / "filter"):
        (tmp_path / "filter/part.jsonl").write_text("paid for\n")
    with pytest.raises(StageError, match="was started and not finished under a different plan"):
        begin(tmp_path / "filter", OTHER, Start())
    with take(tmp_path / "filter", force=True):
        assert (tmp_path / "filter/part.jsonl").read_text() == "paid for\n"


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        take(tmp_path / "filter"),
        pytest.raises(StageError, match=r"another process \(pid \d+\) is writing there"),
    ):
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


FAULTS = [StageError("no server"), EngineError("dead"), RuntimeError("a bug"), KeyboardInterrupt()]


def attempt(directory: Path, plan: Plan, fault: BaseException, text: str = "", force: bool = False) -> None:
    """Begin, write `text` into a file (an empty one is opened as a store does), and fail."""
    with pytest.raises(type(fault)), take(directory, plan, force):  # noqa: PT012
        (directory / "part.jsonl").write_text(text)
        raise fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_before_anything_was_written_leaves_no_trap(tmp_path: Path, fault: BaseException) -> None:
    attempt(tmp_path / "filter", PLAN, fault)
    assert not (tmp_path / "filter").exists()
    finish(tmp_path / "filter", OTHER)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_before_anything_was_written_puts_back_what_force_moved(
    tmp_path: Path, fault: BaseException
) -> None:
    finish(tmp_path / "filter")
    attempt(tmp_path / "filter", OTHER, fault, force=True)
    assert begin(tmp_path / "filter", PLAN, Start()) is None
    assert not (tmp_path / "filter.1").exists()


def test_a_full_disk_at_the_start_puts_back_what_force_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    finish(tmp_path / "filter")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match=r"cannot be read or written .*No space left"):
        begin(tmp_path / "filter", OTHER, Start(force=True))
    monkeypatch.undo()
    assert begin(tmp_path / "filter", PLAN, Start()) is None
    assert not (tmp_path / "filter.1").exists()
    finish(tmp_path / "filter", OTHER, force=True)  # and the lock is free


def test_what_another_process_finished_before_the_lock_was_taken_is_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def after_another(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        finish(tmp_path / "filter")
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", after_another)
    assert begin(tmp_path / "filter", PLAN, Start()) is None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_leaves_what_an_interrupted_attempt_wrote(tmp_path: Path, fault: BaseException) -> None:
    with take(tmp_path / "filter") as run:
        (run.directory / "paid.jsonl").write_text("paid for\n")  # as after a kill
    attempt(tmp_path / "filter", PLAN, fault)
    assert (tmp_path / "filter/paid.jsonl").read_text() == "paid for\n"
    with pytest.raises(StageError, match="was started and not finished under a different plan"):
        begin(tmp_path / "filter", OTHER, Start())
    assert begin(tmp_path / "filter", PLAN, Start()) is not None


def test_an_attempt_that_failed_with_something_written_blocks_no_repaired_recipe(tmp_path: Path) -> None:
    for _ in range(2):
        attempt(tmp_path / "filter", PLAN, StageError("none is left; change filter in the recipe"), "row\n")
    finish(tmp_path / "filter", OTHER)
    assert (tmp_path / "filter.1/part.jsonl").read_text() == "row\n"


def test_an_attempt_that_failed_goes_on_under_its_own_plan(tmp_path: Path) -> None:
    attempt(tmp_path / "filter", PLAN, StageError("the server is down"), "row\n")
    finish(tmp_path / "filter", PLAN)
    assert (tmp_path / "filter/part.jsonl").read_text() == "row\n"
    assert not (tmp_path / "filter.1").exists()


@pytest.mark.parametrize("left", [".progress.json.tmp", "progress.json"], ids=["torn", "whole"])
def test_a_kill_before_anything_was_written_blocks_nobody(tmp_path: Path, left: str) -> None:
    with take(tmp_path / "filter"):
        pass  # as after a kill: no error was seen
    if left != "progress.json":
        (tmp_path / "filter/progress.json").rename(tmp_path / "filter" / left)
    finish(tmp_path / "filter", OTHER)


def test_every_directory_that_lies_aside_is_known_the_last_one_first(tmp_path: Path) -> None:
    for text in ("one", "two"):
        finish(tmp_path / "filter", text=text, force=True)
    (tmp_path / "filter.notes").mkdir()
    with take(tmp_path / "filter", force=True) as run:
        assert [path.name for path in run.aside] == ["filter.2", "filter.1"]


@pytest.mark.parametrize("text", ["[]", "{}", "7"])
def test_json_that_is_not_a_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StageError, match="is not a manifest of this version"):
        read_manifest(tmp_path)


def test_a_runs_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StageError, match=r"cannot be (read|written) \(.*choose another --runs"):
        begin(tmp_path / "runs/demo/filter", PLAN, Start())


def test_counts_that_do_not_add_up_write_no_manifest(tmp_path: Path) -> None:
    with (
        take(tmp_path / "filter") as run,
        pytest.raises(StageError, match="in 3 != kept 1 \\+ dropped 1 \\+ failed 0"),
    ):
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


def test_a_digest_changes_with_the_outputs_that_are_read_and_with_no_other(tmp_path: Path) -> None:
    finish(tmp_path / "a" / "filter")
    finish(tmp_path / "b" / "filter", text="other\n")
    one, two = (read_manifest(tmp_path / run / "filter") for run in "ab")
    assert one is not None
    assert two is not None
    assert one.fingerprint == two.fingerprint
    assert one.digest() != two.digest()
    assert one.digest(["kept.jsonl"]) != two.digest(["kept.jsonl"])
    assert one.digest(["absent.jsonl"]) == two.digest(["absent.jsonl"])


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
    assert difference(old, new) == [
        "b.c[1]: 2 -> 3",
        "gone: true -> (not stated)",
        'new: (not stated) -> "x"',
    ]


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    finish(tmp_path / "filter")
    assert json.loads((tmp_path / "filter/manifest.json").read_text())["stage"] == "filter"


def test_an_edited_manifest_is_named_and_force_still_works(tmp_path: Path) -> None:
    finish(tmp_path / "filter")
    path = tmp_path / "filter/manifest.json"
    path.write_text(path.read_text().replace('"kept": 1', '"kept": 2'))
    with pytest.raises(StageError, match="was edited by hand after filter finished"):
        read_manifest(tmp_path / "filter")
    finish(tmp_path / "filter", force=True)


@pytest.mark.parametrize("carried", ["[]", '{"seconds": "many"}', '{"seconds": null}'])
def test_edited_figures_of_a_process_before_are_named(tmp_path: Path, carried: str) -> None:
    with take(tmp_path / "filter") as run:
        (tmp_path / "filter/part.jsonl").write_text("row\n")
        run.carry({})
    path = tmp_path / "filter/progress.json"
    path.write_text(path.read_text().replace('"carried": {}', f'"carried": {carried}'))
    with pytest.raises(StageError, match=r"progress.json: `carried` is not what a stage left there"):
        begin(tmp_path / "filter", PLAN, Start())
    path.write_text(path.read_text().replace(f'"carried": {carried}', '"carried": {}'))
    finish(tmp_path / "filter")


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(
        StageError, match=r"takes no locks \(flock: No locks available\).*choose another --runs"
    ):
        begin(tmp_path / "filter", PLAN, Start())
    monkeypatch.undo()
    finish(tmp_path / "filter")


def test_a_lock_that_is_a_link_is_neither_followed_nor_emptied(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    (tmp_path / ".filter.lock").symlink_to(victim)
    with pytest.raises(StageError, match=r"\.filter\.lock is a symbolic link\); remove it"):
        begin(tmp_path / "filter", PLAN, Start())
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EROFS, "Read-only file system"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["full", "quota", "read-only", "a library's own"],
)
def test_a_disk_that_takes_nothing_is_one_error_and_the_stage_goes_on(
    tmp_path: Path, fault: Exception
) -> None:
    said = r"filter: cannot be read or written .*run the same command again"
    with pytest.raises(StageError, match=said), take(tmp_path / "filter"):  # noqa: PT012
        (tmp_path / "filter/part.jsonl").write_text("row\n")
        raise fault
    finish(tmp_path / "filter")


def test_temporary_files_are_the_stages_own_and_go_with_it() -> None:
    system = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="s") as short:
        with take(Path(short) / "filter"):
            assert tempfile.gettempdir() == os.environ["TMPDIR"] == f"{short}/filter/.tmp"
            (Path(tempfile.mkdtemp()) / "socket").write_text("as an engine leaves it")
        assert tempfile.gettempdir() == system
        assert sorted(path.name for path in Path(short, "filter").iterdir()) == ["progress.json"]


def test_temporary_files_of_a_killed_process_block_nobody_and_go(tmp_path: Path) -> None:
    with take(tmp_path / "filter"):
        pass
    (tmp_path / "filter/.tmp").mkdir()
    (tmp_path / "filter/.tmp/left").write_text("by a killed engine")
    finish(tmp_path / "filter", OTHER)
    assert not (tmp_path / "filter/.tmp").exists()


def test_every_directory_aside_is_known_to_the_process_after_a_kill(tmp_path: Path) -> None:
    for text in ("one", "two"):
        finish(tmp_path / "filter", text=text, force=True)
    with take(tmp_path / "filter", force=True):
        pass  # as after a kill: the first process has gone, and its progress is all that is left
    with take(tmp_path / "filter") as again:
        assert [path.name for path in again.aside] == ["filter.2", "filter.1"]


def test_a_directory_with_nothing_but_the_contracts_own_files_is_empty(tmp_path: Path) -> None:
    (tmp_path / "filter").mkdir()
    for name in (".progress.json.tmp", ".manifest.json.tmp", "progress.json"):
        (tmp_path / "filter" / name).write_text('{"fing')
    finish(tmp_path / "filter")
    assert sorted(os.listdir(tmp_path / "filter")) == ["kept.jsonl", "manifest.json"]
    assert sorted(os.listdir(tmp_path)) == [".filter.lock", "filter"], "nothing was moved aside"
