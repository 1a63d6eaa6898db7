"""Scores against closed forms, enumeration and simulation."""

import itertools
from math import comb

import numpy as np
import pytest
from scipy import stats

from eval.scores import (
    cons_at_k,
    gap_recovered,
    holm,
    mcnemar,
    mean_score,
    minimum_detectable,
    paired,
    pass_at_1,
    pass_at_k,
    resampled_means,
    sign_flip,
    wilson,
)
from pipeline.errors import StageError


def width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


@pytest.mark.parametrize("samples", [1, 4, 10])
def test_pass_at_k_is_the_closed_form_of_chen_et_al(samples: int) -> None:
    for k in range(1, samples + 1):
        correct = np.arange(samples + 1)
        expected = [
            1.0 if samples - c < k else 1 - np.prod(1 - k / np.arange(samples - c + 1, samples + 1))
            for c in correct
        ]
        assert pass_at_k(correct, samples, k) == pytest.approx(expected)


@pytest.mark.parametrize("samples", [1, 3, 6])
def test_pass_at_k_is_the_share_of_all_draws_of_k_samples(samples: int) -> None:
    for k, right in itertools.product(range(1, samples + 1), range(samples + 1)):
        outcomes = [True] * right + [False] * (samples - right)
        draws = list(itertools.combinations(outcomes, k))
        brute = sum(any(draw) for draw in draws) / comb(samples, k)
        assert pass_at_k(np.array([right]), samples, k)[0] == pytest.approx(brute)


def test_pass_at_k_refuses_more_samples_than_were_drawn() -> None:
    with pytest.raises(StageError, match="pass@8 needs at least 8 samples a question, and 1 were drawn"):
        pass_at_k(np.array([1, 0]), 1, 8)


def first_most_frequent(answers: tuple[str | None, ...]) -> str | None:
    """The vote where ties go to whoever comes first: averaged over all orders, every tie is drawn fairly."""
    voted = [answer for answer in answers if answer is not None]
    return max(voted, key=lambda answer: (voted.count(answer), -voted.index(answer))) if voted else None


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_cons_at_k_is_the_average_vote_over_all_orders(k: int) -> None:
    for answers in itertools.combinations_with_replacement(["7", "8", "9", None], k):
        orders = list(itertools.permutations(answers))
        brute = sum(first_most_frequent(order) == "7" for order in orders) / len(orders)
        correct = [answer == "7" for answer in answers]
        assert cons_at_k([answers], [correct])[0] == pytest.approx(brute)


def test_cons_at_k_compares_answers_without_their_white_space() -> None:
    assert cons_at_k([["1 000", "1000", "7"]], [[True, True, False]])[0] == 1.0


@pytest.mark.parametrize(
    ("share", "trials"), [(0.0, 30), (1.0, 30), (0.5, 200), (0.03, 500)], ids=["none", "all", "half", "few"]
)
def test_wilson_is_scipys(share: float, trials: int) -> None:
    reference = stats.binomtest(round(share * trials), trials).proportion_ci(method="wilson")
    assert wilson(share, trials) == pytest.approx((reference.low, reference.high), abs=1e-9)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("right", [0, 1], ids=["none right", "all right"])
def test_an_interval_at_the_boundary_has_a_width(k: int, right: int) -> None:
    estimate = pass_at_1(np.full(50, right * k), k)
    assert estimate.value == right
    low, high = estimate.ci95
    assert high - low > 0.05
    assert 0 <= low <= high <= 1


def test_an_interval_of_one_question_is_nearly_everything() -> None:
    estimate = pass_at_1(np.array([2.0]), 4)
    assert width(estimate.ci95) > 0.8


def test_correlated_samples_do_not_narrow_the_interval() -> None:
    questions = np.repeat([0.0, 1.0], 100)
    once, often = mean_score(questions, 1), mean_score(questions, 16)
    assert width(often.ci95) == pytest.approx(width(once.ci95), rel=0.05)


