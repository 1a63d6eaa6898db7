"""Names that recipes and cards may give: what becomes a file or directory, and what the hub can have."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, Field

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


HubId = Annotated[str, AfterValidator(hub_id)]
LocalOrHubId = Annotated[str, AfterValidator(local_or_hub_id)]
