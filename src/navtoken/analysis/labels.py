"""What labels say: how many tokens are identical, neutral and divergent, how uncertain the SLM was there, and which tokens they are.

The second paper gives the shares, says that the SLM's entropy is 3.8 times as high at divergent tokens as at the others and that
rare tokens diverge more, and shows no divergent token. Here each figure has an interval over problems, and the tokens are shown.

A token whose label is invalid belongs to no class: it is counted apart, and is in no other figure.

Traces are read once and may be many: what is kept of each token is a handful of numbers, and of continuations only some examples.

Shapes: N labelled tokens, C problems, L classes (identical, neutral, divergent).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.items import Item, typical_items
from navtoken.analysis.label_pool import Example, Gathering, Pool
from navtoken.analysis.ranking import (
    Interval,
    Mask,
    Resampling,
    Weights,
    intervals,
    means_by_bin,
    rank_bins,
    ratio,
    ratios,
    sums_by,
)
from navtoken.analysis.rarity import RarityBin, rarity_bins
from navtoken.labeling.labels import Label
from navtoken.trace import Trace

CLASSES = (Label.IDENTICAL, Label.NEUTRAL, Label.DIVERGENT)
"""What a label says, where it says something."""
NUM_BINS = 20
"""Bins of 5 % of the tokens by the SLM's entropy."""


class NoLabelsError(ValueError):
    """Traces without labels."""


@dataclass(frozen=True)
class ClassEntropy:
    """The SLM's entropies at the tokens of one class, in nats."""

    num_tokens: int
    mean: Interval
    median: float
    """NaN where no entropy is known."""


@dataclass(frozen=True)
class Pair:
    """What the LLM wrote, and what the SLM would have written there."""

    llm_id: int
    slm_id: int
    divergent: int
    """How often that was another path."""
    total: int
    """How often it came about, invalid ones left out."""


@dataclass(frozen=True)
class CutOff:
    """What responses hold that reached the length limit: a few that go round in circles may hold most divergent tokens."""

    num_responses: int
    tokens: float
    """Their share of the labelled tokens."""
    divergent: float
    """Their share of the divergent ones; NaN where there are none."""


@dataclass(frozen=True, eq=False)
class LabelStudy:
    """Everything that some labels say."""

    num_responses: int
    """With at least one label."""
    num_problems: int
    num_tokens: int
    """Labelled ones, invalid ones included."""
    shares: dict[str, Interval]
    """Of the tokens whose label says something, by class."""
    invalid: Interval
    """Share of the labelled tokens whose label says nothing."""
    cut_off: CutOff
    task_shares: dict[str, dict[str, float]]
    """By task and class, and `invalid` as above."""
    task_divergent: dict[str, Interval]
    """By task the share of divergent tokens, as above, with its interval."""
    entropy: dict[str, ClassEntropy]
    """By class."""
    entropy_ratio: Interval
    """The SLM's mean entropy at divergent tokens / at identical and neutral ones; 3.8 in the paper."""
    rates: dict[str, list[Interval]]
    """Share of neutral, and of divergent tokens, by 5 % bin of the SLM's entropy from the lowest up; empty without entropies."""
    edges: list[float]
    """The highest entropy of each bin, nats."""
    rarity: list[RarityBin]
    """Share of divergent tokens by how often the LLM's token stands in the responses."""
    items: list[Item]
    """Tokens of the LLM that are divergent more often than others, those first that most exceed what is expected."""
    pairs: list[Pair]
    """The most frequent substitutions that are divergent."""
    examples: dict[str, list[Example]]
    """Places of each class but identical, and of invalid ones."""
    shown: list[Trace]
    """Some responses in full."""
    pool: Pool


def study_labels(
    traces: Iterable[Trace], resampling: Resampling | None = None, num_items: int = 30, min_count: int = 5
) -> LabelStudy:
    """Read labelled traces once. Lists of tokens take those that are there `min_count` times.

    Raises `NoLabelsError` where no token has a label.
    """
    gathering = Gathering()
    for trace in traces:
        gathering.add(trace)
    return _studied(gathering, resampling or Resampling(200), num_items, min_count)


