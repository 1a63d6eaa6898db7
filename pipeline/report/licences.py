"""A licence as the front matter of a card on the Hugging Face hub states it."""

import re
from collections.abc import Iterable
from typing import Any

# the identifiers that the hub knows, from docs/hub/repositories-licenses.md of
# github.com/huggingface/hub-docs at commit 008d54d08fd9; a licence that was added since is stated as `other`
# with its name, as any other licence is
# fmt: off
KNOWN = frozenset([
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl",
    "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by",
    "odbl", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl",
    "lgpl-lr", "deepfloyd-if-license", "llama2", "gemma",
])
# fmt: on

REMARK = re.compile(r"\s*\([^()]*\)$")  # whose it is, in brackets behind the name


def license_fields(licences: Iterable[str]) -> dict[str, Any]:
    """`license`, and where that is not one licence that the hub knows, `license_name`."""
    names = sorted({" ".join(licence.split()) for licence in licences})
    known = {hub_identifier(name) for name in names}
    if len(known) == 1 and (found := known.pop()) is not None:
        return {"license": found}
    return {"license": "other", "license_name": " and ".join(names) or "unknown"}


def hub_identifier(name: str) -> str | None:
    """What the hub calls a licence, by its name as people write it: Apache-2.0 (reasoning-gym), CC BY 4.0."""
    plain = REMARK.sub("", name).lower().replace(" ", "-")
    return plain if plain in KNOWN else None
