"""What a path of a recipe means: a file, a glob, a directory of files, or what save_to_disk wrote.

A directory of several kinds of files, or of several splits, is an error and no guess: its rows would be taken
twice, or test rows trained on.
"""

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.recipe.names import as_written
from pipeline.run.contract import fingerprint, hash_file

KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
FORMATS = "files of rows are .jsonl, .json, .csv, .tsv, .parquet or .arrow, each also as .gz or .zst"
# beside the rows of a directory, not of them
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
SPLIT = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev)(?=[-_./]|$)")
SHOWN = 8


def kind_of(path: str) -> tuple[str, str]:
    """The kind of a file by its name, and its compression ("" none). RecipeError for one of another kind."""
    rest, suffix = os.path.splitext(path.lower())
    compression = COMPRESSIONS.get(suffix, "")
    inner = os.path.splitext(rest)[1] if compression else suffix
    if inner not in KINDS:
        raise RecipeError(f"{path}: {FORMATS}, found '{suffix}'. Save it as one of these, for example .csv")
    return KINDS[inner], compression


def files_of(paths: Sequence[str]) -> list[str]:
    """The files with the rows, in order. One that is named is given back as it is named."""
    found = [file for path in paths for file in _files_of(path)]
    if len(set(found)) < len(found):
        twice = next(file for file in found if found.count(file) > 1)
        raise RecipeError(f"{twice}: is named twice by {', '.join(paths)}; its rows would be taken twice")
    return found


def digests_of(paths: Sequence[str]) -> dict[str, str]:
    """Each path, as the recipe writes it, with a digest of its files: where they lie bears no identity."""
    return {as_written(path): digest_of(path) for path in paths}


def digest_of_all(paths: Sequence[str]) -> str:
    """One digest: of one path its own."""
    digests = digests_of(paths)
    return fingerprint(digests) if len(digests) > 1 else next(iter(digests.values()))


def digest_of(path: str) -> str:
    """sha256 of a file; of several over their names below the directory that they share, and theirs."""
    files = _files_of(path)
    if files == [path]:
        return hash_file(Path(path))
    base = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    return fingerprint({os.path.relpath(file, base): hash_file(Path(file)) for file in files})


def _files_of(path: str) -> list[str]:
    if path.startswith("~"):
        path = os.path.expanduser(path)
    if os.path.isdir(path):
        return _directory(Path(path))
    if os.path.isfile(path) or not glob.has_magic(path):
        return [str(require_file(Path(path))) if not os.path.isfile(path) else path]
    found = [file for file in sorted(glob.glob(path, recursive=True)) if os.path.isfile(file)]
    if not found:
        raise RecipeError(f"{path}: no file is called so; {there(Path(path).parent)}")
    return found


def _directory(path: Path) -> list[str]:
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        named = ", ".join(str(path / split) for split in splits)
        raise RecipeError(f"{path}: holds the splits {', '.join(splits)}; name one of {named}")
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return [str(require_file(path / part["filename"])) for part in state["_data_files"]]
    found = [
        str(file)
        for file in sorted(path.rglob("*"))
        if file.is_file() and _may_hold_rows(file.relative_to(path))
    ]
    if not found:
        raise RecipeError(f"{path}: no file in it holds rows ({FORMATS}); {there(path)}")
    kinds = {kind_of(file)[0] for file in found}
    if len(kinds) > 1:
        raise RecipeError(
            f"{path}: holds files of several kinds ({', '.join(sorted(kinds))}), which may be the same rows; "
            f"name some of them, for example {path}/*{Path(found[0]).suffix}"
        )
    splits = sorted({split for file in found for split in SPLIT.findall(str(Path(file).relative_to(path)))})
    if len(splits) > 1:
        raise RecipeError(
            f"{path}: holds the splits {', '.join(splits)}; name the files of one, for example "
            f"{path}/**/*{splits[-1] if 'train' not in splits else 'train'}*"
        )
    return found


def _may_hold_rows(file: Path) -> bool:
    name = file.name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    hidden = any(part.startswith(".") for part in file.parts)
    return not hidden and os.path.splitext(name)[1] in KINDS and name not in DESCRIPTIONS


def require_file(path: Path) -> Path:
    """The path itself; RecipeError, with what is there instead, where it is not a file."""
    if os.path.isfile(path):  # Path.is_file raises on a name that is too long
        return path
    if not os.path.isdir(path.parent):
        raise RecipeError(f"{path}: there is no such file; there is no directory {path.parent} either")
    raise RecipeError(f"{path}: there is no such file; {there(path.parent)}")


def there(directory: Path) -> str:
    """What a directory holds, in words."""
    if not os.path.isdir(directory):
        return f"there is no directory {directory}"
    return f"{directory} holds: {', '.join(sorted(p.name for p in directory.iterdir())[:SHOWN]) or 'nothing'}"
