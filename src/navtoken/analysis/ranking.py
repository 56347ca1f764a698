"""How well a number per position finds a set of positions, how far two sets agree, and how sure either is.

Every figure comes with a bootstrap interval, and what is drawn again are clusters (problems, with all their responses):
tokens of one response are anything but independent, and an interval over tokens would be several times too narrow.

The areas are computed here and not by scikit-learn, which the tests hold them against: hundreds of resamples leave the order of
the signal as it is, so it is sorted once and every resample is one pass of cumulative sums.

Shapes: N positions, C clusters, G groups of positions with one value of the signal, S statistics.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from navtoken.entropy import select_top

Mask = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]
Weights = NDArray[np.int64]
"""How often each cluster was drawn."""
Statistic = Callable[[Weights], NDArray[np.float64]]
"""Weights per cluster -> S numbers; NaN where a resample says nothing."""

LEVEL = 0.95
"""Of all intervals here."""
REACH = 1.96
"""Standard errors on either side of a mean that make such an interval."""
MOST_EXACT = 2**18
"""Positions up to which every resample of an area goes through all of them."""
MOST_CLUSTERS, NUM_RANK_BINS = 1000, 2000
"""Beyond that, groups of clusters that are drawn, and bins of the signal that are told apart."""


class RankingError(ValueError):
    """Sets or signals that cannot be compared."""


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % bootstrap interval."""

    value: float
    """On the data as they are."""
    low: float
    """NaN where there is but one cluster to draw from, or no resample."""
    high: float


@dataclass(frozen=True)
class Resampling:
    """How intervals are made."""

    num: int = 500
    """Resamples; 0 makes no intervals."""
    seed: int = 0
    """Fixes them. All figures of one seed come from the same resamples."""

    def __post_init__(self) -> None:
        if self.num < 0:
            raise RankingError(f"{self.num} resamples cannot be drawn; give 0 for no intervals, or 500")

    def weights(self, num_clusters: int) -> Iterator[Weights]:
        """Per resample, how often each cluster was drawn: C draws with replacement."""
        rng = np.random.default_rng(self.seed)
        for _ in range(self.num):
            yield np.bincount(rng.integers(num_clusters, size=num_clusters), minlength=num_clusters)


def intervals(statistic: Statistic, num_clusters: int, resampling: Resampling) -> list[Interval]:
    """The S figures of `statistic` with percentile intervals; resamples that say nothing (NaN) are left out."""
    value_S = statistic(np.ones(num_clusters, dtype=np.int64))
    if num_clusters < 2 or resampling.num == 0:
        return [Interval(float(value), math.nan, math.nan) for value in value_S]
    draws = np.array([statistic(weight_C) for weight_C in resampling.weights(num_clusters)])
    ends = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    return [
        Interval(float(value), *(float(np.quantile(known, end)) if known.size else math.nan for end in ends))
        for value, known in (
            (value, each[~np.isnan(each)]) for value, each in zip(value_S, draws.T, strict=True)
        )
    ]


# ---- sets -----------------------------------------------------------------------------------------------------


def top_mask(signal_N: Floats, fraction: float) -> Mask:
    """Which positions are the top `fraction`: exactly max(1, ceil(fraction N)), the earlier first among equals."""
    return select_top(torch.tensor(signal_N), fraction=fraction, ties="exact").mask.numpy()


def top_count_mask(signal_N: Floats, count: int) -> Mask:
    """Which positions are the `count` highest, the earlier first among equals."""
    if not 0 <= count <= len(signal_N):
        raise RankingError(f"{count} positions cannot be chosen out of {len(signal_N)}")
    return top_mask(signal_N, count / len(signal_N)) if count else np.zeros(len(signal_N), dtype=bool)


