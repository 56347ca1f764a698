"""Exact quantiles of a pool that is read again rather than kept, for several groups of it at once.

Departure from what is usual for large corpora (sketches such as t-digest): the percentile that cuts forking tokens off is a result
of the first paper, so it is exact here. It costs a second reading of one column.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from navtoken.order_statistics import RankSearch

__all__ = ["GroupQuantiles", "exact_percentile"]

Grouped = Iterable[tuple[str, NDArray[np.float32]]]
"""Chunks of the pool, each with the group that it belongs to; a chunk of two groups comes twice."""


class GroupQuantiles:
    """Feed the first pass to `add`; `finish` makes the others. Chunks are flat float32 without NaN."""

    def __init__(self) -> None:
        self._searches: dict[str, RankSearch] = {}

    def add(self, group: str, values: NDArray[np.float32]) -> None:
        # torch warns of arrays that it may not write to, and Arrow's buffers are such.
        chunk = torch.from_numpy(np.require(values, np.float32, ["C", "W"]))
        with _one_thread():
            self._searches.setdefault(group, RankSearch()).add(chunk)

    def finish(self, again: Callable[[], Grouped], qs: Sequence[float]) -> dict[str, list[float]]:
        """The quantiles of each group that is not empty, interpolated between neighbours as numpy does by default.

        `again` starts the same pool anew; it is called once.
        """
        self._searches = {group: search for group, search in self._searches.items() if search.size}
        for search in self._searches.values():
            search.ask({rank for q in qs for rank in _neighbours(search.size, q)[:2]})
            search.narrow()
        while not all(search.finished for search in self._searches.values()):
            for group, values in again():
                if group in self._searches:
                    self.add(group, values)
            for search in self._searches.values():
                search.narrow()
        return {group: _interpolated(search, qs) for group, search in self._searches.items()}


def exact_percentile(chunks: Callable[[], Iterable[NDArray[np.float32]]], percent: float) -> float:
    """One percentile of a pool that `chunks()` reads anew. Raises `ValueError` where it is empty."""
    quantiles = GroupQuantiles()
    for values in chunks():
        quantiles.add("", values)
    found = quantiles.finish(lambda: (("", values) for values in chunks()), [percent / 100])
    if not found:
        raise ValueError("the pool is empty; give it at least one element")
    return found[""][0]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Chunks are so small that torch's threads gain little on idle cores, and wait for each other, ten times as long, on busy ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _neighbours(size: int, q: float) -> tuple[int, int, float]:
    """Ranks on both sides of a quantile, and how far it lies from the lower to the upper one."""
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"quantile {q} is not in 0..1")
    at = q * (size - 1)
    low = min(math.floor(at), size - 1)
    return low, min(low + 1, size - 1), at - low


def _interpolated(search: RankSearch, qs: Sequence[float]) -> list[float]:
    values = search.values()
    places = [_neighbours(search.size, q) for q in qs]
    return [values[low] + (values[high] - values[low]) * part for low, high, part in places]
