"""The stage contract: what a finished stage is, when it is up to date, and what blocks it.

A stage is a function from its plan (what decides its result, and nothing else) to one directory
runs/<name>/<stage>/. It is finished when manifest.json exists: written last, to a temporary file in the same
directory, fsynced and replaced, so its existence means that the stage completed.

    run = begin(directory, plan, Start(force=False, argv=sys.argv))
    if run is None:            # the same fingerprint is finished already
        return
    with run:
        ...                    # write files under run.directory
        run.finish(counts=..., outputs=..., usage=Usage(...))

A fault leaves no trap: an attempt that ends by an error before it wrote anything leaves the directory as it
found it, and one that failed with something written never blocks a repaired recipe: it is moved aside.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from pipeline.errors import PipelineError, StageError, write_fault
from pipeline.run.aside import MANIFEST, SHARDS, aside, move_aside, move_back, settle
from pipeline.run.lifetime import SCRATCH, temporary_files_in
from pipeline.run.provenance import code_state, hardware, library_versions, machines

log = logging.getLogger(__name__)

PROGRESS = "progress.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides a stage's result. `inputs` maps a name to the digest of what is read.

    `config` holds the recipe's fields that differ from their defaults, the identity of the cards and the
    versions of the verifiers in use: a new key, card or verifier leaves finished runs up to date.
    """

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


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the records of manifest.json are: fields in the file's order."""


class Counts(Part, frozen=True, rename={"num_in": "in"}):
    """Conservation: num_in == kept + all dropped + all failed, checked before the manifest is written."""

    num_in: int
    kept: int
    dropped: dict[str, int] = {}
    failed: dict[str, int] = {}

    def check(self, stage: str) -> None:
        out = self.kept + sum(self.dropped.values()) + sum(self.failed.values())
        if out != self.num_in:
            raise StageError(
                f"{stage}: counts do not add up: in {self.num_in:,} != kept {self.kept:,} + dropped "
                f"{sum(self.dropped.values()):,} + failed {sum(self.failed.values()):,}. This is a bug: the "
                "manifest was not written; please report it with the directory"
            )

    def check_union(self, stage: str, parts: Collection["Counts"]) -> None:
        """Shards have no problem in common and leave none out, so their counts add up to these."""
        for name, own, theirs in (
            ("in", self.num_in, [part.num_in for part in parts]),
            ("kept", self.kept, [part.kept for part in parts]),
        ):
            if own != sum(theirs):
                raise StageError(
                    f"{stage}: the {len(parts)} shards have {name} {sum(theirs):,} together, and what they "
                    f"were put together to has {own:,}. The manifest was not written; run the shards and the "
                    "merge with the same problems, or report it with the directory"
                )


class Output(Part, frozen=True):
    """A file of a finished stage; `rows` is None where it has none."""

    sha256: str
    rows: int | None


class Usage(Part, frozen=True, omit_defaults=True):
    """What a stage took, as far as it has such a thing; None is not known or not applicable.

    Tokens and `engine_seconds` are those of sampling. `sampled` traces were bought here, `adopted` taken from
    another run, `found` finished before the last process began. `models` holds eval's figures by model.
    `scored_tokens` are those whose probabilities a teacher gave, in `scoring_seconds`.
    """

    engine_seconds: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    sampled: int | None = None
    adopted: int | None = None
    found: int | None = None
    sampled_output_tokens: int | None = None
    tokens_per_second: float | None = None
    tokens_per_kept: float | None = None
    trained_tokens: int | None = None
    mix_tokens: int | None = None
    verified_again: int | None = None
    train_seconds: float | None = None
    steps: int | None = None
    tokens_per_epoch: int | None = None
    scored_tokens: int | None = None
    scoring_seconds: float | None = None
    models: dict[str, Any] = {}


