"""A stage with shards that is moved aside, or back: whatever moment a kill comes at, nothing is lost or split."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import StageError
from pipeline.run.aside import MOVING, move_aside
from pipeline.run.contract import Counts, Plan, Start, begin, read_manifest

PLAN = Plan("generate", 1, {}, {}, 0)
EVENTS = ("os.rename", "os.mkdir", "os.rmdir", "os.remove")
FILES = {"traces-00000.jsonl": "bought\n", "more/inside.txt": "kept\n"}


def finished(runs: Path) -> Path:
    """A finished stage with a finished shard and a lock beside it."""
    stage = begin(runs / "generate", PLAN, Start())
    assert stage is not None
    with stage:
        for name, text in FILES.items():
            (stage.directory / name).parent.mkdir(exist_ok=True)
            (stage.directory / name).write_text(text)
        stage.finish(Counts(1, 1), dict.fromkeys(FILES))
    part = stage.directory / "shards/000-of-001"
    part.mkdir(parents=True)
    (part / "traces-00000.jsonl").write_text("of the shard\n")
    return stage.directory


def files_in(directory: Path) -> dict[str, str]:
    """All files but those of the shards and the contract's own."""
    paths = [path for path in directory.rglob("*") if path.is_file() and "shards" not in path.parts]
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in paths
        if path.suffix != ".lock" and path.name not in ("manifest.json", "progress.json")
    }


def killed_before(number: int, work: Callable[[], object]) -> bool:
    """Run `work` in a process that is killed before its `number`-th change of the file system; whether it
    came so far."""
    child = os.fork()
    if not child:
        left = [number]

        def count(event: str, _: tuple[object, ...]) -> None:
            if event in EVENTS:
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

        sys.addaudithook(count)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def forced(directory: Path) -> None:
    """FORCE that has begun to write its own."""
    stage = begin(directory, PLAN, Start(force=True))
    assert stage is not None
    (directory / "traces-00000.jsonl").write_text("new\n")


def failing(directory: Path) -> None:
    """FORCE that fails before it wrote anything, so that all is put back."""
    stage = begin(directory, PLAN, Start(force=True))
    assert stage is not None
    with stage:
        raise StageError("a fault of the recipe")


@pytest.mark.parametrize("work", [forced, failing])
def test_a_kill_at_any_moment_of_a_move_loses_and_splits_nothing(
    work: Callable[[Path], None], tmp_path: Path
) -> None:
    directory = finished(tmp_path / "made")
    part, points = Path("shards/000-of-001/traces-00000.jsonl"), 0
    while True:
        runs = tmp_path / str(points)
        shutil.copytree(directory.parent, runs)
        here, aside = runs / "generate", runs / "generate.1"
        killed = killed_before(points, lambda here=here: work(here))  # type: ignore[misc]
        assert (here / part).read_text() == "of the shard\n", "shards stay where they are, at any moment"
        manifest = read_manifest(here)
        assert manifest is None or set(FILES) <= files_in(here).keys(), "nobody meets half a finished stage"
        again = begin(here, PLAN, Start())
        if again is not None:
            with again:
                assert again.aside == [aside]
        assert not list((here / MOVING).glob("*"))
        assert files_in(aside if aside.exists() else here) == FILES, "in one place, and whole"
        assert (read_manifest(aside) is None) == (read_manifest(here) is not None)
        forced(here)  # as though nothing had happened
        assert not (here / MOVING).exists()
        if not killed:
            break
        points += 1
    print(f"killed at {points} moments")
    assert points > 5


def test_a_stage_without_shards_moves_in_one_step(tmp_path: Path) -> None:
    directory = finished(tmp_path)
    shutil.rmtree(directory / "shards")
    assert killed_before(1, lambda: move_aside(directory)) is False
    assert files_in(tmp_path / "generate.1") == FILES
