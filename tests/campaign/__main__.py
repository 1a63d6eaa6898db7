"""Misfortune by the hundred: `make campaign`. Prints what was tried, recovered and equal as JSON.

    python -m tests.campaign --seed 0 --kills 100 --disks 40 --servers 60 --corruptions 40 --paths 12

It needs a C compiler, and about 20 s a case. Not in CI; its last figures are in docs/reliability.md.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.campaign.cases import Kinds
from tests.campaign.work import Work
from tests.served import scripted_server

COUNTS = {"kills": 100, "disks": 40, "servers": 60, "corruptions": 40, "paths": 12}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="start no case after so long")
    parser.add_argument("--only", action="store_true", help="no kind but those that are named")
    for kind, count in COUNTS.items():
        parser.add_argument(f"--{kind}", type=int, help=f"else {count}")
    flags = parser.parse_args()
    asked = {kind: getattr(flags, kind) for kind in COUNTS}
    counts = {kind: (0 if flags.only else COUNTS[kind]) if n is None else n for kind, n in asked.items()}
    with tempfile.TemporaryDirectory(prefix="c") as folder, scripted_server(0.02, seconds=86_400) as url:
        report = campaign(Work(Path(folder).resolve(), url), counts, flags.seed, flags.minutes)
    print(json.dumps(report, indent=2))
    sys.exit(report["all"]["tried"] != report["all"]["recovered"] or not report["all"]["equal results"])


def campaign(work: Work, counts: dict[str, int], seed: int, minutes: float) -> dict[str, dict[str, object]]:
    """Every kind so many times; what came of each kind."""
    end, kinds = time.monotonic() + 60 * minutes, Kinds(work, seed)
    ended = work.finish(work.finished)
    assert ended.code == 0, ended.stderr
    makers = dict(
        zip(COUNTS, (kinds.kill, kinds.disk, kinds.server, kinds.corruption, kinds.path), strict=True)
    )
    report, total = {}, {"tried": 0, "recovered": 0, "equal": 0}
    for kind, count in counts.items():
        held = {"tried": 0, "recovered": 0, "equal": 0}
        for number in range(count):
            if time.monotonic() > end:
                break
            case = makers[kind](number)
            print(
                f"{case.what}: {'ok' if case.recovered and case.equal else 'FAILED ' + case.note}",
                file=sys.stderr,
            )
            held["tried"] += 1
            held["recovered"] += case.recovered
            held["equal"] += case.equal
        total = {name: total[name] + held[name] for name in total}
        report[kind] = {**held}
    report["all"] = {**total, "equal results": total["equal"] == total["tried"], "seed": seed}
    return report


if __name__ == "__main__":
    main()
