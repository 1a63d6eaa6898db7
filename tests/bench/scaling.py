"""What more workers give a stage that reads and writes in one process and works in others.

The process and its workers run beside each other, so with w workers n rows take

    seconds = n * max(own, workers / w)

where `own` is the process's CPU time for a row and `workers` that of all workers. One worker against two is
measured; more are by this formula, from the CPU times of the run with the most workers.
"""

import resource
from collections.abc import Mapping

CORES = 64


def cpu_seconds() -> tuple[float, float]:
    """CPU time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own, theirs = (usage.ru_utime + usage.ru_stime for usage in usages)
    return own, theirs


def scaling(found: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Figures of runs by their number of workers, each with rows, seconds, own_cpu and workers_cpu."""
    few, most = min(found), max(found)
    one, many = found[few], found[most]
    own, theirs = (many[name] / many["rows"] for name in ("own_cpu", "workers_cpu"))
    return {
        **{f"rows_per_second_{n}": round(run["rows"] / run["seconds"], 1) for n, run in found.items()},
        f"ratio_{most}_to_{few}": round(one["seconds"] / many["seconds"], 2),
        "own_ms": round(1000 * own, 4),
        "workers_ms": round(1000 * theirs, 4),
        "workers_that_keep_it_busy": round(theirs / own, 1),
        f"rows_per_second_{CORES}_by_formula": round(1 / max(own, theirs / CORES), 1),
    }
