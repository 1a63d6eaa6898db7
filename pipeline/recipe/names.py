"""Names that recipes and cards may give: what becomes a file or directory, what the hub can have, and where a
path leads.

A path is looked for from where the command was started and, where nothing is there, beside the file that
names it: so a recipe in a directory of its own runs from anywhere.
"""

import os
import re
from glob import glob, has_magic
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, PlainSerializer, ValidationInfo

# names become files and directories; 100 characters leave room for what stages append, of 255 in all
SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_NAME_LENGTH = 100
SafeName = Annotated[str, Field(pattern=SAFE_NAME, max_length=MAX_NAME_LENGTH)]

HUB_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
HUB_FORM = "owner/name, of letters, digits, '.', '_' and '-' only"


def is_hub_id(text: str) -> bool:
    return re.fullmatch(rf"{HUB_PART}(/{HUB_PART})?", text) is not None


def hub_id(text: str) -> str:
    """The id itself; ValueError where no data set on the hub can be called so."""
    if not is_hub_id(text):
        raise ValueError(f"a data set on the hub is called {HUB_FORM}; a local file is given with `path:`")
    return text


def local_or_hub_id(text: str) -> str:
    """The text itself; ValueError for a model that is neither a directory here nor possible on the hub.

    A directory is relative to the project, as are all that cards name.
    """
    is_here = bool(text) and os.path.isdir(os.path.join(os.path.dirname(__file__), "..", "..", text))
    if not is_here and not is_hub_id(text):
        raise ValueError(f"there is no such directory, and a model on the hub is called {HUB_FORM}")
    return text


def beside(path: str, folder: Path | None) -> str:
    """`path` (~ is your home), or the one of that name in `folder` where it is there and nothing stands at
    `path`."""
    path = os.path.expanduser(path)
    if folder is None or os.path.isabs(path) or stands(path):
        return path
    near = str(folder / path)
    return near if stands(near) else path


def stands(path: str) -> bool:
    """Whether there is such a file or directory, or one that fits a pattern."""
    try:
        return os.path.exists(path) or (has_magic(path) and bool(glob(path, recursive=True)))
    except ValueError:  # a null character
        return False


class Located(str):
    """A path that leads somewhere, and how it is written in the file: who records it records that."""

    written: str

    @classmethod
    def of(cls, path: str, folder: Path | None) -> Self:
        located = cls(beside(path, folder))
        located.written = path
        return located


def as_written(value: Any) -> Any:
    return value.written if isinstance(value, Located) else value


def _located(path: str, info: ValidationInfo) -> str:
    return Located.of(path, (info.context or {}).get("folder"))


def is_yaml(text: str) -> bool:
    """Whether a text names a YAML file of the user's, not one of our cards or prompt styles."""
    return text.endswith((".yaml", ".yml"))


LocalPath = Annotated[str, AfterValidator(_located), PlainSerializer(as_written)]
HubId = Annotated[str, AfterValidator(hub_id)]
LocalOrHubId = Annotated[str, AfterValidator(local_or_hub_id)]
