"""Errors that a user can meet, named by the boundary that they mark.

Each message says where, what is wrong, what was found and what to do next. `pipeline/__main__.py` prints
them as one `error: ...` line without a traceback; anything else that escapes is a bug and keeps its own.
A bad answer or a failed request is data (a verdict, a recorded failure), never one of these.
"""

from collections.abc import Iterator
from contextlib import contextmanager


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
