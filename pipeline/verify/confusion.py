"""Verdicts against labels: the confusion matrix of a verifier with Wilson intervals."""

import math
from collections import Counter
from statistics import NormalDist

STATUSES = ("correct", "wrong", "unverifiable")
Z = NormalDist().inv_cdf(0.975)


def wilson_interval(successes: float, total: float) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927) of trials, whose number may be an effective, fractional one;
    (0, 1) where there is no observation."""
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    centre = share + Z * Z / (2 * total)
    spread = Z * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    scale = 1 + Z * Z / total
    low = 0.0 if share <= 0 else max(0.0, (centre - spread) / scale)
    return low, 1.0 if share >= 1 else min(1.0, (centre + spread) / scale)


def share_line(name: str, successes: int, total: int) -> str:
    if total == 0:
        return f"{name}: no rows"
    low, high = wilson_interval(successes, total)
    return (
        f"{name}: {successes:,} of {total:,} = {100 * successes / total:.2f}% "
        f"(95% interval {100 * low:.2f} to {100 * high:.2f})"
    )


def confusion_table(counts: Counter[tuple[bool, str]]) -> str:
    """`counts` holds (label, status). What is unverifiable is not accepted, so it counts as rejected."""
    lines = [f"{'label':>9} | " + " ".join(f"{status:>12}" for status in STATUSES)]
    for label in (True, False):
        cells = " ".join(f"{counts[label, status]:>12,}" for status in STATUSES)
        lines.append(f"{'correct' if label else 'wrong':>9} | {cells}")
    right = sum(counts[True, status] for status in STATUSES)
    wrong = sum(counts[False, status] for status in STATUSES)
    lines.append(share_line("accepted of the correct", counts[True, "correct"], right))
    lines.append(share_line("rejected of the wrong", wrong - counts[False, "correct"], wrong))
    return "\n".join(lines)


def rates_table(counts: Counter[tuple[str, bool, str]]) -> str:
    """Of each group how many right answers were accepted and how many wrong ones were not; `counts` holds
    (group, label, status)."""
    groups = list(dict.fromkeys(group for group, _, _ in counts))
    width = max([len(group) for group in groups] + [len("all")])
    lines = [f"{'':{width}} | right accepted | wrong refused"]
    for group in [*groups, "all"]:
        found: Counter[tuple[bool, bool]] = Counter()
        for (name, label, status), count in counts.items():
            if group in ("all", name):
                found[label, status == "correct"] += count
        accepted = rate(found[True, True], found[True, False])
        lines.append(f"{group:{width}} | {accepted} | {rate(found[False, False], found[False, True])}")
    return "\n".join(lines)


def rate(yes: int, no: int) -> str:
    share = f"{100 * yes / (yes + no):.1f}%" if yes + no else "-"
    return f"{yes:>4}/{yes + no:<4} {share:>6}"