class Manifest(Part, frozen=True):
    """manifest.json of a finished stage: its plan, what it made, and what it was made with."""

    stage: str
    stage_version: int
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    fingerprint: str
    counts: Counts
    outputs: dict[str, Output]
    code: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    started: str
    seconds: float
    usage: Usage
    notes: dict[str, Any]
    argv: list[str]
    seal: str = ""  # the fingerprint of all the rest; manifests of earlier versions have none

    def to_json(self) -> dict[str, Any]:
        records = {"counts": self.counts, "outputs": self.outputs, "usage": self.usage}
        return msgspec.structs.asdict(self) | msgspec.to_builtins(records)

    def sealed(self) -> "Manifest":
        """The same with its seal, by which an edit of the file is noticed."""
        held = self.to_json()
        del held["seal"]
        return msgspec.structs.replace(self, seal=fingerprint(held))

    def digest(self, names: Collection[str] | None = None) -> str:
        """One sha256 over the outputs, or over those of them in `names` that there are."""
        return fingerprint({n: o.sha256 for n, o in self.outputs.items() if names is None or n in names})


def fingerprint(value: Any) -> str:
    """sha256 (hex) of canonical JSON. TypeError or ValueError on what JSON cannot hold (objects, NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a finished stage, None where the stage is not finished."""
    path = directory / MANIFEST
    try:
        manifest = msgspec.convert(json.loads(path.read_text(encoding="utf-8")), Manifest)
        if manifest.seal and manifest.sealed().seal != manifest.seal:
            raise StageError(
                f"{path}: was edited by hand after {manifest.stage} finished (its seal does not fit). Put it "
                f"back, or run the stage again with FORCE=1 (the directory is moved, not deleted)"
            )
        return manifest
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        no_json = not isinstance(error, msgspec.ValidationError)
        fault = "cannot be read as JSON" if no_json else "is not a manifest of this version"
        raise StageError(f"{path}: {fault} ({error}). Move {directory} aside and run again") from None
    except OSError as error:
        raise StageError(f"{path}: cannot be read ({error.strerror}); choose another --runs") from None


def read_manifests(run: Path, stages: Iterable[str]) -> dict[str, Manifest]:
    """The manifests of those stages of a run that are finished, by stage."""
    found = {stage: read_manifest(run / stage) for stage in stages}
    return {stage: manifest for stage, manifest in found.items() if manifest is not None}


def require(directory: Path, wanted_by: str, recipe: str) -> Manifest:
    """The manifest of a stage that `wanted_by` reads; StageError names what to run where it is unfinished."""
    manifest = read_manifest(directory)
    if manifest is None:
        state = "was started and not finished" if _read_progress(directory) else "has not run"
        command = f"make {directory.name} RECIPE={recipe}"
        if any((directory / SHARDS).glob("*/")):
            state = "was begun in shards, and they are not merged"
            command = f"python -m pipeline {directory.name} --recipe {recipe} --merge"
        raise StageError(
            f"{wanted_by} needs {directory / MANIFEST}, which does not exist: {directory.name} {state}. "
            f"Run: {command}"
        )
    return manifest


def check_outputs(directory: Path, names: Collection[str] | None = None) -> None:
    """Raise StageError where an output of a finished stage is missing or was changed after it was hashed."""
    manifest = read_manifest(directory)
    for name, output in (manifest.outputs if manifest else {}).items():
        path, fault = directory / name, None
        if names is not None and name not in names:
            continue
        if not path.is_file():
            fault = f"is an output of the finished stage {directory.name}, and is missing"
        elif hash_file(path) != output.sha256:
            fault = f"was changed after {directory.name} finished (its sha256 is not the manifest's)"
        if fault:
            raise StageError(
                f"{path}: {fault}. Put it back, or run the stage again with FORCE=1 (the directory is moved, "
                "not deleted)"
            )


def begin(directory: Path, plan: Plan, start: Start, anew: bool = False) -> "StageRun | None":
    """Take the directory for `plan`, or return None where the same plan is finished already.

    An unfinished attempt of the same plan is gone on with; `anew` moves it aside instead.
    Raises StageError where another plan's result or progress is in the way, or another process writes there.
    """
    if _up_to_date(directory, plan, start):
        return None
    with ExitStack() as stack:
        lock = _lock(directory)
        stack.callback(os.close, lock)
        settle(directory)
        if _up_to_date(directory, plan, start):  # by a process that ended since
            return None
        run = StageRun(directory, plan, start, lock, _clear_the_way(directory, plan, start, anew))
        stack.push(run.leave)
        directory.mkdir(parents=True, exist_ok=True)
        with _writing(directory):
            run.carry(run.carried)
        stack.pop_all()  # from here on the StageRun holds the lock
    return run


