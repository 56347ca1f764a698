"""Which vocabulary items a set of positions is made of, with positions to show as examples.

The most frequent items of a set are mostly the most frequent items there are, so items are ranked by how many more of their
positions are in the set than its share of all positions lets expect.

Shapes: N positions, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.ranking import Mask

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Item:
    """A vocabulary item in a set of positions."""

    token_id: int
    count: int
    """Positions of the set at which it stands."""
    total: int
    """Positions of the pool at which it stands."""
    examples: tuple[int, ...]
    """Some of the set's positions, spread over it."""

    @property
    def rate(self) -> float:
        """Share of its positions that are in the set."""
        return self.count / self.total


def typical_items(
    token_N: Ids, member_N: Mask, num: int, min_count: int, num_examples: int = 3
) -> list[Item]:
    """At most `num` items with at least `min_count` positions, those first that the set has most above their expectation.

    Items that the set has no more often than expected are left out.
    """
    total_V = np.bincount(token_N)
    count_V = np.bincount(token_N[member_N], minlength=len(total_V))
    excess_V = count_V - total_V * member_N.mean()
    ranked = [
        int(i) for i in np.argsort(-excess_V, kind="stable") if excess_V[i] > 0 and total_V[i] >= min_count
    ]
    return [
        Item(
            token_id=i,
            count=int(count_V[i]),
            total=int(total_V[i]),
            examples=spread(np.flatnonzero(member_N & (token_N == i)), num_examples),
        )
        for i in ranked[:num]
    ]


def spread(position_K: NDArray[np.int64], num: int) -> tuple[int, ...]:
    """At most `num` of the positions, from first to last."""
    if len(position_K) <= num:
        return tuple(position_K.tolist())
    picked = np.linspace(0, len(position_K) - 1, num).round().astype(np.int64)
    return tuple(position_K[picked].tolist())
