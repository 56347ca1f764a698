"""Drift on checkpoints made by hand, and the bookkeeping of sides for any of them."""

import itertools
import math
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from navtoken.analysis.drift import PERCENTILES, Drift, DriftError, drift, shared, shifts
from navtoken.analysis.ranking import Resampling

NONE = Resampling(num=0)


def follow(
    checkpoints: list[list[float]], fraction: float, token: list[int] | None = None, **options: int
) -> Drift:
    arrays = [np.array(each, np.float32) for each in checkpoints]
    size = len(arrays[0])
    return drift(
        [f"step {index}" for index in range(len(arrays))],
        [lambda array=array: array for array in arrays],  # type: ignore[misc]
        np.array(token or range(size), np.int32),
        np.zeros(size, np.int32),
        fraction,
        NONE,
        **{"min_count": 1} | options,
    )


def test_a_path_by_hand() -> None:
    #       top:  0 1          1 2          0 2
    found = follow([[9, 8, 1, 0], [1, 8, 9, 0], [9, 1, 8, 0]], 0.5, token=[5, 6, 6, 7])
    assert [each.overlap_base.value for each in found.checkpoints] == [1.0, 0.5, 0.5]
    assert [each.overlap_final.value for each in found.checkpoints] == [0.5, 0.5, 1.0]
    assert [each.threshold for each in found.checkpoints] == [8, 8, 8]
    # 0 goes out and in again, 1 goes out late, 2 goes in early, 3 stays out.
    assert found.changes == {0: 1, 1: 2, 2: 1}
    assert found.share_ever_changed.value == 0.75
    assert found.num_returned == 1
    assert found.num_left == 1
    # Token 6 loses position 1 and gains position 2: no net change, so it is in neither table.
    assert found.leaving == found.entering == []


def test_an_overlap_is_the_same_from_either_side() -> None:
    """In a resample the sets are of unequal size: a share of one of them would not be a share of the other."""
    cluster = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2], np.int32)
    one = np.array([1, 1, 1, 0, 0, 0, 0, 1, 0], bool)
    other = np.array([1, 0, 0, 1, 1, 0, 0, 0, 1], bool)
    resampling = Resampling(200, seed=1)
    found = shared(one, other, cluster, resampling)
    assert found == shared(other, one, cluster, resampling)
    assert found.value == 0.25
    assert found.low < 0.25 < found.high
    assert shared(one, one, cluster, resampling).low == 1.0


def test_changes_are_binned_by_base_entropy() -> None:
    base = list(range(40))
    found = follow([base, [value + (10 if value >= 38 else -0.5) for value in base]], 0.2)
    last = found.checkpoints[-1]
    assert [each.value for each in last.change_by_bin] == [-0.5] * 19 + [10.0]
    assert [each.value for each in last.size_by_bin] == [0.5] * 19 + [10.0]
    assert found.bin_entropies == [0.5 + 2 * index for index in range(20)]
    assert all(each.value == 0.0 for each in found.checkpoints[0].change_by_bin)
    assert last.percentiles == pytest.approx(
        np.quantile(np.array([value + (10 if value >= 38 else -0.5) for value in base]), PERCENTILES).tolist()
    )


def test_items_that_move_by_hand() -> None:
    token = np.array([1, 1, 1, 2, 2, 3], np.int32)
    base = np.array([True, True, False, False, False, True])
    final = np.array([False, False, True, True, True, False])
    leaving, entering = shifts(token, base, final, 5, min_count=1)
    assert [(s.token_id, s.net, s.left, s.entered, s.total, s.examples) for s in leaving] == [
        (1, -1, 2, 1, 3, (0, 1)),
        (3, -1, 1, 0, 1, (5,)),
    ]
    assert [(s.token_id, s.net, s.examples) for s in entering] == [(2, 2, (3, 4))]
    assert shifts(token, base, final, 1, min_count=3) == (leaving[:1], [])


Columns = list[NDArray[np.float32]]


@st.composite
def paths(draw: st.DrawFn) -> tuple[Columns, NDArray[np.int32], NDArray[np.int32]]:
    size, num = draw(st.integers(1, 50)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    columns = [rng.integers(0, 6, size).astype(np.float32) / 4 for _ in range(num)]
    return columns, rng.integers(0, 5, size).astype(np.int32), rng.integers(0, 3, size).astype(np.int32)


def top(values: NDArray[np.float32], fraction: float) -> set[int]:
    """The slow, obvious selection."""
    count = max(1, math.ceil(round(fraction * len(values), 6)))
    return set(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])


@settings(deadline=None, max_examples=60)
@given(paths(), st.floats(0.02, 0.98))
def test_bookkeeping_is_that_of_sets(
    path: tuple[Columns, NDArray[np.int32], NDArray[np.int32]], fraction: float
) -> None:
    columns, token, cluster = path
    names = [str(index) for index in range(len(columns))]
    found = drift(
        names, [lambda c=c: c for c in columns], token, cluster, fraction, NONE, num_items=99, min_count=1
    )  # type: ignore[misc]
    tops = [top(column, fraction) for column in columns]
    for each, own in zip(found.checkpoints, tops, strict=True):
        assert each.overlap_base.value == pytest.approx(len(own & tops[0]) / len(tops[0]))
        assert each.overlap_final.value == pytest.approx(len(own & tops[-1]) / len(tops[-1]))
    times = [
        sum((i in before) != (i in after) for before, after in itertools.pairwise(tops))
        for i in range(len(token))
    ]
    assert found.changes == {n: times.count(n) for n in sorted(set(times))}
    assert found.share_ever_changed.value == pytest.approx(sum(map(bool, times)) / len(times))
    assert found.num_left == len(tops[0] - tops[-1]) == len(tops[-1] - tops[0])
    assert found.num_returned == sum(n > 0 and (i in tops[0]) == (i in tops[-1]) for i, n in enumerate(times))
    # Sizes stay, so what items gain others lose; a net change of zero is in no table.
    assert sum(s.net for s in found.leaving) + sum(s.net for s in found.entering) == 0
    for shift in found.leaving:
        assert shift.net == shift.entered - shift.left == shift.top_final - shift.top_base < 0
        assert all(i in tops[0] - tops[-1] and token[i] == shift.token_id for i in shift.examples)
    for shift in found.entering:
        assert shift.net > 0
        assert all(i in tops[-1] - tops[0] and token[i] == shift.token_id for i in shift.examples)


def test_columns_are_read_one_by_one() -> None:
    """Whatever holds all of them at once would read them all before it lets go of one: here each dies with its turn."""
    alive, most = [0], [0]

    def column() -> NDArray[np.float32]:
        made = np.arange(30, dtype=np.float32)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(made, lambda: alive.__setitem__(0, alive[0] - 1))
        return made

    drift([str(i) for i in range(9)], [column] * 9, np.zeros(30, np.int32), np.zeros(30, np.int32), 0.2, NONE)
    assert most[0] <= 3


def test_what_cannot_be_followed() -> None:
    with pytest.raises(DriftError, match="two checkpoints or more, got 1"):
        follow([[1.0, 2.0]], 0.5)
    with pytest.raises(DriftError, match="'step 1' has 3 entropies for 2 tokens"):
        drift(
            ["step 0", "step 1"],
            [lambda: np.zeros(2, np.float32), lambda: np.zeros(3, np.float32)],
            np.zeros(2, np.int32),
            np.zeros(2, np.int32),
            0.5,
            NONE,
        )
