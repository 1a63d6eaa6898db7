"""The run that a report sets its own against: the parent of an ablation, or the one that --against names.

runs/<name>/against.json holds {"run": name}; `ablate` writes it, and so does --against, so that the next
`make all` finds the report as it was made.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError, StageError
from pipeline.report.table import Table
from pipeline.stage import difference, inputs_of, read_manifest
from pipeline.strict_yaml import nearest

AGAINST = "against.json"
# the stages that an ablation may change, and whose plans say how
CHANGED_STAGES = ("filter", "train")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side: the scores with their paired differences, what each was given, and whether that
    was equal."""

    first: str
    second: str
    note: str
    scores: Table
    budgets: Table
    verdict: str


Compare = Callable[[Path, Path], Comparison]


@dataclass(frozen=True, slots=True)
class Against:
    """The other run's name, which fields of the plans differ, and the comparison, or why there is none."""

    name: str
    changes: list[str]
    comparison: Comparison | None
    why_not: str


def remember(run: Path, other: str) -> None:
    """State the run that the reports of `run` are set against. RecipeError where there is none."""
    if not named_run(run.parent, other).is_dir():
        raise RecipeError(
            f"--against {other}: there is no such run in {run.parent}; {nearest(other, names_in(run.parent))}"
        )
    run.mkdir(parents=True, exist_ok=True)
    (run / AGAINST).write_text(json.dumps({"run": other}) + "\n", encoding="utf-8")


def recall(run: Path) -> Path | None:
    """The other run's directory; None where none was stated. StageError where the file is damaged."""
    path = run / AGAINST
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["run"]
        return named_run(run.parent, name)
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as error:
        raise StageError(
            f'{path}: is no JSON object {{"run": name}} ({error}); remove it, or report with --against RUN'
        ) from None


def named_run(runs: Path, name: str) -> Path:
    """The directory of a run by its name in `runs`, or by its path."""
    return Path(name) if Path(name).is_dir() and not (runs / name).is_dir() else runs / name


def names_in(runs: Path) -> list[str]:
    return sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []


def inputs_against(other: Path | None) -> dict[str, str]:
    """What a report's plan takes in of the other run; nothing before its eval is finished."""
    manifest = read_manifest(other / "eval") if other is not None else None
    return inputs_of({"against": manifest}) if manifest is not None else {}


def set_against(run: Path, other: Path | None, compare: Compare) -> Against | None:
    """`run` against `other`, as `python -m pipeline compare` has it."""
    if other is None:
        return None
    theirs, ours = plans_of(other), plans_of(run)
    changes = difference(theirs, ours) if theirs and ours else []
    try:
        return Against(other.name, changes, compare(other, run), "")
    except (RecipeError, StageError) as error:
        return Against(other.name, changes, None, str(error))


def plans_of(run: Path) -> dict[str, Any]:
    manifests = {stage: read_manifest(run / stage) for stage in CHANGED_STAGES}
    return {stage: manifest["config"] for stage, manifest in manifests.items() if manifest is not None}
