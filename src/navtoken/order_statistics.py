"""The k-th smallest of any number of floats, exactly, in a few counting passes.

`torch.quantile` refuses more than 2^24 elements, and sorting a pool of chunks means joining and copying it. Counting needs a pool
that can be gone through again, not one that is in memory: `RankSearch` leaves the passes to whoever has the chunks.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

__all__ = ["RankSearch", "order_statistics"]

_DIGIT_BITS = 16


class RankSearch:
    """The elements of given ranks, narrowed down by 16 bits of their sort keys with every pass over a pool.

    `add` every chunk, then `narrow`, and again until `finished`: two passes for float32, four for float64. The first one also
    counts, so the ranks need not be known before its end. Memory is 512 KiB for each prefix that is still looked at.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._bits = 64 if dtype == torch.float64 else 32
        self._shift = self._bits - _DIGIT_BITS
        # rank -> (known leading digits of its key, its rank among the elements that share them)
        self._found: dict[int, tuple[int, int]] = {}
        self._counts = {0: _zeros()}
        self._size: int | None = None

    @property
    def size(self) -> int:
        """Elements of the pool, as far as the first pass has come."""
        return int(self._counts[0].sum()) if self._size is None else self._size

    @property
    def finished(self) -> bool:
        return self._shift < 0

    def ask(self, ranks: Iterable[int]) -> None:
        """Say which ranks are wanted (0 the smallest), before the first `narrow`."""
        self._found = {rank: (0, rank) for rank in ranks}

    def add(self, chunk: Tensor) -> None:
        """Count a flat chunk without NaN, of the dtype of the search."""
        leading = _sort_keys(chunk) >> self._shift
        known_bits = self._bits - self._shift - _DIGIT_BITS
        for prefix, total in self._counts.items():
            if known_bits:
                same = leading[(leading >> _DIGIT_BITS) == _signed(prefix, known_bits)]
                digits = same & (2**_DIGIT_BITS - 1)
            else:
                digits = leading + 2 ** (_DIGIT_BITS - 1)
            total += torch.bincount(digits, minlength=2**_DIGIT_BITS).cpu()

    def narrow(self) -> None:
        """A pass is over: every wanted rank's next digit is known."""
        self._size = self.size
        below = {prefix: total.cumsum(0) for prefix, total in self._counts.items()}
        for rank, (prefix, within) in self._found.items():
            digit = int(torch.searchsorted(below[prefix], within, right=True))
            before = int(below[prefix][digit - 1]) if digit else 0
            self._found[rank] = ((prefix << _DIGIT_BITS) | digit, within - before)
        self._shift -= _DIGIT_BITS
        self._counts = {prefix: _zeros() for prefix, _ in self._found.values()}

    def values(self) -> dict[int, float]:
        """The elements of the wanted ranks, once `finished`."""
        return {rank: _value_of_key(key, self._bits) for rank, (key, _) in self._found.items()}


def order_statistics(chunks: Iterable[Tensor], ranks: set[int]) -> dict[int, float]:
    """The elements of the given ranks (0 the smallest), by radix selection.

    `chunks` are flat, all float32 or all float64, without NaN, and can be iterated over again: a list, or anything whose
    `__iter__` starts anew.
    """
    search = RankSearch(next(iter(chunks)).dtype)
    search.ask(ranks)
    while not search.finished:
        for chunk in chunks:
            search.add(chunk)
        search.narrow()
    return search.values()


def _zeros() -> Tensor:
    return torch.zeros(2**_DIGIT_BITS, dtype=torch.int64)


def _sort_keys(values: Tensor) -> Tensor:
    """Signed integers that sort as the floats do, in the floats' width."""
    integer, low_bits = (
        (torch.int64, 2**63 - 1) if values.dtype == torch.float64 else (torch.int32, 2**31 - 1)
    )
    raw = values.view(integer)
    return torch.where(raw < 0, raw ^ low_bits, raw)


def _signed(prefix: int, width: int) -> int:
    """Leading digits counted from the smallest key up -> the same digits of the signed key."""
    return prefix - 2 ** (width - 1)


def _value_of_key(key: int, bits: int) -> float:
    signed = _signed(key, bits)
    raw = signed ^ (2 ** (bits - 1) - 1) if signed < 0 else signed
    floats, integers = (np.float64, np.int64) if bits == 64 else (np.float32, np.int32)
    return float(np.array([raw], dtype=integers).view(floats)[0])
