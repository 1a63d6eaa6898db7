"""Shards: a stage's problems cut into n parts that processes, and machines, take independently.

A problem belongs to one shard by its own hash, so that its budget (stop at `keep` correct) is held by one
process, and the union of all shards is what one process would have sampled. Each shard is a directory of the
stage's own kind, with its own lock and fingerprint: <stage>/shards/003-of-016/.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import RecipeError, StageError
from pipeline.recipe.schema import Samples
from pipeline.records import Problem
from pipeline.run.aside import MOVING, SHARDS, aside
from pipeline.run.contract import Plan, StageRun, read_manifest
from pipeline.run.revisions import REVISIONS, read_revisions

log = logging.getLogger(__name__)

MAX_SHARDS = 10_000
DIRECTORY = re.compile(r"(\d{3,5})-of-(\d{3,5})")


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """Part `number` (from 0) `of` so many."""

    of: int
    number: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds(self, problem_id: str) -> bool:
        """Whether a problem belongs to this shard; it belongs to one alone."""
        return int(hashlib.sha256(problem_id.encode()).hexdigest()[:16], 16) % self.of == self.number

    def directory(self, stage: Path) -> Path:
        return stage / SHARDS / f"{self.number:03d}-of-{self.of:03d}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Those problems whose id `holds` chooses, streamed anew at each iteration."""

    problems: Iterable[Problem]
    holds: Callable[[str], bool]

    def __iter__(self) -> Iterator[Problem]:
        return (problem for problem in self.problems if self.holds(problem.id))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def parse_shard(text: str) -> Shard:
    """A shard as --shard gives it, 0/16 to 15/16. RecipeError otherwise."""
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text.strip(), re.ASCII)
    shard = Shard(int(match[2]), int(match[1])) if match else None
    if shard is None or not 0 <= shard.number < shard.of <= MAX_SHARDS:
        raise RecipeError(
            f"--shard {text}: give the number of a part, counted from 0, and how many there are: 0/16 to "
            f"15/16 are the sixteen parts of 16 (at most {MAX_SHARDS:,})"
        )
    return shard


def shards_in(stage: Path) -> list[Shard]:
    """The shards of a stage that were ever begun, in order."""
    folder = stage / SHARDS
    found = [DIRECTORY.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(Shard(int(match[2]), int(match[1])) for match in found if match)


def shard_plan(plan: Plan, shard: Shard) -> Plan:
    """The plan of one shard of a stage."""
    return replace(plan, config=plan.config | {"shard": str(shard)})


def bought_before(whole: Path, stage: StageRun, shard: Shard | None) -> list[Path]:
    """The directories of a stage that may hold what it, or one shard of it, wants: those aside, and those of
    another number of shards (shards of one number have no problem in common). Not those that another machine
    made with a model at another commit than the run's."""
    places = [] if shard is None else [whole, whole / MOVING, *aside(whole)]
    for other in shards_in(whole):
        if shard is None or other.of != shard.of:
            directory = other.directory(whole)
            places += [directory, *aside(directory)]
    known, ours = read_revisions(whole.parent / REVISIONS), []
    for place in places:
        try:
            manifest = read_manifest(place)
        except StageError as error:  # damaged, or of another version: it stops nobody
            log.warning("nothing is adopted from %s: %s", place, error)
            continue
        noted = manifest.notes.get("revisions", {}) if manifest else {}
        if all(known.get(name, commit) == commit for name, commit in noted.items()):
            ours.append(place)
        else:
            log.warning("nothing is adopted from %s: made with %s, this run has %s", place, noted, known)
    return [*stage.aside, *ours]


def refuse_redistribution(samples: Samples) -> None:
    """RecipeError where the budget of a problem depends on what others took."""
    if samples.redistribute:
        raise RecipeError(
            "generate.samples.redistribute gives what some problems saved to others, and a shard sees its "
            "own alone: take no shards, or set redistribute: false"
        )
