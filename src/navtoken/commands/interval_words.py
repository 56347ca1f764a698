"""Figures with their intervals, in words and as curves: what the pages of several commands share."""

import math
from collections.abc import Sequence

from navtoken.analysis.ranking import Interval
from navtoken.report import Curve
from navtoken.report.markup import percent


def spread_of(interval: Interval, digits: int = 0) -> str:
    """A fraction with its interval: 12 % (10 to 14)."""
    if math.isnan(interval.low) or interval.low == interval.high == interval.value:
        return percent(interval.value, digits)
    low, high = (f"{100 * end:.{digits}f}" for end in (interval.low, interval.high))
    return f"{percent(interval.value, digits)} ({low} to {high})"


def area(interval: Interval) -> str:
    """0.94 (0.93 to 0.95)."""
    if math.isnan(interval.value):
        return "–"
    if math.isnan(interval.low):
        return f"{interval.value:.2f}"
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def times(interval: Interval) -> str:
    """3.8 times (3.5 to 4.1)."""
    if math.isnan(interval.value):
        return "–"
    spread = "" if math.isnan(interval.low) else f" ({interval.low:.1f} to {interval.high:.1f})"
    return f"{interval.value:.1f} times{spread}"


def curve(name: str, places: Sequence[float], values: Sequence[Interval]) -> Curve:
    """A curve with its intervals; points that are not there are left out."""
    known = [(x, y) for x, y in zip(places, values, strict=True) if not math.isnan(y.value)]
    bare = any(math.isnan(y.low) for _, y in known)
    return Curve(
        name,
        [x for x, _ in known],
        [y.value for _, y in known],
        None if bare else [y.low for _, y in known],
        None if bare else [y.high for _, y in known],
    )
