"""Quantiles of a pool that is read again are those of the pool in memory."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from navtoken.analysis.pool import GroupQuantiles, exact_percentile
from navtoken.order_statistics import RankSearch, order_statistics

Chunks = list[NDArray[np.float32]]
values = st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, -0.0, 1e-30, 0.01])
pools = st.lists(st.lists(values, max_size=30).map(lambda v: np.array(v, np.float32)), max_size=5)


@settings(deadline=None)
@given(pools, st.floats(0, 100))
def test_percentiles_are_numpys(chunks: Chunks, percent: float) -> None:
    whole = np.concatenate([*chunks, np.zeros(0, np.float32)])
    if not whole.size:
        with pytest.raises(ValueError, match="empty"):
            exact_percentile(lambda: chunks, percent)
        return
    expected = np.percentile(whole.astype(np.float64), percent)
    assert exact_percentile(lambda: chunks, percent) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_groups_are_apart_and_the_pool_is_read_once_more() -> None:
    rng = np.random.default_rng(0)
    groups = {"a": rng.exponential(1, 999), "b": rng.normal(3, 1, 500), "none": np.zeros(0)}
    chunks = [
        (name, part.astype(np.float32)) for name, all_ in groups.items() for part in np.array_split(all_, 7)
    ]
    quantiles = GroupQuantiles()
    for name, chunk in chunks:
        quantiles.add(name, chunk)
    readings = []

    def again() -> Iterator[tuple[str, NDArray[np.float32]]]:
        readings.append(1)
        yield from chunks

    found = quantiles.finish(again, [0.2, 0.8])
    assert found.keys() == {"a", "b"}
    assert len(readings) == 1
    for name in found:
        expected = np.quantile(groups[name].astype(np.float32).astype(np.float64), [0.2, 0.8])
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)


def test_a_quantile_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="quantile 1.5"):
        exact_percentile(lambda: [np.ones(3, np.float32)], 150)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_may_come_from_anything_that_starts_anew(dtype: torch.dtype) -> None:
    pool = torch.randn(1000, dtype=dtype)

    class Anew:
        def __iter__(self) -> Iterator[torch.Tensor]:
            return iter(pool.split(77))

    ranks = {0, 499, 999}
    ordered = pool.sort().values
    assert order_statistics(Anew(), ranks) == {rank: float(ordered[rank]) for rank in ranks}


def test_the_first_pass_counts() -> None:
    search = RankSearch()
    for chunk in torch.arange(100.0).split(9):
        search.add(chunk)
    assert search.size == 100
    search.ask([10])
    search.narrow()
    assert not search.finished
    search.add(torch.arange(100.0))
    search.narrow()
    assert search.finished
    assert search.values() == {10: 10.0}
    assert search.size == 100
