"""Estimators of test-time scaling: what k samples of a problem get right, and what they cost.

All are of one problem and unbiased: averages over every subset of k of its n samples, so n samples say something about every k
up to n. Intervals are over problems: samples of one problem are not independent, problems are.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb, isfinite, nan
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from navtoken.evaluation.voting import SCORERS, Ballot, ScalingError, best_of_k, check_k, majority_at_k

__all__ = ["Interval", "Resampling", "Response", "ScalingError", "measure", "pass_at_k"]

LEVEL = 0.95
"""Probability with which an interval should hold the figure."""
ACCURACIES = ("avg", "pass", "maj", *(f"best_{name}" for name in SCORERS))
"""Metrics that are shares of right answers."""
DISTINCT = "distinct"
"""Metric of diversity: how many different answers k samples give, right or wrong."""
COSTS = ("tokens", "flops", "bytes", "seconds")
"""Metrics of what k samples take."""


@dataclass(frozen=True)
class Response:
    """What scaling needs of one response."""

    correct: bool
    answer: Hashable | None
    """Compared by the task's own equality; None where there is none."""
    tokens: int
    """Of the response."""
    flops: float
    """Without the prompt's, which samples share."""
    bytes: float
    """Likewise; as if it had been decoded alone."""
    seconds: float = nan
    """Of the run's clock."""
    runs: tuple[bool, bool] = (True, True)
    """Did the SLM run, and did the LLM?"""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """By scorer, the higher the better."""


@dataclass(frozen=True)
class PromptCost:
    """What a model's pass over a prompt costs: paid once, by the first sample in which that model runs."""

    flops: tuple[float, float] = (0.0, 0.0)
    """Of the SLM and of the LLM."""
    bytes: tuple[float, float] = (0.0, 0.0)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that one of k samples is right: 1 - C(n - c, k) / C(n, k) (Chen et al., 2021)."""
    check_k(k, num_samples)
    if not 0 <= num_correct <= num_samples:
        raise ScalingError(f"{num_correct} of {num_samples} samples cannot be right; give 0 to {num_samples}")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def measure(
    responses: Sequence[Response], k: int, prompt: PromptCost | None = None, seed: int = 0
) -> dict[str, float]:
    """Every metric of one problem at k; NaN where the responses do not say."""
    correct = [response.correct for response in responses]
    ballot = Ballot.of([response.answer for response in responses], correct)
    metrics = {
        "avg": fmean(correct),
        "pass": pass_at_k(len(correct), sum(correct), k),
        "maj": majority_at_k(ballot, k, seed),
        DISTINCT: sum(pass_at_k(len(correct), count, k) for count, _ in ballot.answers),
    }
    for name in SCORERS:
        scores = [score for response in responses if (score := response.scores.get(name)) is not None]
        known = len(scores) == len(responses)
        metrics[f"best_{name}"] = best_of_k(scores, correct, k) if known else nan
    return metrics | _costs(responses, k, prompt or PromptCost())


def _costs(responses: Sequence[Response], k: int, prompt: PromptCost) -> dict[str, float]:
    """k samples of average cost, and the prompt once per model that runs in any of them."""
    some = [
        pass_at_k(len(responses), sum(response.runs[model] for response in responses), k) for model in (0, 1)
    ]
    shared = {
        "flops": sum(part * cost for part, cost in zip(some, prompt.flops, strict=True)),
        "bytes": sum(part * cost for part, cost in zip(some, prompt.bytes, strict=True)),
    }
    return {
        name: k * fmean(float(getattr(response, name)) for response in responses) + shared.get(name, 0.0)
        for name in COSTS
    }


# ---- intervals ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap interval."""

    value: float
    low: float
    """NaN where there is but one problem to draw from, or no resample."""
    high: float

    @property
    def clear(self) -> bool:
        """Does it leave out 0?"""
        return isfinite(self.low) and not self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class Resampling:
    """How intervals are made."""

    num: int = 1000
    """Resamples of the problems; 0 makes no intervals."""
    seed: int = 0
    """Fixes them: figures of the same problems come from the same resamples."""

    def __post_init__(self) -> None:
        if self.num < 0:
            raise ScalingError(f"{self.num} resamples cannot be drawn; give 0 for no intervals, or 1000")

    def intervals(self, strata: Sequence[NDArray[np.float64]]) -> list[Interval]:
        """The means of M metrics over problems, one array (P, M) per task; tasks count the same and are taken as fixed."""
        value_M = np.mean([values_PM.mean(0) for values_PM in strata], 0)
        if self.num == 0 or any(len(values_PM) < 2 for values_PM in strata):
            return [Interval(float(value), nan, nan) for value in value_M]
        means_RM = np.mean(
            [
                weights_RP @ values_PM
                for weights_RP, values_PM in zip(self._weights(map(len, strata)), strata, strict=True)
            ],
            0,
        )
        low_M, high_M = np.quantile(means_RM, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return [Interval(*map(float, ends)) for ends in zip(value_M, low_M, high_M, strict=True)]

    def _weights(self, sizes: Iterator[int]) -> Iterator[NDArray[np.float64]]:
        """Per task (R, P): how often each problem was drawn, as a share."""
        rng = np.random.default_rng(self.seed)
        for size in sizes:
            yield rng.multinomial(size, np.full(size, 1 / size), size=self.num) / size
