"""Verification speed as ratios against bare math-verify, in one run: `make bench-verify`.

Short model answers with their golds, generated here. Each figure is answers per second divided by what bare
math-verify (parse and verify, in this process, without its alarm) does on the same rows: `one_worker` and
`two_workers` through the pool, `in_process` by the verifier function alone. Rounds are interleaved and the
median ratio counts, so that other work on the machine touches all alike. Last line: one JSON object.
"""

import json
import logging
import random
import statistics
import time
from collections.abc import Callable

from math_verify import parse
from math_verify import verify as bare_verify

from pipeline.verify import VerifierPool
from pipeline.verify.math import verify_math

NUM_ROWS = 600
NUM_ROUNDS = 5
Pair = tuple[str, str]


def pairs(seed: int) -> list[Pair]:
    """(gold, response): integers, decimals, fractions, roots, polynomials, pairs; three of four are right."""
    draw = random.Random(seed)
    rows: list[Pair] = []
    for _ in range(NUM_ROWS):
        a, b, c = draw.randint(2, 999), draw.randint(2, 99), draw.randint(2, 9)
        gold, answer = draw.choice(
            [
                (str(a), str(a)),
                (str(a * 1000), f"{a},000"),
                (f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}"),
                (f"{a}.5", f"\\frac{{{2 * a + 1}}}{{2}}"),
                (f"{c}\\sqrt{{{b}}}", f"\\sqrt{{{c * c * b}}}"),
                (f"{c}x+{b}", f"{b} + {c}x"),
                (f"({a}, {b})", f"\\left({a}, {b}\\right)"),
            ]
        )
        if draw.random() < 0.25:
            answer = str(a + 1)
        rows.append((gold, f"Adding everything up, we find that the answer is $\\boxed{{{answer}}}$."))
    return rows


def bare(rows: list[Pair]) -> None:
    for gold, response in rows:
        expected = parse(f"${gold}$", parsing_timeout=None)
        bare_verify(expected, parse(response, parsing_timeout=None), timeout_seconds=None)


def in_process(rows: list[Pair]) -> None:
    for gold, response in rows:
        verify_math(response, gold, {})


def pooled(pool: VerifierPool) -> Callable[[list[Pair]], None]:
    def run(rows: list[Pair]) -> None:
        for _ in pool.map(((str(k), 0), "math", gold, text, {}) for k, (gold, text) in enumerate(rows)):
            pass

    return run


def seconds(function: Callable[[list[Pair]], None], rows: list[Pair]) -> float:
    start = time.perf_counter()
    function(rows)
    return time.perf_counter() - start


def main() -> None:
    logging.disable(logging.WARNING)  # math-verify warns that its own alarm is off
    with VerifierPool(workers=1) as one, VerifierPool(workers=2) as two:
        runs = {"one_worker": pooled(one), "two_workers": pooled(two), "in_process": in_process}
        for function in (bare, *runs.values()):
            function(pairs(0))
        ratios: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(1, NUM_ROUNDS + 1):
            rows = pairs(number)
            reference = seconds(bare, rows)
            for name, function in runs.items():
                ratios[name].append(reference / seconds(function, rows))
            print(f"round {number}: bare {NUM_ROWS / reference:,.0f}/s, " + ", ".join(
                f"{name} {found[-1]:.2f}" for name, found in ratios.items()))  # fmt: skip
    print(json.dumps({name: round(statistics.median(found), 3) for name, found in ratios.items()}))


if __name__ == "__main__":
    main()
