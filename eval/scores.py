"""Scores with their uncertainty, as pure functions of who answered which question how often.

`correct` is always an array with one entry a question: how many of its `k` samples were correct. Questions
are the unit that is drawn at random, each with all its samples, so every interval here resamples questions;
treating n * k samples as independent would make intervals up to sqrt(k) too narrow.

Reads and writes nothing: eval/results.py turns stored traces and verdicts into these arrays, and what comes
out are records of results.json (pipeline.report.results).
"""

from collections import Counter
from collections.abc import Sequence
from math import comb, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtrit

from pipeline.errors import StageError
from pipeline.report.results import Estimate, Gap, Interval, PairedDifference

Array = NDArray[np.float64]

LEVEL = 0.95
Z = float(ndtri(0.5 + LEVEL / 2))
POWER = 0.80
DRAWS = 10_000
# with fewer informative questions on either side the bootstrap is too narrow (tests/test_coverage.py)
MIN_INFORMATIVE = 10


def wilson(share: float, trials: float) -> Interval:
    """Wilson's 95% interval for a share of `trials` (which may be an effective, fractional number)."""
    scale = 1 + Z * Z / trials
    middle = (share + Z * Z / (2 * trials)) / scale
    half = Z / scale * sqrt(share * (1 - share) / trials + Z * Z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_score(values: Array, k: int, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """The mean over questions of a score in [0, 1] that was made from `k` samples each, with its interval.

    k = 1, or few informative questions: Wilson, with the number of trials that gives the binomial the
    variance seen between questions. Otherwise the percentile bootstrap, widened for small n.
    """
    values = _questions(values)
    n, mean = len(values), float(values.mean())
    if k == 1 or min(mean, 1 - mean) * n < MIN_INFORMATIVE:
        low, high = wilson(mean, _effective_trials(values, k))
    else:
        low, high = _percentiles(resampled_means(values[:, None], seed, draws)[:, 0], n)
    return Estimate(mean, (min(low, mean), max(high, mean)))


def pass_at_1(correct: Array, k: int, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Mean over questions of the share of correct samples: the unbiased estimate of pass@1 from k samples."""
    return mean_score(_questions(correct) / k, k, seed, draws)


def pass_at_k(correct: Array, samples: int, k: int) -> Array:
    """Per question, the chance that k samples drawn from its `samples` hold a correct one (Chen et al. 2021).

    StageError where k samples were never drawn.
    """
    if k > samples:
        raise StageError(
            f"pass@{k} needs at least {k} samples a question, and {samples} were drawn; "
            f"set eval.samples to {k} or more, or ask for pass@{samples}"
        )
    total = comb(samples, k)
    table = np.array([1 - comb(samples - right, k) / total for right in range(samples + 1)])
    return table[_questions(correct).astype(np.int64)]


def cons_at_k(answers: Sequence[Sequence[str | None]], correct: Sequence[Sequence[bool]]) -> Array:
    """Per question, the chance that the most frequent answer is correct.

    Answers are compared as texts without white space, so the vote does not look at the gold answer; samples
    without an answer do not vote, and a question without any vote scores 0. Ties are broken at random: the
    score is the share of the tied answers that are correct, which is the expectation over that draw.
    """
    return np.array([_consensus(*question) for question in zip(answers, correct, strict=True)])


def _consensus(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    texts = ["".join(answer.split()) if answer is not None else None for answer in answers]
    votes = Counter(text for text in texts if text is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    right: dict[str, list[bool]] = {text: [] for text, count in votes.items() if count == most}
    for text, verdict in zip(texts, correct, strict=True):
        if text in right:
            right[text].append(verdict)
    # equal texts get equal verdicts, except where a verification timed out: then their share counts
    return float(np.mean([np.mean(verdicts) for verdicts in right.values()]))


def paired(first: Array, second: Array, k: int, seed: int = 0) -> PairedDifference:
    """first - second, from the share of correct samples of each question (same questions, same order).

    The interval resamples questions. p at k = 1 is McNemar's exact test, at k > 1 the test that flips the
    signs of the per-question differences (both two-sided, of the hypothesis that the models are alike).
    """
    difference = _questions(first) - _questions(second)
    delta = mean_difference(difference, seed)
    p, test = (mcnemar(difference), "mcnemar") if k == 1 else (sign_flip(difference, seed), "sign-flip")
    return PairedDifference(delta.value, delta.ci95, p, test, minimum_detectable(difference))


def mean_difference(difference: Array, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Mean of per-question differences in [-1, 1], with its interval.

    Where few are not 0, Bonett and Price (2012): one question more is won by each model, then the normal one.
    """
    delta = float(difference.mean())
    if np.count_nonzero(difference) < MIN_INFORMATIVE:
        padded = np.append(difference, [1.0, -1.0])
        middle, half = float(padded.mean()), Z * float(padded.std()) / sqrt(len(padded))
        low, high = middle - half, middle + half
    else:
        low, high = _percentiles(resampled_means(difference[:, None], seed, draws)[:, 0], len(difference))
    return Estimate(delta, (max(-1.0, min(low, delta)), min(1.0, max(high, delta))))


def mcnemar(difference: Array) -> float:
    """Exact two-sided p from the questions that only one of the two models answered correctly."""
    wins, losses = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5))) if wins + losses else 1.0


