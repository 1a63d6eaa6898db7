"""2,600 answers that are nearly right, one change away from a gold: none may be `correct` unless it is equal.

Golds: MATH and GSM8K (tests/data/golds.jsonl) and those of tests/verify_rows as they were when this was written. A
verdict `correct` stands where a second opinion by value agrees (tests/equal_by_value.py), or where a person has read the
pair and said why it is equal (tests/data/equal_mutants.jsonl).
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.verify import VerifierPool
from tests.equal_by_value import all_same, same_value
from tests.mutations import MUTATIONS, mutants

DATA = Path(__file__).resolve().parent / "data"
SEED = 13
COUNTS = {"MATH": 2_000, "GSM8K": 300, "rows": 300}


def lines(name: str) -> Iterator[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def golds(source: str) -> list[str]:
    return [row["answer"] for row in lines("golds.jsonl") if row["source"] == source]


@pytest.mark.slow
@pytest.mark.parametrize("source", COUNTS)
def test_nothing_near_a_gold_is_correct_unless_it_is_equal(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = list(mutants(SEED, golds(source), COUNTS[source]))
    assert len(found) == COUNTS[source]
    with VerifierPool(workers=1) as pool:
        rows = (
            (("", k), "math", gold, f"\\boxed{{{mutant}}}", {}) for k, (_, gold, mutant) in enumerate(found)
        )
        verdicts = list(pool.map(rows))
    accepted = [
        (*one, verdict.layer)
        for one, verdict in zip(found, verdicts, strict=True)
        if verdict.status == "correct"
    ]
    opinions = all_same([(gold, mutant) for _, gold, mutant, _ in accepted])
    reviewed = {(row["gold"], row["mutant"]) for row in lines("equal_mutants.jsonl")}
    false = [
        (kind, gold, mutant, layer)
        for (kind, gold, mutant, layer), equal in zip(accepted, opinions, strict=True)
        if not equal and (gold, mutant) not in reviewed
    ]
    with capsys.disabled():
        statuses = Counter(verdict.status for verdict in verdicts)
        by_value = sum(opinion is True for opinion in opinions)
        print(f"\n{source}: {len(found):,} mutants: {dict(statuses)}; of the correct {by_value} are equal by value, "
              f"{len(accepted) - by_value - len(false)} equal as read by a person, {len(false)} false")  # fmt: skip
        for one in false:
            print("  false:", " | ".join(one))
    assert false == []


def test_each_kind_of_mutation_applies() -> None:
    kinds = Counter(kind for kind, _, _ in mutants(SEED, golds("MATH"), 400))
    assert kinds.keys() == MUTATIONS.keys()


def test_mutants_are_the_same_each_time() -> None:
    assert list(mutants(SEED, golds("rows"), 50)) == list(mutants(SEED, golds("rows"), 50))


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("2!", "2", True),
        ("\\frac12", "\\frac{2}{4}", True),
        ("\\frac{1}{4}", "\\frac{1}{4", True),
        ("x^{10}", "x^10", True),
        ("3, 5", "5, 3", True),
        ("(3, 5)", "(5, 3)", False),
        ("[3, 5)", "[3, 5]", None),
        ("4^\\circ, 20^\\circ", "20^{\\circ}, 4^{\\circ}", True),
        ("x + 1", "X + 1", False),
        ("\\sin(x)^2", "\\sin(x^2)", False),
        ("\\sqrt{66}", "\\sqrt66}", False),
        ("7", "7_8", True),
        ("25", "25_8", False),
        ("25", "25_n", None),
        ("25", "\\hat{25}", None),
        ("x", "x'", None),
        ("3\\text{ cm}", "3\\text{ m}", None),
        ("(2, 5)", "(2, 5", None),
        ("\\frac{1}{2004!}", "\\frac{1}{2044!}", False),
        ("t", "\\theta", False),
        ("(0, \\infty)", "(0, -\\infty)", False),
        ("\\frac{1}{0}", "\\frac{2}{0}", None),
        ("\\begin{pmatrix} 1 \\\\ 7 \\end{pmatrix}", "\\begin{pmatrix} 1! \\\\ 7 \\end{pmatrix}", True),
    ],
)
def test_the_second_opinion(gold: str, answer: str, equal: bool | None) -> None:
    assert same_value(gold, answer) is equal