def _studied(gathering: Gathering, resampling: Resampling, num_items: int, min_count: int) -> LabelStudy:
    if not gathering.num_labelled:
        raise NoLabelsError("the traces hold no labels; `navtoken label` makes them")
    pool = gathering.pool()
    known_N = pool.label_N >= 0
    valid_N = known_N & (pool.label_N != Label.INVALID)
    divergent_N = pool.label_N == Label.DIVERGENT
    counts_CL = sums_by(
        pool.cluster_N[known_N], pool.label_N[known_N], np.ones(int(known_N.sum())), len(Label)
    )
    whole_C1 = counts_CL[:, : len(CLASSES)].sum(1, keepdims=True)
    shares = ratios(counts_CL[:, : len(CLASSES)], np.repeat(whole_C1, len(CLASSES), 1), resampling)
    (invalid,) = ratios(counts_CL[:, Label.INVALID :], counts_CL.sum(1, keepdims=True), resampling)
    cut_off = CutOff(
        gathering.num_cut,
        ratio(int(gathering.cut_labels.sum()), int(known_N.sum())),
        ratio(int(gathering.cut_labels[Label.DIVERGENT]), int(divergent_N.sum())),
    )
    entropy, entropy_ratio = _entropies(pool, valid_N, resampling)
    rates, edges = _rates(pool, valid_N, resampling)
    return LabelStudy(
        num_responses=gathering.num_labelled,
        num_problems=len(gathering.problems),
        num_tokens=int(known_N.sum()),
        shares={label.name.lower(): share for label, share in zip(CLASSES, shares, strict=True)},
        invalid=invalid,
        cut_off=cut_off,
        task_shares=_task_shares(pool),
        task_divergent=_task_divergent(pool, valid_N, divergent_N, resampling),
        entropy=entropy,
        entropy_ratio=entropy_ratio,
        rates=rates,
        edges=edges,
        rarity=rarity_bins(pool.token_N, divergent_N, pool.cluster_N, resampling, valid_N),
        items=_items(pool, valid_N, divergent_N, num_items, min_count),
        pairs=_pairs(pool, valid_N, num_items // 2),
        examples={label.name.lower(): kept for label, kept in gathering.examples.items()},
        shown=[trace for own in gathering.shown.values() for trace in own],
        pool=pool,
    )


def _task_shares(pool: Pool) -> dict[str, dict[str, float]]:
    shares = {}
    for index, task in enumerate(pool.tasks):
        label_N = pool.label_N[(pool.task_N == index) & (pool.label_N >= 0)]
        counts = np.bincount(label_N, minlength=len(Label))
        valid = int(counts[: len(CLASSES)].sum())
        shares[task] = {label.name.lower(): ratio(int(counts[label]), valid) for label in CLASSES} | {
            "invalid": ratio(int(counts[Label.INVALID]), len(label_N)),
            "num_tokens": len(label_N),
        }
    return shares


def _task_divergent(
    pool: Pool, valid_N: Mask, divergent_N: Mask, resampling: Resampling
) -> dict[str, Interval]:
    if not valid_N.any():
        return {}
    task_N = pool.task_N[valid_N].astype(np.int64)
    rates = means_by_bin(divergent_N[valid_N], task_N, pool.cluster_N[valid_N], len(pool.tasks), resampling)
    return dict(zip(pool.tasks, rates, strict=True))


def _entropies(pool: Pool, valid_N: Mask, resampling: Resampling) -> tuple[dict[str, ClassEntropy], Interval]:
    """Of each class, and the mean at divergent tokens over that at the others."""
    own_N = valid_N & ~np.isnan(pool.entropy_N)
    if not own_N.any():
        nothing = Interval(math.nan, math.nan, math.nan)
        return {}, nothing
    label_N, cluster_N = pool.label_N[own_N], pool.cluster_N[own_N]
    entropy_N = pool.entropy_N[own_N].astype(np.float64)
    sums_CL = sums_by(cluster_N, label_N, entropy_N, len(CLASSES))
    counts_CL = sums_by(cluster_N, label_N, np.ones(len(label_N)), len(CLASSES))

    def statistic(weight_C: Weights) -> NDArray[np.float64]:
        sum_L, count_L = weight_C @ sums_CL, weight_C @ counts_CL
        others = ratio(sum_L[: Label.DIVERGENT].sum(), count_L[: Label.DIVERGENT].sum())
        return np.array([ratio(ratio(sum_L[Label.DIVERGENT], count_L[Label.DIVERGENT]), others)])

    means = ratios(sums_CL, counts_CL, resampling)
    (times,) = intervals(statistic, len(sums_CL), resampling)
    classes = {
        label.name.lower(): ClassEntropy(
            int((label_N == label).sum()), mean, _median(entropy_N[label_N == label])
        )
        for label, mean in zip(CLASSES, means, strict=True)
    }
    return classes, times


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _rates(
    pool: Pool, valid_N: Mask, resampling: Resampling
) -> tuple[dict[str, list[Interval]], list[float]]:
    own_N = valid_N & ~np.isnan(pool.entropy_N)
    if not own_N.any():
        return {}, []
    entropy_N = pool.entropy_N[own_N]
    bin_N = rank_bins(entropy_N, NUM_BINS)
    edges = [_highest(entropy_N[bin_N == index]) for index in range(NUM_BINS)]
    rates = {
        label.name.lower(): means_by_bin(
            pool.label_N[own_N] == label, bin_N, pool.cluster_N[own_N], NUM_BINS, resampling
        )
        for label in (Label.NEUTRAL, Label.DIVERGENT)
    }
    return rates, edges


def _highest(values: NDArray[np.float32]) -> float:
    return float(values.max()) if len(values) else math.nan


def _items(pool: Pool, valid_N: Mask, divergent_N: Mask, num: int, min_count: int) -> list[Item]:
    """Items of the tokens whose label says something; examples are places in the whole pool."""
    if not divergent_N.any():
        return []
    place_N = np.flatnonzero(valid_N)
    found = typical_items(pool.token_N[valid_N], divergent_N[valid_N], num, min_count)
    return [replace(item, examples=tuple(int(place_N[i]) for i in item.examples)) for item in found]


def _pairs(pool: Pool, valid_N: Mask, num: int) -> list[Pair]:
    """Substitutions by how often they are divergent, of equals the surer first."""
    own_N = valid_N & (pool.label_N != Label.IDENTICAL) & (pool.draft_N >= 0)
    # One number per pair: ids are below 2^31.
    pair_N = pool.token_N[own_N].astype(np.int64) << 32 | pool.draft_N[own_N]
    known_P, index_N, total_P = np.unique(pair_N, return_inverse=True, return_counts=True)
    divergent_P = np.bincount(
        index_N, weights=pool.label_N[own_N] == Label.DIVERGENT, minlength=len(known_P)
    ).astype(np.int64)
    order = np.lexsort((known_P, total_P, -divergent_P))[:num]
    return [
        Pair(int(known_P[i] >> 32), int(known_P[i] & 0xFFFFFFFF), int(divergent_P[i]), int(total_P[i]))
        for i in order
        if divergent_P[i]
    ]
