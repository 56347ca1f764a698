"""What a router is worth on labels: areas, recall against LLM share, calibration, and the same of the SLM's entropy beside it.

Labels lie on the LLM's own responses. A share of labels is therefore not the LLM share in routed generation: that one is found
by `thresholds.py`.

Shapes: N examples, C problems, S shares.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.ranking import (
    Areas,
    Interval,
    Ranked,
    Resampling,
    intervals,
    means_by_bin,
    sums_by,
)
from navtoken.router_training.examples import Examples, Target

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

NUM_BINS = 10
"""Of equal width in p(divergent)."""
SHARES = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.13, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
"""Shares of all tokens at which recall is told."""


@dataclass(frozen=True)
class Bin:
    """Tokens of which the router says about the same."""

    mean: float
    """Mean p(divergent)."""
    rate: Interval
    """Share of them that is what the router was to find."""
    num: int


@dataclass(frozen=True)
class Calibration:
    """Are the probabilities what they say?"""

    error: float
    """Expected calibration error: mean distance of p(divergent) from the rate in its bin, tokens counting alike."""
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Quality:
    """How well a router finds its target among some tokens."""

    name: str
    """Which tokens: `all`, a task, or a draft mode."""
    num_tokens: int
    num_problems: int
    share: Interval
    """Of tokens that are to be found: what a coin's precision would be."""
    router: Areas
    entropy: Areas
    """The same of the SLM's entropy."""
    router_recall: tuple[Interval, ...]
    """Share of what is to be found that is among the highest p(divergent), at `SHARES` of all tokens."""
    entropy_recall: tuple[Interval, ...]
    calibration: Calibration
    roc: dict[str, list[tuple[float, float]]]
    """By signal: false positives and recall, from the highest threshold down."""

    def as_json(self) -> dict[str, Any]:
        """All but the curve's points."""
        data = asdict(self)
        del data["roc"]
        return data | {"shares": list(SHARES)}


def qualities(
    examples: Examples,
    index_N: NDArray[np.int64],
    p_N: Floats,
    target: Target,
    resampling: Resampling,
) -> list[Quality]:
    """Over all of these examples, then per task, then per draft mode; a part that holds one kind only is left out."""
    wanted_N = examples.wanted(target)[index_N]
    found = []
    for name, mask_N in _parts(examples, index_N):
        wanted = int(wanted_N[mask_N].sum())
        if 0 < wanted < int(mask_N.sum()):
            chosen_N = index_N[mask_N]
            _, problem_N = np.unique(examples.problem_N[chosen_N], return_inverse=True)
            entropy_N = examples.entropy_N[chosen_N]
            found.append(_quality(name, p_N[mask_N], entropy_N, wanted_N[mask_N], problem_N, resampling))
    return found


def recalls(
    signal_N: Floats, wanted_N: Mask, problem_N: NDArray[np.integer[Any]], resampling: Resampling
) -> tuple[Interval, ...]:
    """Recall among the highest signals, at `SHARES` of all positions; the earlier first among equals."""
    order_N = np.argsort(-signal_N, kind="stable")
    rank_N = np.empty(len(order_N), dtype=np.int64)
    rank_N[order_N] = np.arange(len(order_N))
    last_S = np.array([round(share * len(signal_N)) for share in SHARES])
    # The first of the shares that takes a position in, then sums over shares.
    group_N = np.searchsorted(last_S, rank_N, side="right")
    hits_CS = sums_by(problem_N, group_N, wanted_N.astype(np.float64), len(SHARES) + 1)
    found_CS, wanted_C = hits_CS.cumsum(1)[:, : len(SHARES)], hits_CS.sum(1)

    def statistic(weight_C: NDArray[np.int64]) -> NDArray[np.float64]:
        whole = float(weight_C @ wanted_C)
        return weight_C @ found_CS / whole if whole else np.full(len(SHARES), math.nan)

    return tuple(intervals(statistic, len(wanted_C), resampling))


def calibration(
    p_N: Floats, wanted_N: Mask, problem_N: NDArray[np.integer[Any]], resampling: Resampling
) -> Calibration:
    """Bins of equal width, empty ones left out."""
    bin_N = np.minimum((p_N * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    num = np.bincount(bin_N, minlength=NUM_BINS)
    mean = np.bincount(bin_N, weights=p_N, minlength=NUM_BINS) / np.maximum(num, 1)
    rate = means_by_bin(wanted_N, bin_N, problem_N, NUM_BINS, resampling)
    bins = tuple(Bin(float(mean[i]), rate[i], int(num[i])) for i in range(NUM_BINS) if num[i])
    error = sum(each.num * abs(each.mean - each.rate.value) for each in bins) / len(p_N)
    return Calibration(float(error), bins)


def threshold_at_recall(p_N: Floats, wanted_N: Mask, recall: float) -> float:
    """The highest threshold above which at least this share of what is to be found lies."""
    hits = np.sort(p_N[wanted_N])[::-1]
    lowest = float(hits[max(1, math.ceil(recall * len(hits))) - 1])
    return float(np.nextafter(lowest, -1.0))


def _parts(examples: Examples, index_N: NDArray[np.int64]) -> Iterator[tuple[str, Mask]]:
    yield "all", np.ones(len(index_N), dtype=bool)
    for names, which_N in ((examples.tasks, examples.task_N), (examples.modes, examples.mode_N)):
        # One task alone would only say again what all say.
        for number, name in enumerate(names if len(names) > 1 else ()):
            yield name, np.asarray(which_N[index_N] == number)


def _quality(
    name: str,
    p_N: Floats,
    entropy_N: Floats,
    wanted_N: Mask,
    problem_N: NDArray[np.integer[Any]],
    resampling: Resampling,
) -> Quality:
    ranked = {
        "router": Ranked.of(p_N, wanted_N, problem_N),
        "entropy": Ranked.of(entropy_N, wanted_N, problem_N),
    }
    (share,) = means_by_bin(wanted_N, np.zeros(len(p_N), dtype=np.int64), problem_N, 1, resampling)
    return Quality(
        name,
        len(p_N),
        int(problem_N.max()) + 1,
        share,
        ranked["router"].areas(resampling),
        ranked["entropy"].areas(resampling),
        recalls(p_N, wanted_N, problem_N, resampling),
        recalls(entropy_N, wanted_N, problem_N, resampling),
        calibration(p_N, wanted_N, problem_N, resampling),
        {signal: _roc(each) for signal, each in ranked.items()},
    )


def _roc(ranked: Ranked) -> list[tuple[float, float]]:
    points: Sequence[Any] = ranked.curve()
    return [(0.0, 0.0), *((point.false_positive_rate, point.recall) for point in points)]
