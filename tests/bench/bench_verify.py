"""How often the verifiers are right, and how fast: `make bench-verify` (`ARGS='--rows FILE'` for rows of yours).

Rates: right answers accepted and wrong ones refused (as wrong or unverifiable), of the rows of tests/verify_rows by
table, those held out by hash apart, and of each labelled file {gold, response, verifier, correct, kind} by verifier
and kind: those of --rows, or the rows of tests/verify_rows/blind*.jsonl, whose author did not know the verifiers (half
of them are held out), and verify/rows.jsonl in the data directory where that exists.

Speed: short model answers with their golds, generated here. Each figure is answers per second divided by what bare
math-verify (parse and verify, in this process, without its alarm) does on the same rows: `one_worker` and
`two_workers` through the pool, `in_process` by the verifier function alone. Rounds are interleaved and the
median ratio counts, so that other work on the machine touches all alike. Last line: one JSON object.
"""

import argparse
import importlib
import json
import logging
import os
import pkgutil
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from math_verify import parse
from math_verify import verify as bare_verify

from pipeline.verify import VerifierPool
from pipeline.verify.command import verdicts_in_order
from pipeline.verify.confusion import rates_table
from pipeline.verify.math import verify_math
from pipeline.verify.table import VERIFIERS, function_of
from tests import verify_rows
from tests.verify_rows import held_out

ROOT = Path(__file__).resolve().parents[2]
BLIND = [ROOT / "tests/verify_rows" / f"{name}.jsonl" for name in ("blind", "blind_held_out")]
DATA = Path(os.environ.get("RETORT_DATA", ROOT.parent / "shared" / "data"))

NUM_ROWS = 600
NUM_ROUNDS = 5
Pair = tuple[str, str]
OwnRow = tuple[str, str, tuple[Any, ...], str]  # (its table, the verifier, the row, the response)
Rates = Counter[tuple[str, bool, str]]  # (group, whether the answer is right, status of the verdict)


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


def own_rows() -> Iterator[OwnRow]:
    """All labelled rows of tests/verify_rows. ValueError for a module without one: its rows would be in no rate."""
    for module in pkgutil.iter_modules(verify_rows.__path__):
        if module.name == "hostile":  # which has no right answers
            continue
        found = list(rows_of(module.name))
        if not found:
            raise ValueError(f"tests/verify_rows/{module.name}.py: found no table; name it in rows_of")
        yield from found


def rows_of(name: str) -> Iterator[OwnRow]:
    """A table by format holds answers, which go into a box; a list holds whole responses, of math in ROWS, else
    of the verifier that it is named after."""
    module = importlib.import_module(f"tests.verify_rows.{name}")
    for table, verifier in {"ROWS": "math", **{one.upper(): one for one in VERIFIERS}}.items():
        rows = getattr(module, table, [])
        if isinstance(rows, dict):
            boxed = ((row, f"\\boxed{{{row[1]}}}") for part in rows.values() for row in part)
            yield from ((f"{name} {verifier}", verifier, row, response) for row, response in boxed)
        else:
            yield from ((f"{name} {verifier}", verifier, row, row[1]) for row in rows)


def rates_of_own_rows() -> tuple[Rates, Rates]:
    """Of the rows that mending may look at, and of those held out."""
    seen: Rates = Counter()
    apart: Rates = Counter()
    for name, verifier, row, response in own_rows():
        counts = apart if held_out(row) else seen
        metadata = row[3] if len(row) > 3 else {}
        counts[name, row[2], function_of(verifier)(response, row[0], metadata).status] += 1
    return seen, apart


def rates_of_file(file: Path) -> Rates:
    counts: Rates = Counter()
    with VerifierPool(workers=1) as pool:
        for row, verdict in verdicts_in_order(file, "math", pool):
            counts[f"{verdict.verifier} {row.get('kind', '')}", row["correct"], verdict.status] += 1
    return counts


def print_rates(title: str, counts: Rates) -> dict[str, float]:
    print(f"{title}\n{rates_table(counts)}\n")
    right = sum(count for (_, label, _), count in counts.items() if label)
    accepted = sum(count for (_, label, status), count in counts.items() if label and status == "correct")
    false = sum(count for (_, label, status), count in counts.items() if not label and status == "correct")
    wrong = counts.total() - right
    return {
        "right_accepted": round(accepted / max(right, 1), 4),
        "wrong_refused": round(1 - false / max(wrong, 1), 4),
    }


def rates(files: list[Path]) -> dict[str, dict[str, float]]:
    seen, apart = rates_of_own_rows()
    found = {"own": print_rates("Own rows", seen), "held_out": print_rates("Own rows, held out", apart)}
    for file in files:
        counts = rates_of_file(file)
        print_rates(f"{file}, by kind", counts)
        verifiers: Rates = Counter()
        for (group, label, status), count in counts.items():
            verifiers[group.partition(" ")[0], label, status] += count
        found[file.stem] = print_rates(f"{file}, by verifier", verifiers)
    return found


def speed() -> dict[str, float]:
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
    return {name: round(statistics.median(found), 3) for name, found in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=Path, action="append", help="a labelled file; more than once for more")
    files = parser.parse_args().rows or [*BLIND, *filter(Path.is_file, [DATA / "verify" / "rows.jsonl"])]
    logging.disable(logging.WARNING)  # math-verify warns that its own alarm is off
    print(json.dumps({"rates": rates(files), **speed()}))


if __name__ == "__main__":
    main()
