"""Policies against each other on the same problems.

All policies of a table answer the same problems, so differences are taken problem by problem: what all of them find hard or
easy alike is no noise of a difference. Tasks count the same and are taken as fixed, their problems as independent.

A rule is compared with a control at the rule's own cost: its LLM share, or LLM passes per token where the LLM judges tokens that it
does not write. Where the control was not run at that cost, its neighbours on either side are mixed, problem by problem, so that the
mixture costs as much. A control's curve lies above its chords, so a mixture of distant settings is worse than the control would be:
neighbours must be near (`NEAR`). The SLM alone is every control's setting at 0, the LLM alone stands for none: no control was
seen next to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import nan, sqrt
from statistics import NormalDist, fmean
from typing import NamedTuple

from navtoken.evaluation.metrics import mean_and_error

Scores = Mapping[str, Mapping[str, float]]
"""Of one policy: task -> problem -> share of right responses."""
Weights = Mapping[str, float]
"""Policy -> factor."""

SLM, LLM = "slm", "llm"
NEAR = 0.1
"""How far, in LLM share or LLM passes per token, a control's neighbours may be from the cost that they are mixed to."""
CLEAR = 2.0
"""Standard errors from which one comparison is clear: one in 22 differs by as much where there is no difference."""


class PairingError(ValueError):
    """Policies that did not answer the same problems."""


class Estimate(NamedTuple):
    """A figure and its standard error; NaN where there is none."""

    value: float
    error: float

    @property
    def clear(self) -> bool:
        """Is it more than two standard errors from 0?"""
        return self.clear_of(1)

    def clear_of(self, comparisons: int) -> bool:
        """Is it clear although it was picked from so many comparisons, with `errors_of` standard errors?"""
        return abs(self.value) > errors_of(comparisons) * self.error


def errors_of(comparisons: int) -> float:
    """Standard errors that make the most striking of so many comparisons as sure as `CLEAR` makes one (Bonferroni)."""
    normal = NormalDist()
    return -normal.inv_cdf(normal.cdf(-CLEAR) / max(1, comparisons))


NOTHING = Estimate(nan, nan)


@dataclass(frozen=True)
class Paired:
    """Every policy's answers, problem by problem."""

    scores: Mapping[str, Scores] = field(default_factory=dict)
    """By policy, as it was asked for."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """LLM share of each policy, mean over tasks."""
    passes: Mapping[str, float] = field(default_factory=dict)
    """LLM passes per token of each policy, mean over tasks."""

    def contrast(self, weights: Weights, task: str | None = None) -> Estimate:
        """The weighted sum of policies' accuracies on a task, or in the mean over all; {"a": 1, "b": -1} is a less b.

        Raises `PairingError` where the policies did not answer the same problems.
        """
        tasks = [task] if task else list(self.scores[next(iter(weights))])
        parts = [mean_and_error(self._differences(weights, each)) for each in tasks]
        return Estimate(
            fmean(mean for mean, _ in parts), sqrt(sum(error**2 for _, error in parts)) / len(parts)
        )

    def gap(self, policy: str, other: str, task: str | None = None) -> Estimate:
        """How much more often `policy` is right than `other`."""
        return self.contrast(_sum({policy: 1.0}, {other: -1.0}), task)

    def recovered(self, policy: str, task: str | None = None) -> Estimate:
        """(accuracy - the SLM's) / (the LLM's - the SLM's), error by the delta method; NaN where the LLM is not clearly better."""
        if SLM not in self.scores or LLM not in self.scores:
            return NOTHING
        gap = self.gap(LLM, SLM, task)
        if not (gap.clear and gap.value > 0):
            return NOTHING
        whole = gap.value
        part = self.gap(policy, SLM, task).value / whole
        # The quotient's first-order change: the numerator's less the quotient times the denominator's.
        rest = self.contrast(_sum({policy: 1.0}, {SLM: part - 1.0}, {LLM: -part}), task)
        return Estimate(part, rest.error / whole)

    def control(
        self, policies: Iterable[str], cost: float, costs: Mapping[str, float] | None = None
    ) -> dict[str, float] | None:
        """Weights of the two `policies` around `cost`, mixed to have it; below the first of them stands the SLM alone.

        `costs` is `shares` unless given. None where one of the two is missing, or farther than `NEAR` from `cost`.
        """
        costs = self.shares if costs is None else costs
        settings = (set(policies) - {SLM, LLM}) & costs.keys()
        known = settings | ({SLM} & costs.keys())
        below = [(costs[name], name) for name in known if costs[name] <= cost]
        above = [(costs[name], name) for name in settings if costs[name] >= cost]
        if not below or not above:
            return None
        (low, first), (high, last) = max(below), min(above)
        if max(cost - low, high - cost) > NEAR + 1e-9:
            return None
        mixed = (cost - low) / (high - low) if high > low else 1.0
        return {name: weight for name, weight in _sum({first: 1.0 - mixed}, {last: mixed}).items() if weight}

    def against(
        self, policy: str, controls: Iterable[str], costs: Mapping[str, float] | None = None
    ) -> Estimate:
        """How much more often `policy` is right than the `controls` at its own cost; NaN where no control is near.

        `costs` as in `control`.
        """
        costs = self.shares if costs is None else costs
        weights = self.control([name for name in controls if name != policy], costs[policy], costs)
        if weights is None:
            return NOTHING
        return self.contrast(_sum({policy: 1.0}, {name: -weight for name, weight in weights.items()}))

    def _differences(self, weights: Weights, task: str) -> list[float]:
        own = [(weight, self.scores[name][task]) for name, weight in weights.items()]
        problems = own[0][1].keys()
        if any(scores.keys() != problems for _, scores in own):
            raise PairingError(
                f"{', '.join(weights)} did not answer the same problems of {task}; evaluate them together"
            )
        return [sum(weight * scores[problem] for weight, scores in own) for problem in problems]


def _sum(*parts: Weights) -> dict[str, float]:
    """Weights added up: one policy may be in several."""
    total: dict[str, float] = {}
    for part in parts:
        for name, weight in part.items():
            total[name] = total.get(name, 0.0) + weight
    return total
