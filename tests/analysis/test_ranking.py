"""Areas, overlaps and intervals: against scikit-learn, against counting by hand, against every possible resample."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from navtoken.analysis import ranking as module
from navtoken.analysis.ranking import (
    Ranked,
    RankingError,
    Resampling,
    intervals,
    means_by_bin,
    overlap,
    rank_bins,
    ratios,
    sums_by,
    top_count_mask,
    top_mask,
)

NONE = Resampling(num=0)


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int32]]:
    """A signal with ties, a set that is neither empty nor everything, and clusters."""
    size = draw(st.integers(2, 40))
    signal = draw(st.lists(st.integers(0, 6), min_size=size, max_size=size))
    wanted = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    cluster = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    assume(0 < sum(wanted) < size)
    return np.array(signal, np.float32) / 3, np.array(wanted), np.array(cluster, np.int32)


@given(cases())
def test_areas_are_scikit_learns(
    case: tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int32]],
) -> None:
    signal, wanted, cluster = case
    areas = Ranked.of(signal, wanted, cluster).areas(NONE)
    assert areas.roc.value == pytest.approx(roc_auc_score(wanted, signal))
    assert areas.pr.value == pytest.approx(average_precision_score(wanted, signal))
    assert math.isnan(areas.roc.low)


@given(cases(), st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_a_resample_is_scikit_learns_weighted_area(
    case: tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int32]], drawn: list[int]
) -> None:
    signal, wanted, cluster = case
    weight_C = np.array(drawn, np.int64)[: cluster.max() + 1]
    weight = weight_C[cluster]
    assume(weight[wanted].sum() > 0 and weight[~wanted].sum() > 0)
    roc, pr = Ranked.of(signal, wanted, cluster)._areas(weight_C)
    assert roc == pytest.approx(roc_auc_score(wanted, signal, sample_weight=weight))
    assert pr == pytest.approx(average_precision_score(wanted, signal, sample_weight=weight))


def test_areas_by_hand() -> None:
    # Four pairs of a hit and a miss: won, tied, lost, won.
    signal, wanted = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, False, True, False])
    ranked = Ranked.of(signal, wanted, np.zeros(4, np.int32))
    areas = ranked.areas(NONE)
    assert areas.roc.value == (1 + 1 + 0.5 + 1) / 4
    # Thresholds at 3 and 2: half found at precision 1, the other half at 2 of 3.
    assert areas.pr.value == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert [(p.false_positive_rate, p.recall, p.precision) for p in ranked.curve()] == [
        (0.0, 0.5, 1.0),
        (0.5, 1.0, pytest.approx(2 / 3)),
        (1.0, 1.0, 0.5),
    ]


@given(cases())
def test_curves_are_points_of_scikit_learns(
    case: tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int32]],
) -> None:
    signal, wanted, cluster = case
    rates, recalls, _ = roc_curve(wanted, signal, drop_intermediate=False)
    precisions, recalls_pr, _ = precision_recall_curve(wanted, signal)
    points = Ranked.of(signal, wanted, cluster).curve()
    known = {(round(a, 9), round(b, 9)) for a, b in zip(rates, recalls, strict=True)}
    known_pr = {(round(a, 9), round(b, 9)) for a, b in zip(recalls_pr, precisions, strict=True)}
    assert {(round(p.false_positive_rate, 9), round(p.recall, 9)) for p in points} <= known
    assert {(round(p.recall, 9), round(p.precision, 9)) for p in points} <= known_pr
    assert points[-1].recall == 1.0


def test_a_long_curve_has_few_points() -> None:
    rng = np.random.default_rng(0)
    points = Ranked.of(rng.random(5000), rng.random(5000) < 0.3, np.zeros(5000, np.int32)).curve(50)
    assert 45 <= len(points) <= 50
    assert all(a.recall <= b.recall for a, b in itertools.pairwise(points))


def test_an_empty_set_has_no_area() -> None:
    nothing = Ranked.of(np.arange(3.0), np.zeros(3, bool), np.zeros(3, np.int32)).areas(NONE)
    assert math.isnan(nothing.roc.value)
    assert math.isnan(nothing.pr.value)
    everything = Ranked.of(np.arange(3.0), np.ones(3, bool), np.zeros(3, np.int32)).areas(NONE)
    assert math.isnan(everything.roc.value)
    assert everything.pr.value == 1.0


def test_nan_is_refused() -> None:
    with pytest.raises(RankingError, match="NaN"):
        Ranked.of(np.array([1.0, math.nan]), np.array([True, False]), np.zeros(2, np.int32))
    with pytest.raises(RankingError, match="-1 resamples"):
        Resampling(num=-1)


# ---- sets -----------------------------------------------------------------------------------------------------

MASKS = st.integers(1, 30).flatmap(
    lambda size: st.tuples(*[st.lists(st.booleans(), min_size=size, max_size=size) for _ in range(2)])
)


@given(MASKS)
def test_overlap_is_that_of_sets(masks: tuple[list[bool], list[bool]]) -> None:
    a, b = (np.array(mask) for mask in masks)
    first, second = (set(np.flatnonzero(mask)) for mask in (a, b))
    found = overlap(a, b, np.zeros(len(a), np.int32), NONE)
    if first | second:
        assert found.jaccard.value == pytest.approx(len(first & second) / len(first | second))
    else:
        assert math.isnan(found.jaccard.value)
    if first:
        assert found.precision.value == pytest.approx(len(first & second) / len(first))
    if second:
        assert found.recall.value == pytest.approx(len(first & second) / len(second))
    back = overlap(b, a, np.zeros(len(a), np.int32), NONE)
    assert (back.num_found, back.num_wanted) == (found.num_wanted, found.num_found)
    assert back.precision == found.recall or math.isnan(found.recall.value)
    assert back.jaccard == found.jaccard or math.isnan(found.jaccard.value)


@given(cases(), st.data())
def test_sets_of_one_size_have_one_overlap(
    case: tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int32]], data: st.DataObject
) -> None:
    signal, wanted, cluster = case
    found = overlap(top_count_mask(signal, int(wanted.sum())), wanted, cluster, NONE)
    assert found.num_found == found.num_wanted == wanted.sum()
    assert found.precision == found.recall
    j = found.recall.value / (2 - found.recall.value)
    assert found.jaccard.value == pytest.approx(j)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data())
def test_top_positions_are_the_highest_and_the_earlier_of_equals(
    values: list[int], data: st.DataObject
) -> None:
    signal = np.array(values, np.float32)
    count = data.draw(st.integers(0, len(values)))
    mask = top_count_mask(signal, count)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert set(np.flatnonzero(mask)) == set(order[:count])
    share = data.draw(st.floats(0.01, 1.0))
    # As in select_top, float noise on whole numbers of positions does not add one.
    assert top_mask(signal, share).sum() == max(1, math.ceil(round(share * len(values), 6)))


def test_more_positions_than_there_are_cannot_be_chosen() -> None:
    with pytest.raises(RankingError, match="4 positions"):
        top_count_mask(np.arange(3.0), 4)


def test_expected_overlap_is_what_shuffling_gives() -> None:
    rng = np.random.default_rng(1)
    a, b = np.arange(2000) < 600, np.arange(2000) < 300
    cluster = np.zeros(2000, np.int32)
    found = [overlap(a, rng.permutation(b), cluster, NONE) for _ in range(50)]
    assert np.mean([each.jaccard.value for each in found]) == pytest.approx(found[0].expected, abs=0.01)


# ---- bins -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=100), st.integers(1, 25))
def test_bins_have_one_size_and_follow_the_signal(values: list[int], num: int) -> None:
    signal = np.array(values, np.float32)
    bins = rank_bins(signal, num)
    sizes = np.bincount(bins, minlength=num)
    assert sizes.max() - sizes.min() <= 1
    assert (np.diff(bins[np.argsort(signal, kind="stable")]) >= 0).all()


def test_means_by_bin_by_hand() -> None:
    value, bins, cluster = np.array([1.0, 3.0, 5.0, 9.0]), np.array([0, 0, 2, 2]), np.array([0, 1, 1, 1])
    means = means_by_bin(value, bins, cluster, 3, NONE)
    assert [each.value for each in means][::2] == [2.0, 7.0]
    assert math.isnan(means[1].value)
    assert sums_by(cluster, bins, value, 3).tolist() == [[1, 0, 0], [3, 0, 14]]


# ---- intervals ------------------------------------------------------------------------------------------------


def test_an_interval_is_that_of_every_possible_resample() -> None:
    part, whole = np.array([[1.0], [5.0], [2.0], [9.0]]), np.array([[4.0], [6.0], [10.0], [10.0]])
    draws = [
        part[list(drawn)].sum() / whole[list(drawn)].sum() for drawn in itertools.product(range(4), repeat=4)
    ]
    (found,) = ratios(part, whole, Resampling(num=4000))
    assert found.value == 17 / 30
    assert found.low == pytest.approx(np.quantile(draws, 0.025), abs=0.03)
    assert found.high == pytest.approx(np.quantile(draws, 0.975), abs=0.03)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31))
def test_one_seed_one_interval(seed: int) -> None:
    part, whole = np.random.default_rng(3).random((8, 2)), np.ones((8, 2))
    assert ratios(part, whole, Resampling(50, seed)) == ratios(part, whole, Resampling(50, seed))
    assert ratios(part, whole, Resampling(50, seed)) != ratios(part, whole, Resampling(50, seed + 1))


def test_tokens_of_one_cluster_are_not_so_many_observations() -> None:
    """Twenty clusters whose tokens are all alike: the interval is that of twenty tokens, not of two thousand."""
    cluster = np.repeat(np.arange(20, dtype=np.int32), 100)
    a = np.repeat(np.arange(20) % 2 == 0, 100)
    everything = np.ones(2000, bool)
    clustered = overlap(a, everything, cluster, Resampling(300)).recall
    single = overlap(a, everything, np.arange(2000, dtype=np.int32), Resampling(300)).recall
    assert clustered.value == single.value == 0.5
    assert 0.3 < clustered.high - clustered.low < 0.6
    assert single.high - single.low < 0.1


def test_there_is_no_interval_without_clusters_to_draw_from() -> None:
    assert math.isnan(intervals(lambda _: np.array([0.5]), 1, Resampling(10))[0].low)
    assert math.isnan(intervals(lambda _: np.array([0.5]), 9, Resampling(0))[0].high)
    # Resamples that say nothing are left out: what remains is the ones that do.
    found = intervals(lambda w: np.array([math.nan if w[0] == 0 else 1.0]), 3, Resampling(50))[0]
    assert (found.low, found.high) == (1.0, 1.0)


# ---- many positions -------------------------------------------------------------------------------------------


def many(size: int = 60_000, num_clusters: int = 150) -> Ranked:
    """A signal that finds a set of some 20 %; both vary from cluster to cluster."""
    rng = np.random.default_rng(3)
    cluster = np.sort(rng.integers(num_clusters, size=size)).astype(np.int32)
    difficulty = rng.normal(0, 0.7, num_clusters)[cluster]
    wanted = rng.normal(difficulty, 1) > 1.2
    signal = (wanted + difficulty + rng.normal(0, 1.5, size)).astype(np.float32).round(3)
    return Ranked.of(signal, wanted, cluster)


def test_coarse_intervals_are_those_of_all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked, resampling = many(), Resampling(300, seed=5)
    assert not ranked.is_coarse
    exact = ranked.areas(resampling)
    monkeypatch.setattr(module, "MOST_EXACT", 1000)
    assert ranked.is_coarse
    coarse = ranked.areas(resampling)
    for ours, theirs in ((coarse.roc, exact.roc), (coarse.pr, exact.pr)):
        assert ours.value == theirs.value
        width = theirs.high - theirs.low
        # The same clusters are drawn, but under other numbers.
        assert ours.low == pytest.approx(theirs.low, abs=0.15 * width)
        assert ours.high == pytest.approx(theirs.high, abs=0.15 * width)


def test_clusters_that_are_drawn_in_groups_spread_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked, resampling = many(num_clusters=2000), Resampling(400, seed=5)
    exact = ranked.areas(resampling).roc
    monkeypatch.setattr(module, "MOST_EXACT", 1000)
    monkeypatch.setattr(module, "MOST_CLUSTERS", 200)
    coarse = ranked.areas(resampling).roc
    assert (coarse.high - coarse.low) / (exact.high - exact.low) == pytest.approx(1, abs=0.2)


def test_equal_signals_stay_together_in_a_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three values in many bins: nothing is lost, however many positions there are."""
    rng = np.random.default_rng(1)
    signal = rng.integers(3, size=5000).astype(np.float32)
    ranked = Ranked.of(signal, rng.random(5000) < 0.2 + 0.1 * signal, np.zeros(5000, np.int32))
    coarse = module._Coarse.of(ranked, seed=0)
    assert coarse.areas(np.ones(1, np.int64)) == pytest.approx(ranked._areas(np.ones(1, np.int64)), rel=1e-12)
