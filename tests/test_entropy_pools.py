"""Quantiles of pools, and the selection of their top fraction, against numpy and against counting."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from navtoken.entropy import (
    BadPoolError,
    EmptyPoolError,
    exact_quantile,
    exact_quantiles,
    select_top,
    top_threshold,
)

pools = st.sampled_from([np.float32, np.float64]).flatmap(
    lambda kind: hnp.arrays(
        kind,
        st.integers(1, 60),
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5]),
            st.floats(-1e6, 1e6, width=32 if kind is np.float32 else 64),
        ),
    )
)


@settings(deadline=None, max_examples=60)
@given(pools, st.floats(0, 1), st.integers(1, 7))
def test_quantile_is_that_of_numpy_however_the_pool_is_cut(pool, q, cut):
    # numpy interpolates in the pool's own type, so the reference gets the same numbers in float64.
    expected = np.quantile(pool.astype(np.float64), q)
    chunks = [pool[start : start + cut] for start in range(0, len(pool), cut)]
    for given_pool in (pool, torch.from_numpy(pool), chunks, iter(chunks)):
        assert exact_quantile(given_pool, q) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_quantile_past_the_limit_of_torch():
    size = 2**24 + 12_345
    pool = torch.rand(size, generator=torch.Generator().manual_seed(3))
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(pool, 0.8)
    k = math.ceil(0.2 * size)
    qs = (0.5, 0.8, 0.999)
    below = {q: math.floor(q * (size - 1)) for q in qs}
    ranks = [size - k, *(low + step for low in below.values() for step in (0, 1))]
    # Puts the elements of these ranks where sorting would, at a fraction of its time.
    placed = np.partition(pool.numpy(), ranks)
    for q, ours in zip(qs, exact_quantiles(pool, qs), strict=True):
        low, high = (float(placed[below[q] + step]) for step in (0, 1))
        assert ours == low + (high - low) * (q * (size - 1) - below[q])
    assert top_threshold(pool.split(2**21), 0.2) == float(placed[size - k])


def test_padding_is_never_counted():
    pool = torch.tensor([[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 5.0, torch.nan]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    assert exact_quantile(pool, 0.5, mask) == 3.0
    assert exact_quantile([pool[0], pool[1]], 0.5, [mask[0], mask[1]]) == 3.0
    assert top_threshold(pool, 0.4, mask) == 4.0


def test_columns_of_a_trace_are_read_only_and_do():
    pool = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    pool.flags.writeable = False
    assert exact_quantile(pool, 0.5) == 2.0


def test_pools_that_have_no_quantile():
    with pytest.raises(EmptyPoolError, match="no element counts"):
        exact_quantile(torch.zeros(0), 0.5)
    with pytest.raises(EmptyPoolError, match="mask is all False"):
        exact_quantile(torch.zeros(4), 0.5, torch.zeros(4, dtype=torch.bool))
    with pytest.raises(EmptyPoolError):
        exact_quantile([], 0.5)
    with pytest.raises(BadPoolError, match="mask it out"):
        exact_quantile(torch.tensor([0.0, torch.nan]), 0.5)
    with pytest.raises(BadPoolError, match="shapes differ"):
        exact_quantile(torch.zeros(4), 0.5, torch.ones(3))
    with pytest.raises(ValueError, match=r"quantile 80 is not in 0\.\.1"):
        exact_quantile(torch.zeros(4), 80)


# ---- selection -------------------------------------------------------------------------------------------------

few_values = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 12)),
    elements=st.sampled_from([0.0, 0.25, 1.0, 2.0]),
)


@settings(deadline=None, max_examples=150)
@given(few_values, st.floats(0.01, 1), st.randoms(use_true_random=False))
def test_selection_with_many_ties(entropy, fraction, rng):
    mask = np.array([[rng.random() < 0.7 for _ in row] for row in entropy])
    values = sorted(entropy[mask].tolist(), reverse=True)
    if not values:
        with pytest.raises(EmptyPoolError):
            select_top(torch.from_numpy(entropy), torch.from_numpy(mask), fraction)
        return
    k = max(1, math.ceil(round(fraction * len(values), 6)))
    exact = select_top(torch.from_numpy(entropy), torch.from_numpy(mask), fraction, ties="exact")
    threshold = select_top(torch.from_numpy(entropy), torch.from_numpy(mask), fraction, ties="threshold")
    for selection in (exact, threshold):
        assert selection.threshold == values[k - 1]
        assert not (selection.mask.numpy() & ~mask).any()
        assert selection.fraction == selection.mask.sum().item() / len(values)
    assert exact.mask.sum() == k
    assert sorted(entropy[exact.mask.numpy()].tolist(), reverse=True) == values[:k]
    assert (threshold.mask.numpy() == (mask & (entropy >= values[k - 1]))).all()
    assert (threshold.mask | ~exact.mask).all()


def test_of_equal_tokens_the_earlier_are_selected():
    selection = select_top(torch.tensor([[1.0, 1.0, 3.0], [1.0, 1.0, 1.0]]), fraction=0.5, ties="exact")
    assert selection.mask.tolist() == [[True, True, True], [False, False, False]]


@pytest.mark.parametrize(
    ("size", "fraction"), [*itertools.product([1, 3, 100, 1000], [0.001, 0.07, 0.2, 1.0])]
)
def test_realised_fraction_is_the_asked_one_rounded_up_to_tokens(size, fraction):
    entropy = torch.randperm(size, generator=torch.Generator().manual_seed(4)).float()
    for ties in ("threshold", "exact"):
        k = select_top(entropy, fraction=fraction, ties=ties).mask.sum().item()
        assert k == max(1, -(-round(fraction * 1000) * size // 1000))


@pytest.mark.parametrize("fraction", [0.0, -0.2, 1.5, 20])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(ValueError, match="0.2 keeps the top 20 %"):
        select_top(torch.zeros(4), fraction=fraction)


def test_unknown_ties_are_refused():
    with pytest.raises(ValueError, match="use 'threshold' or 'exact'"):
        select_top(torch.zeros(4), ties="random")
