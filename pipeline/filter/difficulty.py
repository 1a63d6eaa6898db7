"""How hard a problem is for the teacher: the share of its traces that are right, in six columns.

Execution and other strict verification keep what is easy. So filter counts what it keeps by that share,
and the report shows it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.filter.selection import Selected, Selection

DIFFICULTIES = ("0%", "1-25%", "26-50%", "51-75%", "76-99%", "100%")


def difficulty_of(pass_rate: float) -> str:
    """The column of a pass rate: none, each quarter, all."""
    if pass_rate in (0.0, 1.0):
        return DIFFICULTIES[0] if pass_rate == 0 else DIFFICULTIES[-1]
    return DIFFICULTIES[1 + min(3, int(pass_rate * 4 - 1e-9))]


def by_pass_rate(selection: "Selection", selected: "Selected") -> dict[str, dict[str, int]]:
    """Of the problems of each column their number, their traces, the traces kept, and how many keep one."""
    import numpy

    tries, correct = (
        numpy.frombuffer(held, dtype=numpy.uint32) for held in (selection.tries, selection.correct)
    )
    kept = numpy.bincount(selected.positions, minlength=len(tries))
    sampled = tries > 0
    rates, codes = numpy.unique(correct[sampled] / tries[sampled], return_inverse=True)
    columns = numpy.array(
        [DIFFICULTIES.index(difficulty_of(rate)) for rate in rates.tolist()], dtype=numpy.int64
    )
    place = columns[codes] if len(rates) else codes
    sums = {
        "problems": numpy.bincount(place, minlength=len(DIFFICULTIES)),
        "traces": numpy.bincount(place, weights=tries[sampled], minlength=len(DIFFICULTIES)),
        "kept": numpy.bincount(place, weights=kept[sampled], minlength=len(DIFFICULTIES)),
        "problems_kept": numpy.bincount(place, weights=kept[sampled] > 0, minlength=len(DIFFICULTIES)),
    }
    return {
        column: {name: int(values[code]) for name, values in sums.items()}
        for code, column in enumerate(DIFFICULTIES)
        if sums["problems"][code]
    }
