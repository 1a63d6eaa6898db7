"""What the sandbox costs a program, and how many programs two workers verify: `make bench-sandbox`.

A short program that reads, adds and prints, run by turns: bare (`subprocess` and the same Python as `python -I`),
and in each sandbox that this machine has; `*_more_ms` is the median of what one run costs more than the bare one
before it. Then `programs_per_second`: answers that define a function, with four asserts each, through the pool
with two workers, two sandboxes an answer; `stdio_per_second`: programs with two cases each. Rounds are interleaved.
Last line: one JSON object.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable

from pipeline.verify import VerifierPool
from pipeline.verify.sandbox import WAYS, Limits, Way, fault_of, interpreter, run_program

NUM_ROUNDS = 60
NUM_PROGRAMS = 200
SOURCE = "print(sum(map(int, input().split())))"
GIVEN = b"1 2 3\n"
TESTS = "\n".join(f"assert add({a}, {a + 1}) == {2 * a + 1}" for a in range(4))


def bare() -> bytes:
    command = [interpreter()[0], "-I", "-c", SOURCE]
    return subprocess.run(command, input=GIVEN, capture_output=True, check=True).stdout


def inside(way: Way) -> Callable[[], bytes]:
    return lambda: run_program({"main.py": SOURCE}, GIVEN, Limits(), through=way).output


def milliseconds(function: Callable[[], bytes]) -> float:
    start = time.perf_counter()
    assert function() == b"6\n"
    return 1000 * (time.perf_counter() - start)


def per_second(pool: VerifierPool, gold: dict[str, object], source: str) -> float:
    text = json.dumps(gold)
    start = time.perf_counter()
    rows = [((str(k), 0), "code", text, f"```python\n{source}\n```", {}) for k in range(NUM_PROGRAMS)]
    assert all(verdict.status == "correct" for verdict in pool.map(rows))
    return NUM_PROGRAMS / (time.perf_counter() - start)


def main() -> None:
    ways = {way.name: inside(way) for way in WAYS if not fault_of(way)}
    alone: list[float] = []
    more: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(NUM_ROUNDS):
        for name, function in ways.items():
            alone.append(milliseconds(bare))
            more[name].append(milliseconds(function) - alone[-1])
    figures = {"bare_ms": statistics.median(alone)}
    figures |= {f"{name}_more_ms": statistics.median(found) for name, found in more.items()}
    print(", ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    cases = [{"input": "1 2 3\n", "output": "6"}, {"input": "4 5\n", "output": "9"}]
    with VerifierPool(workers=2) as pool:
        function = {"kind": "function", "tests": TESTS, "entry_point": "add"}
        rates = []
        for _ in range(2):  # the first starts the workers
            rates.append(per_second(pool, function, "def add(a, b):\n    return a + b"))
        figures["programs_per_second"] = rates[-1]
        figures["stdio_per_second"] = per_second(pool, {"kind": "stdio", "cases": cases}, SOURCE)
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
