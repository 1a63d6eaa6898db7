"""The math verifier on labelled responses: small fixtures always, the whole data sets where they are there."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.verify import VerifierPool
from pipeline.verify.math import verify_math
from tests.conftest import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "verify"


def read(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def data(name: str) -> Path:
    """A file of ../shared/data, or of the directory that RETORT_DATA names."""
    path = Path(os.environ.get("RETORT_DATA", ROOT.parent / "shared" / "data")) / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: set RETORT_DATA to the directory that holds {name}")
    return path


def disagreements(path: Path) -> list[tuple[str, str]]:
    wrong = []
    for row in read(path):
        outcome = verify_math(row["response"], row["gold"], {})
        if (outcome.status == "correct") != row["correct"] or outcome.status == "unverifiable":
            wrong.append((row["gold"], row["response"][-80:]))
    return wrong


def gold_misses(pairs: Iterator[tuple[str, str]]) -> Counter[str]:
    """Reasons why golds do not verify: against themselves, and against a full solution."""
    misses: Counter[str] = Counter()
    for gold, solution in pairs:
        for response in (gold, f"\\boxed{{{gold}}}", solution):
            outcome = verify_math(response, gold, {})
            if outcome.status != "correct":
                misses[f"{outcome.reason}: {gold}"] += 1
    return misses


def accepted(name: str) -> tuple[float, float]:
    """Of a file of tests/verify_rows: the share of right answers that are accepted, and of wrong ones."""
    rows = list(read(ROOT / "tests" / "verify_rows" / f"{name}.jsonl"))
    with VerifierPool(workers=1) as pool:
        verdicts = pool.map(
            ((row["id"], 0), row["verifier"], row["gold"], row["response"], {}) for row in rows
        )
        found = Counter((row["correct"], verdict.status) for row, verdict in zip(rows, verdicts, strict=True))
    right, wrong = (sum(n for (label, _), n in found.items() if label == one) for one in (True, False))
    print(
        f"{name}: {found[True, 'correct']} of {right} right, {found[False, 'correct']} of {wrong} wrong accepted"
    )
    return found[True, "correct"] / right, found[False, "correct"] / wrong


@pytest.mark.parametrize(
    ("name", "right", "wrong"), [("blind", 0.97, 0.005), ("blind_held_out", 0.83, 0.015)]
)
def test_rows_whose_author_did_not_know_the_verifiers(name: str, right: float, wrong: float) -> None:
    """The second half was never looked at: its rates are those to trust, and may not fall."""
    rates = accepted(name)
    assert rates[0] >= right
    assert rates[1] <= wrong


def test_labelled_solutions_of_the_fixture() -> None:
    assert disagreements(FIXTURES / "gsm8k_solutions.jsonl") == []


def test_golds_of_the_fixture() -> None:
    rows = read(FIXTURES / "math_answers.jsonl")
    assert not gold_misses((row["gold"], row["response"]) for row in rows)


@pytest.mark.slow
def test_all_labelled_solutions() -> None:
    path = data("gsm8k/model_solutions.jsonl")
    assert sum(1 for _ in read(path)) == 5276
    assert disagreements(path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k/train.jsonl", "gsm8k/test.jsonl"])
def test_gsm8k_golds(name: str) -> None:
    rows = read(data(name))
    assert not gold_misses((row["answer"].rpartition("####")[2].strip(), row["answer"]) for row in rows)


# a solution that ends "$\\boxed{3}$ or $\\boxed{\\frac{2}{5}}$", of which the data set took the last box for its
# gold: two values between which a response does not decide are no answer where the gold is one
OPEN_SOLUTIONS = {"math/train.jsonl": Counter({"no_answer: \\frac{2}{5}": 1})}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math/train.jsonl", "math/test500.jsonl"])
def test_math_golds(name: str) -> None:
    misses = gold_misses((row["answer"], row["solution"]) for row in read(data(name)))
    assert misses == OPEN_SOLUTIONS.get(name, Counter())


@pytest.mark.slow
def test_golds_of_other_problems_are_rejected() -> None:
    """The gold of the next row is a wrong answer wherever the two differ."""
    golds = sorted({row["answer"] for row in read(data("math/test500.jsonl"))})
    accepted = [
        (gold, other)
        for gold, other in zip(golds, golds[1:] + golds[:1], strict=True)
        if verify_math(f"\\boxed{{{other}}}", gold, {}).status == "correct"
    ]
    assert len(accepted) <= len(golds) // 50, accepted
