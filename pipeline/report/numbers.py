"""Numbers as a reader sees them: a score never without its interval."""

from collections.abc import Sequence
from typing import Any

Interval = Sequence[float]  # low, high


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def score(value: float, ci95: Interval) -> str:
    """`59.5% [56.9, 62.1]`."""
    return f"{percent(value)} {interval(ci95)}"


def interval(ci95: Interval) -> str:
    """Of a share, in percent."""
    return f"[{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}]"


def points(value: float, ci95: Interval) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f} points [{100 * ci95[0]:+.1f}, {100 * ci95[1]:+.1f}]"


def p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else ("< 0.0001" if p < 0.0001 else f"{p:.4f}")


def seconds(value: float) -> str:
    """Seconds below two minutes, then minutes, then hours."""
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def count(value: float) -> str:
    return f"{value:,.0f}"


def short(value: Any, limit: int = 16) -> str:
    """The start of a hash."""
    return str(value)[:limit]
