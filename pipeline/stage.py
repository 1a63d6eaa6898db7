"""The stage contract: what a finished stage is, when it is up to date, and what blocks it.

A stage is a function from its plan (config, seed, inputs, versions) to one directory runs/<name>/<stage>/.
It is finished when manifest.json exists: written last, to a temporary file in the same directory, fsynced
and replaced, so its existence means that the stage completed.

    run = begin(directory, plan, Start(force=False, argv=sys.argv))
    if run is None:            # the same fingerprint is finished already
        return
    with run:
        ...                    # write files under run.directory
        run.finish(counts=..., outputs=[...], usage=...)
"""

import fcntl
import hashlib
import json
import logging
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import StageError
from pipeline.provenance import code_state, hardware, library_versions
from pipeline.recipe import Recipe

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PROGRESS = "progress.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides a stage's result. `inputs` maps a name to a fingerprint or a file's sha256."""

    stage: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int

    def identity(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "stage_version": self.version,
            "config": self.config,
            "inputs": self.inputs,
            "seed": self.seed,
        }

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity())


@dataclass(frozen=True, slots=True)
class Start:
    """How a stage was asked to start: `force` moves a directory that blocks aside, `argv` is recorded."""

    force: bool = False
    argv: list[str] = field(default_factory=list)
    recipe: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """What every stage is given: the recipe, where runs live, and how it was asked to start."""

    recipe: Recipe
    runs: Path
    start: Start

    @property
    def run(self) -> Path:
        return self.runs / self.recipe.name

    def directory(self, stage: str) -> Path:
        return self.run / stage


@dataclass(frozen=True, slots=True)
class Counts:
    """Conservation: num_in == kept + all dropped + all failed, checked before the manifest is written."""

    num_in: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    def check(self, stage: str) -> None:
        out = self.kept + sum(self.dropped.values()) + sum(self.failed.values())
        if out != self.num_in:
            raise StageError(
                f"{stage}: counts do not add up: in {self.num_in:,} != kept {self.kept:,} + dropped "
                f"{sum(self.dropped.values()):,} + failed {sum(self.failed.values()):,}. This is a bug: the "
                "manifest was not written; please report it with the directory"
            )


def fingerprint(value: Any) -> str:
    """sha256 (hex) of canonical JSON. TypeError or ValueError on what JSON cannot hold (objects, NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, None where the stage is not finished."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StageError(
            f"{path}: cannot be read as JSON ({error}). Move {directory} aside and run again"
        ) from None
    except OSError as error:
        raise StageError(f"{path}: cannot be read ({error.strerror}); choose another --runs") from None
    if not isinstance(manifest, dict) or "fingerprint" not in manifest:
        raise StageError(
            f"{path}: is no manifest, it has no fingerprint. Move {directory} aside and run again"
        )
    return manifest


def require(directory: Path, wanted_by: str, recipe: str) -> dict[str, Any]:
    """The manifest of a stage that `wanted_by` reads; StageError names what to run where it is unfinished."""
    manifest = read_manifest(directory)
    if manifest is None:
        progress = _read_json(directory / PROGRESS)
        state = "was started and not finished" if progress else "has not run"
        raise StageError(
            f"{wanted_by} needs {directory / MANIFEST}, which does not exist: {directory.name} {state}. "
            f"Run: make {directory.name} RECIPE={recipe}"
        )
    return manifest


def inputs_of(manifests: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Plan.inputs for finished stages: the fingerprint of each and one digest of its outputs."""
    inputs: dict[str, str] = {}
    for name, manifest in manifests.items():
        inputs[name] = manifest["fingerprint"]
        inputs[f"{name}.outputs"] = fingerprint({k: v["sha256"] for k, v in manifest["outputs"].items()})
    return inputs


def check_outputs(directory: Path, names: list[str] | None = None) -> None:
    """Raise StageError where an output of a finished stage is missing or was changed after it was hashed."""
    manifest = read_manifest(directory) or {"outputs": {}}
    for name, entry in manifest["outputs"].items():
        if names is not None and name not in names:
            continue
        path = directory / name
        if not path.is_file():
            raise StageError(
                f"{path}: is an output of the finished stage {directory.name}, and is missing. "
                f"Put it back, or run the stage again with FORCE=1 (the directory is moved, not deleted)"
            )
        if hash_file(path) != entry["sha256"]:
            raise StageError(
                f"{path}: was changed after {directory.name} finished (its sha256 is not the manifest's). "
                f"Put it back, or run the stage again with FORCE=1 (the directory is moved, not deleted)"
            )


def begin(directory: Path, plan: Plan, start: Start) -> "StageRun | None":
    """Take the directory for `plan`, or return None where the same plan is finished already.

    Raises StageError where another plan's result or progress is in the way, or another process writes there.
    """
    manifest = None if start.force else read_manifest(directory)
    if manifest is not None and manifest["fingerprint"] == plan.fingerprint:
        log.info("%s: up to date (%s)", plan.stage, directory)
        return None
    with ExitStack() as stack:
        lock = _lock(directory)
        stack.callback(os.close, lock)
        aside = _clear_the_way(directory, plan, start)
        directory.mkdir(parents=True, exist_ok=True)
        run = StageRun(directory, plan, start, lock, aside)
        run.carry(run.carried)
        stack.pop_all()  # from here on the StageRun holds the lock
    return run


