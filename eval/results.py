"""results.json from arrays of answers: every score with its interval, every comparison paired.

The layout is documented in eval/results.md and held by tests/test_results.py.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from eval.contamination import Overlap
from eval.samples import Answers
from eval.scores import (
    Array,
    Estimate,
    Paired,
    cons_at_k,
    gap_recovered,
    holm,
    mean_score,
    paired,
    pass_at_1,
    pass_at_k,
)

# which differences are reported, where both models were compared; an extra model is set against each of them
PAIRS = [("student", "base"), ("student", "teacher"), ("teacher", "base")]
NUM_BUDGETS = 10


def score_task(models: dict[str, Answers], max_tokens: int, seed: int) -> dict[str, Any]:
    """The entry of one task: scores by model, paired differences, the recovered gap, the budget curve."""
    k = next(iter(models.values())).k
    shares = {name: answers.correct.mean(axis=1) for name, answers in models.items()}
    entry: dict[str, Any] = {name: score_model(answers, seed) for name, answers in models.items()}
    entry["paired"] = {
        f"{first}-{second}": paired_entry(paired(shares[first], shares[second], k, seed))
        for first, second in pairs_of(list(models))
    }
    if {"base", "student", "teacher"} <= models.keys():
        gap = gap_recovered(shares["base"], shares["student"], shares["teacher"], k, seed)
        entry["gap_recovered"] = {**value_entry(gap.estimate), "reason": gap.reason}
    entry["budget"] = {name: budget_curve(answers, max_tokens, seed) for name, answers in models.items()}
    return entry


def contamination_entry(models: dict[str, Answers], overlap: Overlap, seed: int) -> dict[str, Any]:
    """How many questions training has seen, by rule, and every score without them."""
    rest = [row for row in range(overlap.questions) if row not in overlap.rules]
    without = None
    if overlap.rules and rest:
        scores = {
            name: pass_at_1(part.correct.sum(axis=1), part.k, seed) for name, part in parts(models, rest)
        }
        without = {
            name: {"n": len(rest), "pass@1": score.value, "ci95": [score.low, score.high]}
            for name, score in scores.items()
        }
    return {
        "questions": overlap.questions,
        "flagged": len(overlap.rules),
        "rules": dict(Counter(overlap.rules.values()).most_common()),
        "without_flagged": without,
    }


def parts(models: dict[str, Answers], rows: Sequence[int]) -> list[tuple[str, Answers]]:
    return [(name, answers.part(rows)) for name, answers in models.items()]


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    extra = [name for name in names if name not in ("base", "student", "teacher")]
    wanted = PAIRS + [(name, other) for name in extra for other in ("base", "student", "teacher")]
    return [pair for pair in wanted if pair[0] in names and pair[1] in names]


def score_model(answers: Answers, seed: int) -> dict[str, Any]:
    """All scores of one model on one task; shares and means are over questions, each with its k samples."""
    n, k = answers.correct.shape
    correct = answers.correct.sum(axis=1)
    first = pass_at_1(correct, k, seed)
    cut = mean_score((answers.finish == "length").mean(axis=1), k, seed)
    silent = mean_score((answers.extracted == None).mean(axis=1), k, seed)  # noqa: E711 (elementwise)
    consensus = mean_score(cons_at_k(answers.extracted.tolist(), answers.correct.tolist()), 1, seed)
    tokens = answers.tokens.mean(axis=1)
    return {
        "n": n,
        "k": k,
        "pass@1": first.value,
        "ci95": [first.low, first.high],
        "pass@k": {
            str(size): value_entry(mean_score(pass_at_k(correct, k, size), max(k - size + 1, 1), seed))
            for size in sizes_up_to(k)
        },
        "cons@k": value_entry(consensus),
        "mean_tokens": float(tokens.mean()),
        "truncated": cut.value,
        "no_answer": silent.value,
        "unverifiable": float(answers.unverifiable.mean()),
        "failed": int((answers.finish == "failed").sum()),
        "intervals": {
            "mean_tokens": mean_interval(tokens),
            "truncated": [cut.low, cut.high],
            "no_answer": [silent.low, silent.high],
        },
    }


def sizes_up_to(k: int) -> list[int]:
    """2, 4, 8, ... and k itself: the sizes of which pass@k is reported (pass@1 stands on its own)."""
    powers = [2**i for i in range(1, k.bit_length()) if 2**i <= k]
    return sorted({*powers, k} - {1})


def budget_curve(answers: Answers, max_tokens: int, seed: int) -> list[dict[str, Any]]:
    """pass@1 had every response been cut at a smaller number of tokens.

    This is exact, not a model: the first t tokens do not depend on a limit that lies beyond them, so the same
    samples with at most t tokens are what sampling with max_tokens = t would have finished.
    """
    k, curve = answers.k, []
    for budget in budgets_below(max_tokens):
        within = (answers.correct & (answers.tokens <= budget)).sum(axis=1)
        estimate = pass_at_1(within, k, seed)
        curve.append({"max_tokens": budget, **scored(estimate)})
    return curve


def forced_entry(forced: dict[str, dict[int, Answers]], seed: int) -> dict[str, Any]:
    """pass@1 of each model where its thinking was closed after a number of tokens."""
    entry: dict[str, Any] = {}
    for model, by_budget in forced.items():
        entry[model] = []
        for budget, answers in sorted(by_budget.items()):
            estimate = pass_at_1(answers.correct.sum(axis=1), answers.k, seed)
            point = {"thinking_tokens": budget, **scored(estimate)}
            entry[model].append({**point, "mean_tokens": float(answers.tokens.mean())})
    return entry


def scored(estimate: Estimate) -> dict[str, Any]:
    return {"pass@1": estimate.value, "ci95": [estimate.low, estimate.high]}


def budgets_below(max_tokens: int) -> list[int]:
    """Ten budgets up to `max_tokens`, each 1 / sqrt(2) of the next."""
    return sorted({max(1, round(max_tokens / 2 ** (i / 2))) for i in range(NUM_BUDGETS)})


def mean_interval(values: Array) -> list[float] | None:
    """Student's t interval for a mean that is not a share; None for one value, which says nothing of it."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return None
    half = -float(stdtrit(n - 1, 0.025)) * float(values.std(ddof=1)) / float(np.sqrt(n))
    return [mean - half, mean + half]


def paired_entry(result: Paired) -> dict[str, Any]:
    return {
        "delta": result.delta.value,
        "ci95": [result.delta.low, result.delta.high],
        "p": result.p,
        "test": result.test,
        "mde": result.mde,
    }


def value_entry(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {"value": None, "ci95": None}
    return {"value": estimate.value, "ci95": [estimate.low, estimate.high]}


def adjust(tasks: dict[str, dict[str, Any]]) -> None:
    """Add `p_holm` to each paired difference: over the tasks, for each pair of models on its own."""
    names = {pair for entry in tasks.values() for pair in entry["paired"]}
    for pair in names:
        held = {task: entry["paired"][pair]["p"] for task, entry in tasks.items() if pair in entry["paired"]}
        for task, p in holm(held).items():
            tasks[task]["paired"][pair]["p_holm"] = p
