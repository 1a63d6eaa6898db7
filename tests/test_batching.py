"""The order of what the student sees, its cut into micro-batches, and the learning rate of each step."""

import itertools
from collections import Counter

import pytest

from pipeline.recipe.schema import Train
from students.batching import balanced, cut, cut_padded, global_batches, num_padded
from students.trainer import learning_rate_share

LENGTHS = [20 + 37 * i % 200 for i in range(100)]


def recipe(**changes: object) -> Train:
    values = {"student": "x", "method": "full", "epochs": 1.0, "learning_rate": 1.0, "max_length": 256}
    return Train.model_validate({**values, **changes})


def test_each_epoch_shows_every_example_once() -> None:
    stream = [index for batch in global_batches(96, 32, epochs=3, seed=0) for index in batch]
    assert len(stream) == 3 * 96
    assert all(sorted(stream[start : start + 96]) == list(range(96)) for start in (0, 96, 192))


def test_the_last_batch_is_filled_and_batches_are_not_sorted_by_length() -> None:
    batches = global_batches(100, 32, epochs=1, seed=0)
    assert [len(batch) for batch in batches] == [32] * 4
    means = [sum(LENGTHS[i] for i in batch) / 32 for batch in batches]
    assert means not in (sorted(means), sorted(means, reverse=True))
    assert max(means) - min(means) < 60


def test_the_order_is_a_function_of_the_seed_alone() -> None:
    assert global_batches(50, 8, 2, seed=1) == global_batches(50, 8, 2, seed=1)
    assert global_batches(50, 8, 2, seed=1) != global_batches(50, 8, 2, seed=2)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_number_of_processes_does_not_change_what_a_step_sees(processes: int) -> None:
    batches = global_batches(100, 32, 2, seed=0)
    steps = cut(batches, LENGTHS, processes, max_tokens=1500)
    assert [sorted(i for part in step for i in part) for step in steps] == [sorted(b) for b in batches]
    (num_parts,) = {len(step) for step in steps}
    assert num_parts % processes == 0
    assert max(sum(LENGTHS[i] for i in part) for step in steps for part in step) <= 1500
    assert all(part for step in steps for part in step)


def test_parts_have_nearly_equal_work() -> None:
    parts = balanced(list(range(32)), LENGTHS, 4)
    totals = [sum(LENGTHS[i] for i in part) for part in parts]
    assert max(totals) - min(totals) <= max(LENGTHS)
    assert Counter(i for part in parts for i in part) == Counter(range(32))


def test_an_example_longer_than_the_budget_still_stands_alone() -> None:
    assert cut([[0, 1]], [900, 100], processes=1, max_tokens=500) == [[[0], [1]]]
    assert cut([[0, 1]], [900, 100], processes=1, max_tokens=100) == [[[0], [1]]]


@pytest.mark.parametrize("lengths", [[8192] * 15, [100] * 8 + [8192] * 7, [*range(8192, 8177, -1)]])
def test_padded_parts_that_have_to_join_do_not_pile_up(lengths: list[int]) -> None:
    """15 examples for 8 processes: 7 pairs at most, and never of long ones while short ones stand alone."""
    ((*parts,),) = cut_padded([[*range(15)]], lengths, processes=8, max_tokens=8192)
    assert sorted(i for part in parts for i in part) == [*range(15)]
    assert len(parts) == 8
    assert all(part == sorted(part, key=lambda i: -lengths[i]) for part in parts)
    largest = max(num_padded([part], lengths) for part in parts)
    assert largest <= (8192 if 100 in lengths else 2 * 8192)


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0), ("wsd", 1.0, 0.1)],
)
def test_schedules_go_from_one_to_the_stated_ratio(schedule: str, middle: float, last: float) -> None:
    chosen = recipe(schedule=schedule, min_learning_rate_ratio=0.1, warmup_ratio=0.0)
    shares = [learning_rate_share(step, 1000, chosen) for step in range(1001)]
    assert shares[0] == pytest.approx(1.0)
    assert shares[500] == pytest.approx(middle, abs=0.01)
    assert shares[1000] == pytest.approx(last)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(shares))


def test_warm_up_rises_to_one() -> None:
    shares = [learning_rate_share(step, 100, recipe(warmup_ratio=0.1)) for step in range(11)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == pytest.approx(1.0)