@dataclass(frozen=True)
class Overlap:
    """How far a found set agrees with a wanted one."""

    jaccard: Interval
    """In both / in either."""
    precision: Interval
    """In both / found."""
    recall: Interval
    """In both / wanted."""
    num_found: int
    num_wanted: int
    expected: float
    """Jaccard index of sets of these sizes that have nothing to do with each other."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def overlap(
    found_N: Mask, wanted_N: Mask, cluster_N: NDArray[np.integer[Any]], resampling: Resampling
) -> Overlap:
    """Jaccard index, precision and recall; NaN where a set is empty."""
    num_clusters = int(cluster_N.max()) + 1
    sums_3C = np.stack(
        [
            np.bincount(cluster_N, weights=mask, minlength=num_clusters)
            for mask in (found_N & wanted_N, found_N, wanted_N)
        ]
    )

    def statistic(weight_C: Weights) -> NDArray[np.float64]:
        both, found, wanted = sums_3C @ weight_C
        return np.array([ratio(both, found + wanted - both), ratio(both, found), ratio(both, wanted)])

    found, wanted = int(found_N.sum()), int(wanted_N.sum())
    chance = found * wanted / len(found_N)
    jaccard, precision, recall = intervals(statistic, num_clusters, resampling)
    expected = ratio(chance, found + wanted - chance)
    return Overlap(jaccard, precision, recall, found, wanted, expected)


def ratio(part: float, whole: float) -> float:
    """A quotient; NaN for a part of nothing."""
    return float(part / whole) if whole else math.nan


def ratios(part_CS: Floats, whole_CS: Floats, resampling: Resampling) -> list[Interval]:
    """Sum over clusters of each part / sum of its whole, S of them."""

    def statistic(weight_C: Weights) -> NDArray[np.float64]:
        part_S, whole_S = weight_C @ part_CS, weight_C @ whole_CS
        return np.divide(part_S, whole_S, out=np.full(len(part_S), math.nan), where=whole_S != 0)

    return intervals(statistic, len(part_CS), resampling)


def sums_by(
    cluster_N: NDArray[np.integer[Any]], group_N: NDArray[np.integer[Any]], value_N: Floats, num_groups: int
) -> NDArray[np.float64]:
    """(clusters x groups) sums of a value per position."""
    num_clusters = int(cluster_N.max()) + 1
    cell_N = cluster_N.astype(np.int64) * num_groups + group_N
    sums = np.bincount(cell_N, weights=value_N, minlength=num_clusters * num_groups)
    return sums.astype(np.float64).reshape(num_clusters, -1)


# ---- signals --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Areas:
    """How well a signal finds a set, over all thresholds."""

    roc: Interval
    """Area under the ROC curve: how often a position of the set has the higher signal, 0.5 by chance."""
    pr: Interval
    """Average precision, as scikit-learn has it: the set's share by chance."""


@dataclass(frozen=True)
class CurvePoint:
    """What one threshold finds."""

    false_positive_rate: float
    recall: float
    precision: float


