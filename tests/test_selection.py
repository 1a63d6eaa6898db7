"""Selection: preference per problem, shares, caps and budgets; the same whatever the order of the traces."""

import random
from collections import Counter
from typing import Any

import numpy
import pytest

from pipeline.errors import RecipeError
from pipeline.filter.selection import REASONS, Selected, Selection, mix_bits
from pipeline.recipe.schema import Select
from pipeline.recipe.strict_yaml import validate

NUM_PROBLEMS = 200
SAMPLES = 4


def traces() -> list[tuple[int, int, int]]:
    """(position, sample, tokens) of four traces of each problem."""
    rng = random.Random(3)
    return [(p, s, rng.randint(10, 500)) for p in range(NUM_PROBLEMS) for s in range(SAMPLES)]


def lots() -> Any:
    return numpy.array([mix_bits(p) for p in range(NUM_PROBLEMS)], dtype=numpy.uint64)


def choose(rows: list[tuple[int, int, int]], seed: int = 0, **options: Any) -> tuple[Selected, list[int]]:
    """The selection, and the indices into `rows` of what was selected, in its order."""
    selection = Selection(lots(), validate(Select, options, "select"), seed)
    for position in range(NUM_PROBLEMS):
        for number in range(NUM_PROBLEMS - 1):
            selection.saw(position, ("even", "odd")[position % 2], correct=number < position)
    for offset, (position, sample, tokens) in enumerate(rows):
        selection.add(position, sample, tokens, offset)
    selected = selection.choose()
    return selected, [int(offset) for offset in selected.offsets]


@pytest.mark.parametrize(
    ("prefer", "key"),
    [("shortest", lambda row: (row[2], row[1])), ("first", lambda row: row[1])],
    ids=["shortest", "first"],
)
def test_the_preferred_traces_of_each_problem(prefer: str, key: Any) -> None:
    rows = traces()
    _, chosen = choose(rows, per_problem=2, prefer=prefer)
    for position in range(NUM_PROBLEMS):
        wanted = sorted((row for row in rows if row[0] == position), key=key)[:2]
        assert sorted(rows[i] for i in chosen if rows[i][0] == position) == sorted(wanted)


def test_random_depends_on_the_seed_only() -> None:
    rows = traces()
    shuffled = random.Random(1).sample(rows, len(rows))
    first = [rows[i] for i in choose(rows, per_problem=1, prefer="random")[1]]
    second = [shuffled[i] for i in choose(shuffled, per_problem=1, prefer="random")[1]]
    other = [rows[i] for i in choose(rows, seed=1, per_problem=1, prefer="random")[1]]
    assert first == second
    assert sorted(first) != sorted(other)
    shares = Counter(sample for _, sample, _ in first)
    assert all(30 <= shares[sample] <= 70 for sample in range(SAMPLES))


def test_a_budget_is_filled_to_within_the_smallest_example() -> None:
    rows = traces()
    selected, chosen = choose(rows, per_problem=2, max_tokens=20_000)
    assert 20_000 - min(row[2] for row in rows) < int(selected.tokens.sum()) <= 20_000
    # a smaller budget takes the same problems first
    _, fewer = choose(rows, per_problem=2, max_tokens=10_000)
    assert len(set(fewer) - set(chosen)) <= 3
    # every problem's first trace comes before any problem's second
    positions = [rows[i][0] for i in choose(rows, per_problem=2)[1]]
    assert len(set(positions[:NUM_PROBLEMS])) == NUM_PROBLEMS


def test_a_cap_of_a_source_and_the_reason_of_each_trace() -> None:
    rows = traces()
    selected, chosen = choose(rows, per_problem=1, per_source={"odd": 30})
    counts = Counter(rows[i][0] % 2 for i in chosen)
    assert counts == {0: 100, 1: 30}
    reasons = Counter(REASONS[code] for code in selected.reasons.tolist())
    assert reasons == {"kept": 130, "over_source_cap": 70, "not_preferred": 600}


def test_shares_by_length_and_by_difficulty() -> None:
    rows = traces()
    lengths = [{"up_to": 100, "share": 0.5}, {"above": 100, "share": 0.5}]
    _, chosen = choose(rows, per_problem=4, lengths=lengths)
    short = sum(rows[i][2] <= 100 for i in chosen)
    assert short == sum(row[2] <= 100 for row in rows)
    assert abs(len(chosen) - 2 * short) <= 1
    difficulty = [{"up_to": 0.25, "share": 0.5}, {"above": 0.25, "up_to": 0.75, "share": 0.5}]
    _, chosen = choose(rows, per_problem=1, difficulty=difficulty)
    rates = [rows[i][0] / (NUM_PROBLEMS - 1) for i in chosen]
    assert sum(rate <= 0.25 for rate in rates) == 50
    assert sum(0.25 < rate <= 0.75 for rate in rates) == 50
    assert len(rates) == 100


def test_the_scatter_of_an_array_is_that_of_its_numbers() -> None:
    values = [0, 1, 2**63, 2**64 - 1, 12345]
    array = mix_bits(numpy.array(values, dtype=numpy.uint64))
    assert array.tolist() == [mix_bits(value) for value in values]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [{"share": 0.5}]}, r"lengths: the shares of all buckets must add up to 1, .* 0\.5"),
        ({"lengths": [{"above": 5, "up_to": 3, "share": 1.0}]}, r"above \(5.*\) must be less than up_to \(3"),
        ({"prefer": "longest"}, r"prefer: .*'random', 'likely' or 'surprising', found 'longest'"),
        ({"max_tokens": 0}, r"max_tokens: .*greater than or equal to 1, found 0"),
    ],
    ids=["shares", "bucket", "prefer", "budget"],
)
def test_an_impossible_selection_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validate(Select, options, "select")


def test_the_highest_weight_is_preferred_and_of_equal_ones_the_first_sample() -> None:
    selection = Selection(lots(), validate(Select, {"prefer": "likely", "per_problem": 2}, "select"), 0)
    weights = [-0.5, -0.125, -0.125, float("-1e9"), 3.0]
    for sample, weight in enumerate(weights):
        selection.saw(0, "even", correct=True)
        selection.add(0, sample, 10, sample, weight)
    assert [int(offset) for offset in selection.choose().offsets] == [4, 1]
