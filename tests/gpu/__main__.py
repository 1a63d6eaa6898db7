"""What works on this machine, row by row: `make check-gpu`. A row that fails, hangs beyond its limit
or dies says so, its process is ended, and the others still run. Nothing needs the hub.

Reads requirements/gpu.lock and the checkout; writes the table to stdout and, row by row as they end, --out.

    python -m tests.gpu                      # under ten minutes on one GPU
    python -m tests.gpu --dry                # what a CPU can do of it, as small as it can be: part of CI
    python -m tests.gpu --only train         # rows whose names hold the word
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.gpu.rows import ROWS, Row
from tests.gpu.setting import NotHere, Setting

WORKS, FAILS, NOT_HERE = "works", "fails", "not here"
SHOWN = 400  # characters of a cell
LEAST_SECONDS = 15  # below it no row is begun
SLOW_CPU = 4  # the limits are those of a GPU


def work(rows: list[Row], device: str, directory: Path) -> None:
    """Run the rows one after the other in this process; what each found goes to `directory`.

    Importing the libraries takes longer than most rows, so rows share a process until one fails and ends it.
    """
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d ms %(message)s")
    for row in rows:
        with tempfile.TemporaryDirectory() as own:
            try:
                found = {"state": WORKS, "figures": row.run(Setting(device, Path(own)))}
            except NotHere as reason:
                found = {"state": NOT_HERE, "figures": str(reason)}
        clear_device(device)
        written = directory / "writing"
        written.write_text(json.dumps(found))
        written.rename(result_of(row, directory))


def clear_device(device: str) -> None:
    """Leave nothing of a row to the next one's memory."""
    gc.collect()
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():  # which the row itself tells
            return
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def result_of(row: Row, directory: Path) -> Path:
    return directory / f"{ROWS.index(row)}.json"


def next_rows(rest: list[Row], device: str, ends: float) -> Iterator[dict[str, Any]]:
    """What one process finds, for one or more of the rows at the beginning of `rest`."""
    said = rest[0].lacks(device)
    if said:
        return iter([{"name": rest[0].name, "state": NOT_HERE, "seconds": 0.0, "figures": said}])
    shared = next((place for place, row in enumerate(rest) if row.alone or row.lacks(device)), len(rest))
    return run_together(rest[: max(1, shared)], device, ends)


def run_together(rows: list[Row], device: str, ends: float) -> Iterator[dict[str, Any]]:
    """Run the rows in one process group, up to the first that fails, hangs or dies; the rest is not begun."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        log = directory / "log"
        command = [sys.executable, "-m", "tests.gpu", "--device", device, "--work", str(directory)]
        command += [word for row in rows for word in ("--row", row.name)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        with log.open("w") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            for row in rows:
                found = wait_for(process, row, result_of(row, directory), device, ends)
                if found["state"] == FAILS:
                    text = log.read_text(errors="replace")
                    yield {**found, "error": found.get("error") or last_words(text), "log": text[-6000:]}
                    return
                yield found
        finally:
            end_group(process)


def wait_for(
    process: "subprocess.Popen[bytes]", row: Row, result: Path, device: str, ends: float
) -> dict[str, Any]:
    """What the row found, or that it failed: it died, or its time or that of all was over."""
    started = time.monotonic()
    limit = min(row.seconds * (SLOW_CPU if device == "cpu" else 1), ends - started)
    found: dict[str, Any] = {"state": FAILS, "error": f"not finished after {limit:.0f} s"}
    while time.monotonic() - started < limit:
        ended = process.poll() is not None
        if result.is_file():
            found = json.loads(result.read_text())
            break
        if ended:
            found = {"state": FAILS}
            break
        time.sleep(0.1)
    return {"name": row.name, "seconds": round(time.monotonic() - started, 1), **found}


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End what the row started and left: an engine's processes outlive a death of their parent."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_words(text: str) -> str:
    """The last line of a traceback, which names the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0] or line.startswith("error:")]
    return (errors or lines or [""])[-1]


def table(results: list[dict[str, Any]]) -> str:
    """One line a row: works, fails or not here, the seconds, and the figures or the error."""
    width = max(len(result["name"]) for result in results)
    lines = []
    for result in results:
        said = result.get("error") or result.get("figures") or ""
        if isinstance(said, dict):
            said = ", ".join(f"{name} {value}" for name, value in said.items())
        said = said if len(said) <= SHOWN else said[:SHOWN] + " ..."
        lines.append(f"{result['name']:<{width}}  {result['state']:<8}  {result['seconds']:>6.1f} s  {said}")
    return "\n".join(lines)


def counted(results: list[dict[str, Any]]) -> str:
    """How many rows there are of each state: what is not here is neither."""
    states = Counter(result["state"] for result in results)
    words = {WORKS: "work", FAILS: "fail", NOT_HERE: "need what is not here"}
    return f"of {len(results)} rows " + ", ".join(f"{states[state]} {word}" for state, word in words.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="on the CPU, as small as it can be")
    parser.add_argument("--only", default="", help="rows whose names hold this word")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/check-gpu.json", help="the rows as JSON")
    parser.add_argument("--minutes", type=float, default=10, help="begin no row after that")
    parser.add_argument("--row", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.work:
        work([row for row in ROWS if row.name in flags.row], flags.device, flags.work)
        return
    device = "cpu" if flags.dry else "cuda"
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    ends = time.monotonic() + 60 * flags.minutes
    rest = [row for row in ROWS if flags.only in row.name]
    if not rest:
        parser.error(
            f"--only {flags.only}: no row is called so; there are: {', '.join(row.name for row in ROWS)}"
        )
    while rest and ends - time.monotonic() > LEAST_SECONDS:
        for found in next_rows(rest, device, ends):
            results.append(found)
            rest = rest[1:]
            print(table([found]), flush=True)
            flags.out.write_text(json.dumps(results, indent=2) + "\n")
    print("\n" + table(results))
    failed = any(result["state"] == FAILS for result in results)
    if rest:
        print(f"\nno time was left for: {', '.join(row.name for row in rest)}")
    print(f"\n{counted(results)}; {flags.out}")
    sys.exit(1 if failed or rest else 0)


if __name__ == "__main__":
    main()
