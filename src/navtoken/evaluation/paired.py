"""Policies against each other on the same problems.

All policies of a table answer the same problems, so differences are taken problem by problem: what all of them find hard or
easy alike is no noise of a difference. Tasks count the same and are taken as fixed, their problems as independent.

A rule is compared with a control at the rule's own LLM share. Where the control was not run at that share, its neighbours on
either side are mixed, problem by problem, so that the mixture has that share; the SLM alone and the LLM alone are its ends.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import nan, sqrt
from statistics import fmean
from typing import NamedTuple

from navtoken.evaluation.metrics import mean_and_error

Scores = Mapping[str, Mapping[str, float]]
"""Of one policy: task -> problem -> share of right responses."""
Weights = Mapping[str, float]
"""Policy -> factor."""

SLM, LLM = "slm", "llm"


class PairingError(ValueError):
    """Policies that did not answer the same problems."""


class Estimate(NamedTuple):
    """A figure and its standard error; NaN where there is none."""

    value: float
    error: float

    @property
    def clear(self) -> bool:
        """Is it more than two standard errors from 0?"""
        return abs(self.value) > 2 * self.error


NOTHING = Estimate(nan, nan)


@dataclass(frozen=True)
class Paired:
    """Every policy's answers, problem by problem."""

    scores: Mapping[str, Scores] = field(default_factory=dict)
    """By policy, as it was asked for."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """LLM share of each policy, mean over tasks."""

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
        """(accuracy - the SLM's) / (the LLM's - the SLM's), error by the delta method; NaN where the LLM is not better."""
        if SLM not in self.scores or LLM not in self.scores:
            return NOTHING
        whole = self.gap(LLM, SLM, task).value
        if not whole > 0:
            return NOTHING
        part = self.gap(policy, SLM, task).value / whole
        # The quotient's first-order change: the numerator's less the quotient times the denominator's.
        rest = self.contrast(_sum({policy: 1.0}, {SLM: part - 1.0}, {LLM: -part}), task)
        return Estimate(part, rest.error / whole)

    def control(self, policies: Iterable[str], share: float) -> dict[str, float] | None:
        """Weights of the two `policies` around `share`, mixed to have it; the SLM and the LLM alone are the ends.

        None where `share` is not between two of them.
        """
        known = {SLM, LLM, *policies} & self.shares.keys()
        below = [(self.shares[name], name) for name in known if self.shares[name] <= share]
        above = [(self.shares[name], name) for name in known if self.shares[name] >= share]
        if not below or not above:
            return None
        (low, first), (high, last) = max(below), min(above)
        mixed = (share - low) / (high - low) if high > low else 0.0
        return _sum({first: 1.0 - mixed}, {last: mixed})

    def against(self, policy: str, controls: Iterable[str]) -> Estimate:
        """How much more often `policy` is right than the `controls` at its LLM share; NaN where that is out of reach."""
        weights = self.control([name for name in controls if name != policy], self.shares[policy])
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
