"""Stages that two runs have in common: the files of one, linked into the other, and nothing is made twice."""

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import StageError
from pipeline.run.contract import read_manifest, require
from pipeline.run.revisions import REVISIONS

log = logging.getLogger(__name__)


def share_stages(source: Path, target: Path, stages: Iterable[str], wanted_by: str) -> None:
    """Give a run the finished stages of another, whose plans are equal, as links to the same files.

    With the revisions that were resolved there, so that both go on with the same. StageError where the target
    holds another result, or an unfinished one.
    """
    for stage in stages:
        held, wanted = read_manifest(target / stage), require(source / stage, wanted_by, source.name)
        if held is None and (target / stage).exists():
            raise StageError(
                f"{target / stage}: exists and is not finished; nothing was touched. Move it away"
            )
        if held is not None and held.fingerprint != wanted.fingerprint:
            raise StageError(
                f"{target / stage}: holds another {stage} than {source / stage}; nothing was touched. Move "
                "it away"
            )
        if held is None:
            part = (
                target / f".{stage}.part"
            )  # what is there under its name is whole, whenever this is stopped
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source / stage, part, copy_function=link_or_copy)
            part.rename(target / stage)
            log.info("%s: %s shares the files of %s", wanted_by, target / stage, source / stage)
    if (source / REVISIONS).is_file() and not (target / REVISIONS).exists():
        shutil.copy2(source / REVISIONS, target / REVISIONS)


def link_or_copy(source: str, target: str) -> str:
    """A hard link; a copy where the file system cannot link (another disk)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
