"""How often something befalls tokens that are rare in the responses, and how often frequent ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.ranking import Interval, Resampling, means_by_bin


@dataclass(frozen=True)
class RarityBin:
    """Vocabulary items that stand about equally often in the responses."""

    at_least: int
    """Times that an item of the bin stands there; fewer than twice as often at most."""
    num_items: int
    num_tokens: int
    rate: Interval
    """Share of their positions that are members."""


def rarity_bins(
    token_N: NDArray[Any],
    member_N: NDArray[Any],
    cluster_N: NDArray[Any],
    resampling: Resampling,
    counted_N: NDArray[Any] | None = None,
) -> list[RarityBin]:
    """Rate of members by how often an item stands in the responses, in bins of a factor of two, the rarest first.

    `counted_N` are the positions to which the rate belongs; items are counted over all. Arrays (N,).
    """
    counted_N = np.ones(len(token_N), dtype=bool) if counted_N is None else counted_N
    if not counted_N.any():
        return []
    count_V = np.bincount(token_N)
    # frexp is exact where log2 of a power of two may not be.
    octave_V = np.where(count_V > 0, np.frexp(count_V)[1] - 1, -1)
    octave_N = octave_V[token_N[counted_N]]
    used = np.unique(octave_N)
    bin_N = np.searchsorted(used, octave_N)
    rates = means_by_bin(member_N[counted_N], bin_N, cluster_N[counted_N], len(used), resampling)
    return [
        RarityBin(
            at_least=2 ** int(octave),
            num_items=int((octave_V == octave).sum()),
            num_tokens=int((octave_N == octave).sum()),
            rate=rate,
        )
        for octave, rate in zip(used, rates, strict=True)
    ]
