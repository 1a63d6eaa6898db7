"""The kinds of misfortune. Each case says what was tried, whether it recovered, and whether the result is equal."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.work import STAGES, Ended, Work
from tests.scripted_teacher import BEHAVIOURS
from tests.served import scripted_server

# a stage of a tenth of a second is killed as often as one of ten, for which there is less time
WEIGHTS = {"problems": 3, "generate": 4, "filter": 4, "train": 1, "eval": 3, "report": 2}
KILLS = ("before", "after", "half")
AIMS = {
    "write": "w",
    "create": "o",
    "rename": "r",
    "unlink": "u",
    "fsync": "f",
    "truncate": "t",
    "mkdir": "m",
}
IN_FLIGHT = 8
ODD = (
    "two words", "it's", 'a "quote"', "$HOME", "`x`", "-dash", "semi;colon", "a&b", "star*", "back\\slash", "umlaut \u00e4",
    "line\nbreak",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    what: str
    recovered: bool
    equal: bool
    note: str = ""


def case(what: str, first: Ended, then: Ended, equal: bool) -> Case:
    """Recovered: both ended cleanly, and the second one, after the repair, well."""
    recovered = first.clean and then.clean and then.code == 0
    note = (
        ""
        if recovered and equal
        else f"{first.code} {first.orphans} {first.litter} {first.stderr[-700:]} || "
    )
    return Case(what, recovered, equal, note and note + f"{then.code} {then.orphans} {then.stderr[-700:]}")


class Kinds:
    """Makes cases of each kind, all chosen by the seed."""

    def __init__(self, work: Work, seed: int) -> None:
        self.work, self.chance = work, random.Random(seed)
        self._events: dict[str, str] = {}

    def stage(self, names: tuple[str, ...] = STAGES) -> str:
        return self.chance.choices(names, [WEIGHTS[name] for name in names])[0]

    def place(self, stage: str, letters: str) -> int | None:
        """The number of an event of one of these kinds; None where the stage has none."""
        if stage not in self._events:
            self._events[stage] = self.work.events(stage)
        places = [i for i, letter in enumerate(self._events[stage]) if letter in letters]
        return self.chance.choice(places) if places else None

    def again(self, stage: str, runs: Path, what: str, first: Ended) -> Case:
        """The same command once more; what was paid for is not bought twice."""
        before = self.work.num_asked()
        then = self.work.run(self.work.command(stage, runs))
        equal = then.code == 0 and self.work.equal(stage, runs)
        if stage == "generate" and equal:
            equal = self.work.num_asked() - before <= self.missing + IN_FLIGHT
        return case(what, first, then, equal)

    def kill(self, number: int) -> Case:
        """Every second one is aimed at a write, rename, unlink, fsync, ...; the others come at any time."""
        work, stage = self.work, self.stage()
        runs, aim = work.before(stage, "killed"), self.chance.choice(list(AIMS))
        at = self.place(stage, AIMS[aim]) if number % 2 else None
        if at is not None:
            mode = self.chance.choice(KILLS)
            what = f"{stage}: kill -9, {mode} of {aim} at event {at}"
            first = work.run(work.command(stage, runs), **work.shimmed(mode, runs, at))
        else:
            seconds = self.chance.uniform(0.2, 12.0 if stage == "train" else 4.0)
            what = f"{stage}: kill -9 after {seconds:.2f} s"
            first = work.run(work.command(stage, runs), kill_after=seconds)
        self.missing = self.num_missing(stage, runs)
        return self.again(stage, runs, what, first)

    def num_missing(self, stage: str, runs: Path) -> int:
        """Traces that the finished run has and this one lacks."""
        if stage != "generate":
            return 0
        count = [
            sum(path.read_bytes().count(b"\n") for path in (top / "tiny/generate").glob("traces-*.jsonl"))
            for top in (self.work.finished, runs)
        ]
        return count[0] - count[1]

    def disk(self, number: int) -> Case:
        """The disk is full from some event on; then there is room again."""
        stage = STAGES[number % len(STAGES)]
        runs, at = self.work.before(stage, "full"), self.place(stage, "owm")
        first = self.work.run(self.work.command(stage, runs), **self.work.shimmed("full", runs, at))
        self.missing = self.num_missing(stage, runs)
        return self.again(stage, runs, f"{stage}: disk full from event {at}", first)

    def server(self, number: int) -> Case:
        """A server that misbehaves, then a good one."""
        stage, behaviour = ("generate", "eval")[number % 2], BEHAVIOURS[number // 2 % len(BEHAVIOURS)]
        runs = self.work.before(stage, "served")
        with scripted_server(0.0, behaviour) as url:
            first = self.work.run(self.work.command(stage, runs, url))
        if (
            first.code == 0
        ):  # it wrote what it was asked for, if in another way: nothing is wrong to go on from
            return case(f"{stage}: server {behaviour}", first, first, True)
        self.missing = self.num_missing(stage, runs)
        return self.again(stage, runs, f"{stage}: server {behaviour}", first)

    def corruption(self, number: int) -> Case:
        """A file of a finished stage, or of one that was killed, is damaged; FORCE=1 where the error says so."""
        work, finished = self.work, number % 2 == 0
        stage = self.stage(STAGES[:-1] if finished else ("problems", "generate", "filter", "eval"))
        reader = STAGES[STAGES.index(stage) + 1] if finished else stage
        runs = work.before(reader, "damaged")
        if not finished:
            at = self.place(stage, "w")
            work.run(work.command(stage, runs), **work.shimmed("before", runs, at))
        held = [
            path for path in (runs / "tiny" / stage).rglob("*") if path.is_file() and not path.is_symlink()
        ]
        if not held:
            held = [runs / "tiny" / stage / "stray.json"]
            held[0].parent.mkdir(parents=True, exist_ok=True)
            held[0].write_text("{")
        path, (name, damage) = self.chance.choice(sorted(held)), self.chance.choice(list(DAMAGES.items()))
        damage(path, self.chance)
        what = f"{reader} after {name} of {'finished' if finished else 'killed'} {stage}/{path.name}"
        first = work.run(work.command(reader, runs))
        if first.code == 0 and work.equal(reader, runs):
            return case(what, first, first, True)
        for again in dict.fromkeys((stage, reader)):
            then = work.run([*work.command(again, runs), "--force"])
            if then.code != 0:
                break
        return case(what, first, then, then.code == 0 and work.equal(reader, runs))

    def path(self, number: int) -> Case:
        """A run, and a recipe, by a name that shells and formats read as something else."""
        name, stages = ODD[number % len(ODD)], ("problems", "generate", "filter")
        folder = self.work.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        recipe = folder / f"{name}.yaml"
        recipe.write_text(self.work.recipe.read_text())
        for stage in stages:
            ended = self.work.run(self.work.command(stage, folder, recipe=recipe))
        equal = ended.code == 0 and all(self.work.equal(stage, folder) for stage in stages)
        return case(f"path {name!r}", ended, ended, equal)


def truncate(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data) or 1)])


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def empty(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def duplicate(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data + data)


def remove(path: Path, chance: random.Random) -> None:
    path.unlink()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "truncation": truncate,
    "a flipped bit": flip,
    "emptying": empty,
    "doubling": duplicate,
    "removal": remove,
}