class StageRun:
    """A stage directory that this process holds. `aside` is the directory that FORCE moved, if any.

    `carried` is what the process before this one left with `carry`: empty unless that one was interrupted.
    """

    def __init__(self, directory: Path, plan: Plan, start: Start, lock: int, aside: Path | None) -> None:
        self.directory = directory
        self.plan = plan
        self.aside = aside
        self.carried: dict[str, float] = (_read_json(directory / PROGRESS) or {}).get("carried", {})
        self._start = start
        self._lock = lock
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)  # closing the descriptor releases the flock

    def carry(self, figures: dict[str, float]) -> None:
        """Keep in progress.json what the next process must know, should this one be interrupted."""
        held = {"fingerprint": self.plan.fingerprint, **self.plan.identity(), "carried": figures}
        _write_json(self.directory / PROGRESS, held)

    def abandon(self) -> None:
        """Forget an attempt that wrote nothing yet, and put back what FORCE moved aside for it.

        What an interrupted process of the same plan wrote before it stays, to be resumed.
        """
        if any(path.name != PROGRESS for path in self.directory.iterdir()):
            return
        (self.directory / PROGRESS).unlink(missing_ok=True)
        if self.aside is not None:
            self.directory.rmdir()
            self.aside.rename(self.directory)
            log.info("%s: moved back", self.aside)

    def finish(
        self,
        counts: Counts,
        outputs: dict[str, int | None],
        usage: dict[str, Any] | None = None,
        notes: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write the manifest. `outputs` maps each file of the directory to its rows (None: no rows)."""
        counts.check(self.plan.stage)
        manifest = {
            **self.plan.identity(),
            "fingerprint": self.plan.fingerprint,
            "counts": {
                "in": counts.num_in,
                "kept": counts.kept,
                "dropped": counts.dropped,
                "failed": counts.failed,
            },
            "outputs": {
                name: {"sha256": hash_file(self.directory / name), "rows": rows}
                for name, rows in outputs.items()
            },
            "code": code_state(),
            "versions": library_versions(),
            "hardware": hardware(),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 2),
            "usage": usage or {},
            "notes": notes or {},
            "argv": self._start.argv,
        }
        _write_json(self.directory / MANIFEST, manifest)
        (self.directory / PROGRESS).unlink(missing_ok=True)
        return manifest


def difference(old: Any, new: Any, path: str = "") -> list[str]:
    """Field-by-field difference of two plans, one line a field: `config.epochs: 3 -> 1`."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            inner = f"{path}.{key}" if path else str(key)
            if key not in old:
                lines.append(f"{inner}: (absent) -> {_short(new[key])}")
            elif key not in new:
                lines.append(f"{inner}: {_short(old[key])} -> (absent)")
            else:
                lines.extend(difference(old[key], new[key], inner))
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for i, pair in enumerate(zip(old, new, strict=True))
            for line in difference(*pair, f"{path}[{i}]")
        ]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _clear_the_way(directory: Path, plan: Plan, start: Start) -> Path | None:
    """Refuse, or under FORCE move aside, a directory of another plan; the same plan resumes."""
    progress = _read_json(directory / PROGRESS)
    files = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if start.force:
        same = progress is not None and progress["fingerprint"] == plan.fingerprint
        # forcing an interrupted stage of the same plan is resuming it
        return None if not files or (same and MANIFEST not in files) else _move_aside(directory)
    manifest = read_manifest(directory)
    held = manifest or progress
    if held is None:
        if files:
            raise StageError(
                f"{directory}: holds files but neither {MANIFEST} nor {PROGRESS} "
                f"(found {', '.join(files[:5])}); nothing was touched. Move them away, or give the "
                "recipe a new `name:`"
            )
        return None
    if held["fingerprint"] == plan.fingerprint:
        return None
    state = "is finished" if manifest else "was started and not finished"
    known = {key: held[key] for key in plan.identity() if key in held}
    lines = "\n  ".join(difference(known, plan.identity()))
    raise StageError(
        f"{directory}: {plan.stage} {state} under a different plan; nothing was touched. "
        f"What differs:\n  {lines}\n"
        f"Give the recipe a new `name:`, or run: make {plan.stage} RECIPE={start.recipe} FORCE=1 "
        "(moves the old directory aside, deletes nothing)"
    )


def _move_aside(directory: Path) -> Path:
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(target)
    log.info("%s: moved aside to %s", directory.name, target)
    return target


def _lock(directory: Path) -> int:
    """flock beside the directory, not in it: FORCE moves the directory while the lock is held."""
    path = directory.parent / f".{directory.name}.lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StageError(
            f"{directory}: cannot be written ({error.strerror}: {error.filename}); choose another --runs"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode() or "unknown"
        os.close(descriptor)
        raise StageError(
            f"{directory}: another process (pid {holder}) is writing there; wait for it, or give the "
            "recipe a new `name:`"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # a torn progress file says no more than an absent one
    return value if isinstance(value, dict) and "fingerprint" in value else None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 100 else text[:97] + "..."