def _up_to_date(directory: Path, plan: Plan, start: Start) -> bool:
    manifest = None if start.force else read_manifest(directory)
    if manifest is None or manifest.fingerprint != plan.fingerprint:
        return False
    log.info("%s: up to date (%s)", plan.stage, directory)
    return True


class StageRun:
    """A stage directory that this process holds.

    `aside` are the directories of this stage that were ever moved away, the last one first: what was paid for
    in them is adopted. `carried` is what the process before this one left with `carry`: empty unless that one
    was interrupted.
    """

    def __init__(self, directory: Path, plan: Plan, start: Start, lock: int, moved: Path | None) -> None:
        self.directory = directory
        self.plan = plan
        self._start = start
        self._lock = lock
        self._moved = moved
        self._files = _written(directory)
        self.aside = aside(directory)
        held = _read_progress(directory)
        self.carried: dict[str, float] = _carried(directory, held)
        self._failed_before = "failed" in held
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()

    def __enter__(self) -> Self:
        self._exits = ExitStack()
        self._exits.callback(os.close, self._lock)  # closing the descriptor releases the flock
        self._exits.enter_context(_writing(self.directory))
        self._exits.push(self.leave)
        self._exits.enter_context(temporary_files_in(self.directory))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)

    def carry(self, figures: dict[str, float], failed: str = "") -> None:
        """Keep in progress.json what the next process must know, should this one be interrupted."""
        held = {"fingerprint": self.plan.fingerprint, **self.plan.identity(), "carried": figures}
        self._carrying = figures
        _write_json(self.directory / PROGRESS, held | ({"failed": failed} if failed else {}))

    def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an error: the directory as it was found where nothing is written; else say that it failed."""
        if error is None or (self.directory / MANIFEST).is_file():
            return
        written = _written(self.directory)
        if written:
            if isinstance(error, PipelineError) and (written != self._files or self._failed_before):
                with suppress(OSError):  # on a full disk what it carries stays as it was
                    self.carry(self._carrying, failed=str(error)[:500])
            return
        _clear(self.directory)
        if self._moved is not None:
            move_back(self._moved, self.directory)

    def finish(
        self,
        counts: Counts,
        outputs: Mapping[str, int | None],
        usage: Usage | None = None,
        notes: dict[str, Any] | None = None,
        shards: Collection[Manifest] = (),
    ) -> Manifest:
        """Write the manifest. `outputs` maps each file of the directory to its rows (None: no rows).

        A stage that was put together of `shards` was made on their machines, in their seconds, and has
        neither more nor less than they have.
        """
        counts.check(self.plan.stage)
        if shards:
            counts.check_union(self.plan.stage, [shard.counts for shard in shards])
        manifest = Manifest(
            **self.plan.identity(),
            fingerprint=self.plan.fingerprint,
            counts=counts,
            outputs={name: Output(hash_file(self.directory / name), rows) for name, rows in outputs.items()},
            code=code_state(),
            versions=library_versions(),
            hardware=machines(shard.hardware for shard in shards) if shards else hardware(),
            started=self._started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._clock + sum(shard.seconds for shard in shards), 2),
            usage=usage or Usage(),
            notes=notes or {},
            argv=self._start.argv,
        ).sealed()
        _write_json(self.directory / MANIFEST, manifest.to_json())
        (self.directory / PROGRESS).unlink(missing_ok=True)
        return manifest


def difference(old: Any, new: Any, path: str = "") -> list[str]:
    """Field-by-field difference of two plans, one line a field: `config.epochs: 3 -> 1`."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            inner = f"{path}.{key}" if path else str(key)
            if key not in old:
                lines.append(f"{inner}: (not stated) -> {_short(new[key])}")
            elif key not in new:
                lines.append(f"{inner}: {_short(old[key])} -> (not stated)")
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


