"""Directories of a stage that were moved out of its way: generate.1, generate.2, ... beside generate.

A stage without shards is renamed, which is one step. Shards stay where they are, for processes may be writing
there; what stands beside them moves one by one:

    generate/.moving/   what is on its way; renamed to generate.1 when it holds all

A kill on the way is undone by `settle`, with which every process that takes the directory begins: all is then
as it was before the move. The manifest is the first to go and the last to come back, so that nobody in
between takes half a stage for a finished one.
"""

import logging
from pathlib import Path

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SHARDS = "shards"  # the parts of a stage, each a directory of its own that stays where it is
MOVING = ".moving"


def aside(directory: Path) -> list[Path]:
    """`<stage>.1`, `<stage>.2`, ..., the last one first."""
    found = [
        path
        for path in directory.parent.glob(f"{directory.name}.*")
        if path.suffix[1:].isdecimal() and path.is_dir()
    ]
    return sorted(found, key=lambda path: -int(path.suffix[1:]))


def move_aside(directory: Path) -> Path:
    """Move all but the shards to the first free name; that name."""
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    moving = directory
    if (directory / SHARDS).is_dir():
        moving = directory / MOVING
        moving.mkdir()
        for path in _manifest_first(directory):
            if path.name not in (SHARDS, MOVING):
                path.rename(moving / path.name)
    moving.rename(target)
    log.info("%s: moved aside to %s", directory.name, target)
    return target


def move_back(source: Path, directory: Path) -> None:
    """Undo `move_aside`; the stage's directory holds nothing but its shards, or is not there."""
    if (directory / SHARDS).is_dir():
        source.rename(directory / MOVING)
        settle(directory)
    else:
        source.rename(directory)
    log.info("%s: moved back", source)


def settle(directory: Path) -> None:
    """Put back what a process that was killed had not moved whole."""
    moving = directory / MOVING
    if moving.is_dir():
        for path in reversed(_manifest_first(moving)):
            path.rename(directory / path.name)
        moving.rmdir()


def _manifest_first(directory: Path) -> list[Path]:
    return sorted(directory.iterdir(), key=lambda path: path.name != MANIFEST)