def sign_flip(difference: Array, seed: int = 0, draws: int = 10 * DRAWS) -> float:
    """Two-sided Monte-Carlo permutation p, at least 1 / (draws + 1) (Phipson and Smyth 2010)."""
    sizes, counts = np.unique(np.round(np.abs(difference[difference != 0]), 9), return_counts=True)
    if not len(sizes):
        return 1.0
    plus = np.random.default_rng(seed).binomial(counts, 0.5, size=(draws, len(counts)))
    sums = np.abs((2 * plus - counts) @ sizes)
    extreme = int(np.sum(sums >= abs(float(difference.sum())) - 1e-6))
    return (extreme + 1) / (draws + 1)


def minimum_detectable(difference: Array) -> float:
    """The smallest true difference found at p < 0.05 in 80% of repetitions with this n and this spread.

    The spread is never taken below that of one question in n answered by one model alone: no disagreement
    seen does not mean that any difference could be seen.
    """
    n = len(difference)
    spread = float(difference.std(ddof=1)) if n > 1 else 1.0
    floor = 1 / sqrt(n)
    return min(1.0, (Z + float(ndtri(POWER))) * max(spread, floor) / sqrt(n))


def gap_recovered(base: Array, student: Array, teacher: Array, seed: int = 0) -> Gap:
    """(student - base) / (teacher - base), resampling questions with all three models' answers."""
    gap = mean_difference(teacher - base, seed)
    low, high = gap.ci95
    if low <= 0:
        where = "below zero" if high < 0 else "not separated from zero"
        reason = (
            f"teacher - base is {gap.value:+.3f} [{low:+.3f}, {high:+.3f}], {where}: "
            "a share of it would mean nothing"
        )
        return Gap(None, None, reason)
    means = resampled_means(np.stack([base, student, teacher], axis=1), seed)
    widths = means[:, 2] - means[:, 0]
    ratios = (means[:, 1] - means[:, 0]) / np.where(np.abs(widths) < 1e-12, 1e-12, widths)
    value = float((student - base).mean()) / gap.value
    low, high = _percentiles(ratios, len(base))
    return Gap(value, (min(low, value), max(high, value)), None)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment: below 0.05 means found at a family-wise error rate of 5%."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = largest
    return adjusted


def resampled_means(rows: Array, seed: int = 0, draws: int = DRAWS) -> Array:
    """Means of `rows` (n, m) over `draws` resamples of its n rows with replacement, as (draws, m).

    Equal rows are drawn together by one multinomial: k + 1 kinds of questions cost the same at any n.
    """
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, 4_000_000 // len(kinds))  # 32 MB of counts at a time
    parts = []
    for start in range(0, draws, step):
        drawn = rng.multinomial(len(rows), counts / len(rows), size=min(step, draws - start))
        parts.append(drawn @ kinds / len(rows))
    return np.concatenate(parts)


def _questions(values: Array) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise StageError("a score of zero questions was asked for: the task holds no question")
    return values


def _effective_trials(values: Array, k: int) -> float:
    """The n of a binomial whose mean would vary as this one does; between n and n * k."""
    n, mean = len(values), float(values.mean())
    variance = float(values.var(ddof=1)) if n > 1 else 0.0
    return float(np.clip(n * mean * (1 - mean) / variance, n, n * k)) if variance else float(n)


def _percentiles(draws: Array, n: int) -> Interval:
    """Percentile interval, widened as Hesterberg (2015) does: plain ones lack Student's t and n / (n - 1)."""
    tail = (1 - LEVEL) / 2
    if n > 1:
        tail = float(ndtr(stdtrit(n - 1, tail) * sqrt(n / (n - 1))))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
