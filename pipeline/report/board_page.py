"""board.html: all runs on one page, by the same rules as the page of a report."""

from collections.abc import Sequence

from pipeline.report import board, charts
from pipeline.report.board import Group
from pipeline.report.numbers import Interval
from pipeline.report.page import rendered
from pipeline.report.table import Table

MAX_DRAWN = 60  # runs in one picture: more cannot be read


def board_page(groups: Sequence[Group], unmeasured: Table | None) -> str:
    """The page as text."""
    return rendered("board.html.j2", "", groups=groups, unmeasured=unmeasured, board=board, chart_of=chart_of)


def chart_of(group: Group) -> charts.Chart:
    """Every model of the runs, the best first."""
    runs = group.runs[:MAX_DRAWN]
    rows: list[tuple[str, dict[str, tuple[float, Interval]]]] = []
    for run, name in zip(runs, without_start([run.name for run in runs]), strict=True):
        held = run.headline.models.items()
        rows.append((name, {model: (score.pass_at_1, score.ci95) for model, score in held}))
    return charts.board_chart(rows)


def without_start(names: list[str]) -> list[str]:
    """What all of several names begin with, up to a dash, says nothing beside a bar."""
    first, last = min(names), max(names)
    shared = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), 0)
    return [name[first.rfind("-", 0, shared) + 1 :] for name in names]
