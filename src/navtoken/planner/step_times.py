"""Seconds of one forward pass as a function of its number of new tokens, given or measured on the way.

A pass that is bound by reading weights takes the same time for few tokens as for one; once it is bound by
arithmetic its time grows with every token. Two numbers cannot say where that happens, so the planner works
with the whole curve.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from statistics import median_low

import numpy as np

_NUM_RECENT = 32
# One slow first pass (compilation, a graph's capture) must not stand for all passes of its size.
_NUM_NEEDED = 3


class PlanError(ValueError):
    """Something that no plan can be made of."""


@dataclass(frozen=True)
class StepTimes:
    """Piecewise linear, never falling; flat below the first point, the last slope goes on above the last."""

    num_tokens: tuple[float, ...]
    """New tokens of a pass, ascending."""
    seconds: tuple[float, ...]
    """What such a pass takes; never falling."""

    @classmethod
    def constant(cls, seconds: float) -> "StepTimes":
        """The same time for every pass."""
        return cls.of({1: seconds})

    @classmethod
    def of(cls, points: Mapping[int, float] | Mapping[float, float]) -> "StepTimes":
        """Through points {new tokens: seconds}; where measured times fall, the running maximum stands.

        Raises `PlanError` without points, and for a point that is not above 0.
        """
        if not points:
            raise PlanError("no step times are given; give at least one point of new tokens and seconds")
        for num_tokens, seconds in points.items():
            if not (0 < num_tokens < math.inf and 0 < seconds < math.inf):
                raise PlanError(
                    f"a pass over {num_tokens} new tokens in {seconds} seconds cannot be; "
                    "give numbers above 0"
                )
        ordered = sorted(points.items())
        return cls(
            tuple(float(num_tokens) for num_tokens, _ in ordered),
            tuple(accumulate((float(seconds) for _, seconds in ordered), max)),
        )

    def __call__(self, num_tokens: float) -> float:
        """Seconds of one pass over so many new tokens."""
        if len(self.num_tokens) == 1 or num_tokens <= self.num_tokens[0]:
            return self.seconds[0]
        right = min(bisect_right(self.num_tokens, num_tokens), len(self.num_tokens) - 1)
        return self.seconds[right] + self._slope(right) * (num_tokens - self.num_tokens[right])

    def at(self, num_tokens: np.ndarray) -> np.ndarray:
        """Seconds of passes over so many new tokens each, float64, in the shape of `num_tokens`."""
        seconds = np.interp(num_tokens, self.num_tokens, self.seconds)
        if len(self.num_tokens) > 1:
            seconds = seconds + self._slope(-1) * np.maximum(num_tokens - self.num_tokens[-1], 0.0)
        return seconds

    def _slope(self, right: int) -> float:
        """Seconds per new token on the piece that ends at point `right`."""
        rise = self.seconds[right] - self.seconds[right - 1]
        return rise / (self.num_tokens[right] - self.num_tokens[right - 1])


class StepTimer:
    """Estimates step times online: the median of recent passes, per power of two of their new tokens."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[tuple[int, float]]] = {}

    def record(self, num_tokens: int, seconds: float) -> None:
        """Note one pass. Raises `PlanError` for a pass over nothing or in no time."""
        if num_tokens < 1 or not 0 < seconds < math.inf:
            raise PlanError(f"a pass over {num_tokens} new tokens in {seconds} seconds cannot be recorded")
        bucket = (num_tokens - 1).bit_length()
        self._recent.setdefault(bucket, deque(maxlen=_NUM_RECENT)).append((num_tokens, seconds))

    def times(self) -> StepTimes | None:
        """What the passes say so far; None until some bucket has seen a few of them."""
        points = {
            median_low(num_tokens for num_tokens, _ in recent): median_low(seconds for _, seconds in recent)
            for recent in self._recent.values()
            if len(recent) >= _NUM_NEEDED
        }
        return StepTimes.of(points) if points else None
