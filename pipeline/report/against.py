"""The run that a report sets its own against: the parent of an ablation, or the one that --against names.

runs/<name>/against.json holds {"run": name}; `ablate` writes it, and so does --against, so that the next
`make all` finds the report as it was made.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.report.table import Table
from pipeline.run.contract import difference, read_manifests
from pipeline.run.stages import before

AGAINST = "against.json"
# the stages that an ablation may change, and whose plans say how
CHANGED_STAGES = [stage for stage in before("eval") if stage not in before("filter")]


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


def remember(context: Context, other: str) -> None:
    """State the run that the reports of this one are set against. RecipeError where there is none."""
    path = context.run_named("--against", other)
    # by its name where it stands beside this one, so that both can be moved together
    name = path.name if path.parent == context.runs else str(path.resolve())
    context.run.mkdir(parents=True, exist_ok=True)
    (context.run / AGAINST).write_text(json.dumps({"run": name}) + "\n", encoding="utf-8")


def recall(context: Context) -> Path | None:
    """The other run's directory; None where none was stated. StageError where the file is damaged."""
    path = context.run / AGAINST
    try:
        return Path(context.runs / json.loads(path.read_text(encoding="utf-8"))["run"])
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as error:
        raise StageError(
            f'{path}: does not hold {{"run": name}} ({error}); remove it, or report with --against RUN'
        ) from None


def named_run(runs: Path, name: str) -> Path:
    """The directory of a run by its name in `runs`, or by its path."""
    return Path(name) if Path(name).is_dir() and not (runs / name).is_dir() else runs / name


def set_against(context: Context, other: Path | None, compare: Compare) -> Against | None:
    """This run against `other`, as `python -m pipeline compare` has it."""
    if other is None:
        return None
    theirs, ours = (
        {stage: manifest.config for stage, manifest in read_manifests(run, CHANGED_STAGES).items()}
        for run in (other, context.run)
    )
    changes = difference(theirs, ours) if theirs and ours else []
    try:
        return Against(other.name, changes, compare(other, context.run), "")
    except (RecipeError, StageError) as error:
        return Against(other.name, changes, None, str(error))