@dataclass(frozen=True)
class Ranked:
    """Positions in falling order of a signal, and which of them are in a set."""

    hit_N: Mask
    """Is the position in the set?"""
    cluster_N: NDArray[np.integer[Any]]
    end_G: NDArray[np.int64]
    """Last position of each run of equal signals: thresholds lie between runs only."""

    @classmethod
    def of(cls, signal_N: Floats, wanted_N: Mask, cluster_N: NDArray[np.integer[Any]]) -> "Ranked":
        """Sort once. Raises `RankingError` for NaN."""
        if np.isnan(signal_N).any():
            raise RankingError(
                "the signal holds NaN, a value that was not computed; leave such positions out"
            )
        order_N = np.argsort(-signal_N, kind="stable")
        sorted_N = signal_N[order_N]
        end_G = np.flatnonzero(np.append(sorted_N[1:] != sorted_N[:-1], True))
        return cls(wanted_N[order_N], cluster_N[order_N], end_G)

    @property
    def num_clusters(self) -> int:
        return int(self.cluster_N.max()) + 1

    @property
    def is_coarse(self) -> bool:
        """Are there so many positions that the ends of intervals come from bins of them?"""
        return len(self.hit_N) > MOST_EXACT

    def areas(self, resampling: Resampling) -> Areas:
        """Both areas with intervals; NaN where the set is empty, and ROC's where it is everything.

        The areas themselves are exact. Of many positions the intervals are those of coarse areas (see `_Coarse`), moved to
        lie around the exact ones.
        """
        if not self.is_coarse:
            return Areas(*intervals(self._areas, self.num_clusters, resampling))
        coarse = _Coarse.of(self, resampling.seed)
        exact = self._areas(np.ones(self.num_clusters, dtype=np.int64)).tolist()
        around = intervals(coarse.areas, coarse.num_groups, resampling)
        return Areas(*(_moved(interval, to) for interval, to in zip(around, exact, strict=True)))

    def curve(self, num: int = 100) -> list[CurvePoint]:
        """At most `num` thresholds from the highest down, evenly many positions apart."""
        found_G, hits_G = self._found_and_hits(np.ones(self.num_clusters, dtype=np.int64))
        wanted, others = hits_G[-1], found_G[-1] - hits_G[-1]
        picked = np.unique(np.searchsorted(found_G, np.linspace(1, found_G[-1], num)))
        return [
            CurvePoint(
                ratio(found_G[i] - hits_G[i], others), ratio(hits_G[i], wanted), ratio(hits_G[i], found_G[i])
            )
            for i in picked
        ]

    def _areas(self, weight_C: Weights) -> NDArray[np.float64]:
        return _areas(*self._found_and_hits(weight_C))

    def _found_and_hits(self, weight_C: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions, and positions of the set, down to each threshold; each counts as often as its cluster was drawn."""
        weight_N = weight_C[self.cluster_N]
        found_G = np.cumsum(weight_N)[self.end_G]
        hits_G = np.cumsum(weight_N * self.hit_N)[self.end_G]
        return found_G.astype(np.float64), hits_G.astype(np.float64)


def _areas(found_G: NDArray[np.float64], hits_G: NDArray[np.float64]) -> NDArray[np.float64]:
    """ROC area and average precision from what is found down to each threshold."""
    wanted, others = float(hits_G[-1]), float(found_G[-1] - hits_G[-1])
    hit_G = np.diff(hits_G, prepend=0.0)
    other_G = np.diff(found_G, prepend=0.0) - hit_G
    # A position outside the set loses to all hits before it, and ties with those of its own run.
    roc = ratio(float(other_G @ (hits_G - hit_G / 2)), wanted * others)
    precision_G = np.divide(hits_G, found_G, out=np.zeros_like(hits_G), where=found_G > 0)
    return np.array([roc, ratio(float(hit_G @ precision_G), wanted)])


@dataclass(frozen=True)
class _Coarse:
    """A ranking of many positions made small: counts by group of clusters and bin of the signal.

    A resample is then one product with a matrix whose size does not grow with the positions. Two things are lost. Positions of
    one bin tie, which moves an area by about one part in the number of bins. And clusters are drawn in groups that were put together at
    random: the spread of a sum over independent clusters is that of a sum over such groups.
    """

    num_MG: NDArray[np.float64]
    """Positions."""
    hits_MG: NDArray[np.float64]
    """Positions of the set."""

    @classmethod
    def of(cls, ranked: Ranked, seed: int) -> "_Coarse":
        size, num_clusters = len(ranked.hit_N), ranked.num_clusters
        num_groups = min(num_clusters, MOST_CLUSTERS)
        group_C = np.random.default_rng(seed).permutation(num_clusters) % num_groups
        start_G = np.concatenate([[0], ranked.end_G[:-1] + 1])
        # A run of equal signals is in one bin: no threshold lies within it.
        bin_N = np.repeat(start_G * NUM_RANK_BINS // size, np.diff(ranked.end_G, prepend=-1))
        cell_N = group_C[ranked.cluster_N] * NUM_RANK_BINS + bin_N

        def counts(weights: Mask | None = None) -> NDArray[np.float64]:
            sums = np.bincount(cell_N, weights, num_groups * NUM_RANK_BINS)
            return sums.astype(np.float64).reshape(num_groups, NUM_RANK_BINS)

        return cls(counts(), counts(ranked.hit_N))

    @property
    def num_groups(self) -> int:
        return len(self.num_MG)

    def areas(self, weight_M: Weights) -> NDArray[np.float64]:
        return _areas(np.cumsum(weight_M @ self.num_MG), np.cumsum(weight_M @ self.hits_MG))


def _moved(interval: Interval, value: float) -> Interval:
    """The same interval around another value."""
    by = value - interval.value
    return Interval(value, interval.low + by, interval.high + by)


def rank_bins(signal_N: Floats, num_bins: int) -> NDArray[np.int64]:
    """Which of `num_bins` bins of equally many positions each position is in, 0 the lowest; equals in order of position."""
    bin_N = np.empty(len(signal_N), dtype=np.int64)
    bin_N[np.argsort(signal_N, kind="stable")] = np.arange(len(signal_N)) * num_bins // max(1, len(signal_N))
    return bin_N


def means_by_bin(
    value_N: Floats | Mask,
    bin_N: NDArray[np.int64],
    cluster_N: NDArray[np.integer[Any]],
    num_bins: int,
    resampling: Resampling,
) -> list[Interval]:
    """Mean of a value in each bin; NaN in an empty one."""
    sum_CS = sums_by(cluster_N, bin_N, np.asarray(value_N, dtype=np.float64), num_bins)
    count_CS = sums_by(cluster_N, bin_N, np.ones(len(bin_N)), num_bins)
    return ratios(sum_CS, count_CS, resampling)