def test_zero_questions_are_refused() -> None:
    with pytest.raises(StageError, match="zero questions"):
        pass_at_1(np.array([]), 4)


def test_resampled_means_follow_numpys_own_bootstrap() -> None:
    rng = np.random.default_rng(0)
    values = rng.binomial(4, 0.3, size=(300, 2)) / 4
    means = resampled_means(values)
    assert means.shape == (10_000, 2)
    direct = values[rng.integers(0, 300, size=(10_000, 300))].mean(axis=1)
    assert means.mean(axis=0) == pytest.approx(values.mean(axis=0), abs=0.002)
    assert means.std(axis=0) == pytest.approx(direct.std(axis=0), rel=0.05)
    assert np.corrcoef(means.T)[0, 1] == pytest.approx(np.corrcoef(values.T)[0, 1], abs=0.05)


def test_mcnemar_is_the_exact_binomial_test_of_discordant_questions() -> None:
    difference = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 40)
    assert mcnemar(difference) == pytest.approx(stats.binomtest(2, 11).pvalue)
    assert mcnemar(np.zeros(10)) == 1.0


def test_sign_flip_agrees_with_full_enumeration() -> None:
    difference = np.array([0.5, 0.25, -0.25, 0.75, 0.5, 0.0, 0.25])
    flips = np.array(list(itertools.product([-1, 1], repeat=len(difference))))
    exact = np.mean(np.abs(flips @ difference) >= abs(difference.sum()) - 1e-9)
    assert sign_flip(difference) == pytest.approx(exact, abs=0.005)
    assert sign_flip(np.zeros(5)) == 1.0


@pytest.mark.parametrize(("n", "points"), [(30, 23), (500, 5.6), (1319, 3.4)])
def test_the_detectable_difference_at_a_fifth_of_questions_discordant(n: int, points: float) -> None:
    discordant = round(0.2 * n) // 2
    difference = np.array([1.0] * discordant + [-1.0] * discordant + [0.0] * (n - 2 * discordant))
    assert 100 * minimum_detectable(difference) == pytest.approx(points, rel=0.02)


def test_no_disagreement_does_not_mean_that_everything_could_be_detected() -> None:
    same = np.full(500, 0.5)
    result = paired(same, same, 4)
    assert result.ci95[0] < 0 < result.ci95[1]
    assert result.mde > 0.005
    assert result.p == 1.0


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(3)
    ability = rng.beta(1, 1, 400)
    first, second = (rng.binomial(4, ability) / 4 for _ in range(2))
    assert width(paired(first, second, 4).ci95) < 0.8 * np.sqrt(2) * width(mean_score(first, 4).ci95)


def test_the_recovered_gap_has_an_interval_around_its_value() -> None:
    rng = np.random.default_rng(5)
    base, student, teacher = (rng.binomial(4, p, 500) / 4 for p in (0.05, 0.7, 0.85))
    gap = gap_recovered(base, student, teacher)
    assert gap.value is not None
    assert gap.ci95 is not None
    assert gap.ci95[0] < gap.value < gap.ci95[1]
    assert gap.value == pytest.approx(0.65 / 0.8, abs=0.06)


def test_the_recovered_gap_of_no_gap_is_not_a_number() -> None:
    same = np.random.default_rng(6).binomial(4, 0.5, 100) / 4
    gap = gap_recovered(same, same, same)
    assert (gap.value, gap.ci95) == (None, None)
    assert "not separated from zero" in str(gap.reason)


def test_there_is_no_gap_to_recover_from_a_teacher_below_the_base() -> None:
    rng = np.random.default_rng(7)
    base, student, teacher = (rng.binomial(4, p, 300) / 4 for p in (0.8, 0.6, 0.2))
    gap = gap_recovered(base, student, teacher)
    assert (gap.value, gap.ci95) == (None, None)
    assert "below zero" in str(gap.reason)


def test_holm_is_the_textbook_step_down() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
