"""The k-th smallest of any number of floats, exactly, in a few counting passes.

`torch.quantile` refuses more than 2^24 elements, and sorting a pool of chunks means joining and copying it.
"""

import numpy as np
import torch
from torch import Tensor

_DIGIT_BITS = 16


def order_statistics(chunks: list[Tensor], ranks: set[int]) -> dict[int, float]:
    """The elements of the given ranks (0 the smallest), by radix selection.

    `chunks` are flat, all float32 or all float64, without NaN. Each pass counts one 16-bit digit of the elements'
    sort keys that begin with an already known prefix: two passes for float32, four for float64, and no sorted or
    joined copy of the pool.
    """
    bits = 64 if chunks[0].dtype == torch.float64 else 32
    # rank -> (known leading digits of its key, its rank among the elements that share them)
    found = {rank: (0, rank) for rank in ranks}
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        below = _cumulative_counts(chunks, {prefix for prefix, _ in found.values()}, shift, bits)
        for rank, (prefix, within) in found.items():
            digit = int(torch.searchsorted(below[prefix], within, right=True))
            before = int(below[prefix][digit - 1]) if digit else 0
            found[rank] = ((prefix << _DIGIT_BITS) | digit, within - before)
    return {rank: _value_of_key(key, bits) for rank, (key, _) in found.items()}


def _cumulative_counts(chunks: list[Tensor], prefixes: set[int], shift: int, bits: int) -> dict[int, Tensor]:
    """For each prefix: how many elements that begin with it have a digit at `shift` up to each of its values."""
    counts = {prefix: torch.zeros(2**_DIGIT_BITS, dtype=torch.int64) for prefix in prefixes}
    known_bits = bits - shift - _DIGIT_BITS
    for chunk in chunks:
        leading = _sort_keys(chunk) >> shift
        for prefix, total in counts.items():
            if known_bits:
                same = leading[(leading >> _DIGIT_BITS) == _signed(prefix, known_bits)]
                digits = same & (2**_DIGIT_BITS - 1)
            else:
                digits = leading + 2 ** (_DIGIT_BITS - 1)
            total += torch.bincount(digits, minlength=2**_DIGIT_BITS).cpu()
    return {prefix: total.cumsum(0) for prefix, total in counts.items()}


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
