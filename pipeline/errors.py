"""Errors that a user can meet, named by the boundary that they mark.

Each message says where, what is wrong, what was found and what to do next. `pipeline/__main__.py` prints
them as one `error: ...` line without a traceback; anything else that escapes is a bug and keeps its own.
A bad answer or a failed request is data (a verdict, a recorded failure), never one of these.
"""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PipelineError(Exception):
    """Base of all errors that are printed as one line; exit code 1."""

    exit_code = 1


class RecipeError(PipelineError):
    """The recipe, a card or a flag is wrong: found before any work is done. Exit code 2."""

    exit_code = 2


class StageError(PipelineError):
    """A stage cannot start, go on or finish: inputs missing, directory taken, counts that do not add up."""


class EngineError(PipelineError):
    """An engine (vLLM in this process, or a server) cannot start or keeps dying."""


class VerifyError(PipelineError):
    """The verifier itself was asked for something it cannot do (unknown verifier, refused family)."""


@contextmanager
def inside(where: str) -> Iterator[None]:
    """Put the file or the key that led there in front of a RecipeError that passes."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


# what a disk says that takes nothing more, and the words of libraries that do not pass the number on
DISK_FAULTS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM,
)  # fmt: skip
DISK_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Read-only file system",
    "PytorchStreamWriter failed writing file",
    "inline_container.cc",  # torch, of a position that is not where it wrote up to
)


def in_one_line(error: BaseException, most: int | None = None) -> str:
    """What an error says, without its breaks; of a long one the first `most` characters."""
    return " ".join(str(error).split())[:most]


def write_fault(error: BaseException | None, where: Path) -> StageError | None:
    """The one error for a full, broken or closed disk that `error` or one of its causes tells of."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        text = in_one_line(error)
        if number in DISK_FAULTS or any(word in text for word in DISK_WORDS):
            return StageError(
                f"{where}: cannot be read or written ({text[:200]}). What is finished is kept: make room "
                "there, or change its permissions, and run the same command again"
            )
        error = error.__cause__ or error.__context__
    return None


def no_descriptor(error: BaseException | None) -> str:
    """What to do where `error`, or a cause of it, says that this process may open nothing more; else ""."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return (
                f"no file descriptor is left; this process may hold {limit:,} (ulimit -n). What was finished "
                "is kept: raise the limit (ulimit -n 65536), and run the same command again"
            )
        error = error.__cause__ or error.__context__
    return ""