def _clear_the_way(directory: Path, plan: Plan, start: Start, anew: bool) -> Path | None:
    """Refuse a directory of another plan, or under FORCE move it aside; the same plan resumes.

    An attempt that failed by itself is moved aside without being asked: its recipe was repaired since.
    """
    shutil.rmtree(directory / SCRATCH, ignore_errors=True)
    if not _written(directory):
        return None  # empty, or the progress of a process that was killed before it wrote anything
    progress = _read_progress(directory)
    files = sorted(path.name for path in directory.iterdir())
    manifest = None if start.force else read_manifest(directory)
    before = manifest.to_json() if manifest else progress
    if before.get("fingerprint") == plan.fingerprint and MANIFEST not in files:
        return move_aside(directory) if anew else None
    if start.force or (manifest is None and "failed" in progress):
        return move_aside(directory)
    if not before:
        raise StageError(
            f"{directory}: holds files but neither {MANIFEST} nor {PROGRESS} "
            f"(found {', '.join(files[:5])}); nothing was touched. Move them away, or give the "
            "recipe a new `name:`"
        )
    state = "is finished" if manifest else "was started and not finished"
    known = {key: before[key] for key in plan.identity() if key in before}
    lines = "\n  ".join(difference(known, plan.identity()))
    raise StageError(
        f"{directory}: {plan.stage} {state} under a different plan; nothing was touched. "
        f"What differs:\n  {lines}\n"
        f"Give the recipe a new `name:`, or run: make {plan.stage} RECIPE={start.recipe} FORCE=1 "
        "(moves the old directory aside, deletes nothing)"
    )


def _written(directory: Path) -> dict[str, int]:
    """The files that hold something, with their sizes, but for what the contract itself writes first."""
    own = (PROGRESS, f".{PROGRESS}.tmp", f".{MANIFEST}.tmp")
    sizes = {
        str(path.relative_to(directory)): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file() and path.name not in own and SCRATCH not in path.parts[len(directory.parts) :]
    }
    return {name: size for name, size in sizes.items() if size and not name.startswith(f"{SHARDS}/")}


def _clear(directory: Path) -> None:
    """Remove all but the stage's shards; the directory may not be there yet."""
    if not (directory / SHARDS).is_dir():
        return shutil.rmtree(directory, ignore_errors=True)
    for path in directory.iterdir():
        if path.name != SHARDS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a directory that is no stage's against a second writer, as `begin` holds that of a stage."""
    with ExitStack() as stack:
        stack.callback(os.close, _lock(directory))
        stack.enter_context(_writing(directory))
        yield


def _lock(directory: Path) -> int:
    """flock beside the directory, not in it: FORCE moves the directory while the lock is held."""
    path = directory.parent / f".{directory.name}.lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        link = error.errno == errno.ELOOP and path.is_symlink()
        why = f"{path} is a symbolic link" if link else f"{error.strerror}: {error.filename}"
        way_out = "remove it" if link else "choose another --runs"
        raise StageError(f"{directory}: cannot be written ({why}); {way_out}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace") or "unknown"
        os.close(descriptor)
        raise StageError(
            f"{directory}: another process (pid {holder}) is writing there; wait for it, or give the "
            "recipe a new `name:`"
        ) from None
    except OSError as error:
        os.close(descriptor)
        full = write_fault(error, directory)
        raise full or StageError(
            f"{directory}: its file system takes no locks (flock: {error.strerror}), so two processes could "
            "write there at once. Mount it with locks, or choose another --runs"
        ) from None
    return descriptor


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """A full or broken disk is one StageError, whatever library met it."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:  # each library has its own; all others go on as they are
        fault = write_fault(error, directory)
        if fault is None:
            raise
        raise fault from error


def _read_progress(directory: Path) -> dict[str, Any]:
    try:
        value = json.loads((directory / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # a torn progress file says no more than an absent one
    return value if isinstance(value, dict) and "fingerprint" in value else {}


def _carried(directory: Path, held: dict[str, Any]) -> dict[str, float]:
    try:
        return msgspec.convert(held.get("carried", {}), dict[str, int | float])
    except msgspec.ValidationError as error:
        raise StageError(
            f"{directory / PROGRESS}: `carried` is not what a stage left there ({error}). Correct it, or "
            "write {} there: what earlier processes spent is then not counted"
        ) from None


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
