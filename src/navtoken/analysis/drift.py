"""How the entropy pattern of a base model lives on in its descendants, on one frozen set of responses.

The 80/20 paper scores the final model's responses with every checkpoint, and gives the overlap of the top positions and the mean
change of entropy by 5 % bin. It leaves out which tokens leave and enter the top fraction, and how many positions ever change
sides; both are here.

Top positions are exactly k = max(1, ceil(rho N)) of each checkpoint, so an overlap is a precision and a recall in one, and what
leaves equals what enters.

Checkpoints are gone through one by one: three columns of N floats are in memory, however many checkpoints there are.

Shapes: N positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.items import Ids, spread
from navtoken.analysis.ranking import (
    Floats,
    Interval,
    Mask,
    Resampling,
    means_by_bin,
    rank_bins,
    ratios,
    top_mask,
)
from navtoken.entropy import exact_quantiles

NUM_BINS = 20
"""Bins of 5 % of the positions, by base entropy."""
PERCENTILES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)
"""Whose trajectories are followed."""


class DriftError(ValueError):
    """Checkpoints that no drift can be told from."""


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint makes of the frozen responses."""

    name: str
    overlap_base: Interval
    """Share of the top positions that this one and the base model have in common: see `shared`."""
    overlap_final: Interval
    """The same with the last checkpoint's."""
    mean_entropy: float
    """Nats."""
    threshold: float
    """Entropy in nats from which a position is at the top."""
    percentiles: list[float]
    """Entropies in nats at `PERCENTILES`."""
    change_by_bin: list[Interval]
    """Mean entropy less the base's, in nats, by 5 % bin of base entropy from the lowest up."""
    size_by_bin: list[Interval]
    """Mean size of that change, its sign left out."""


@dataclass(frozen=True)
class Shift:
    """A vocabulary item between base and last checkpoint."""

    token_id: int
    total: int
    """Positions at which it stands."""
    top_base: int
    """How many of them are at the top for the base model."""
    top_final: int
    left: int
    """At the top for the base, not for the last."""
    entered: int
    examples: tuple[int, ...]
    """Positions that left, or that entered, whatever the table is of."""

    @property
    def net(self) -> int:
        """What its part of the top has gained."""
        return self.top_final - self.top_base


@dataclass(frozen=True)
class Drift:
    """The whole path from base to last checkpoint."""

    num_tokens: int
    fraction: float
    """Share of positions at the top."""
    bin_entropies: list[float]
    """Mean base entropy in nats of each 5 % bin, the lowest first."""
    checkpoints: list[Checkpoint]
    share_ever_changed: Interval
    """Positions that any checkpoint puts on another side than the one before it."""
    changes: dict[int, int]
    """Positions by how often they change sides along the path."""
    num_returned: int
    """Positions that change sides and end where they began."""
    num_left: int
    """At the top for the base, not for the last; as many enter."""
    leaving: list[Shift]
    """Items that lose most of the top, net."""
    entering: list[Shift]
    """Items that gain most of it."""


Column = Callable[[], Floats]
"""Reads the (N,) entropies of one checkpoint."""


def drift(
    names: Sequence[str],
    columns: Sequence[Column],
    token_N: Ids,
    cluster_N: NDArray[np.int32],
    fraction: float,
    resampling: Resampling,
    num_items: int = 25,
    min_count: int = 10,
) -> Drift:
    """Follow the entropies from the first checkpoint (the base) to the last; in the order of descent.

    Item tables list items with at least `min_count` positions.
    """
    if len(names) < 2:
        raise DriftError(
            f"drift needs two checkpoints or more, got {len(names)}; name the base first, the last last"
        )

    def entropies(index: int) -> Floats:
        return _checked(columns[index](), names[index], len(token_N))

    base = _Base.of(entropies(0), cluster_N, fraction, resampling)
    top_final_N = top_mask(entropies(-1), fraction)
    found: list[Checkpoint] = []
    before_N, changes_N = base.top_N, np.zeros(len(token_N), dtype=np.int32)
    for index, name in enumerate(names):
        entropy_N = entropies(index)
        top_N = top_mask(entropy_N, fraction)
        changes_N += top_N != before_N
        before_N = top_N
        found.append(base.against(name, entropy_N, top_N, top_final_N))
    changed_N = changes_N > 0
    leaving, entering = shifts(token_N, base.top_N, top_final_N, num_items, min_count)
    (ever,) = means_by_bin(changed_N, np.zeros_like(base.bin_N), cluster_N, 1, resampling)
    return Drift(
        num_tokens=len(token_N),
        fraction=fraction,
        bin_entropies=base.bin_means(),
        checkpoints=found,
        share_ever_changed=ever,
        changes={times: int(count) for times, count in enumerate(np.bincount(changes_N)) if count},
        num_returned=int((changed_N & (base.top_N == top_final_N)).sum()),
        num_left=int((base.top_N & ~top_final_N).sum()),
        leaving=leaving,
        entering=entering,
    )


@dataclass(frozen=True, eq=False)
class _Base:
    """What every checkpoint is held against."""

    entropy_N: Floats
    top_N: Mask
    bin_N: NDArray[np.int64]
    """By base entropy, 0 the lowest."""
    cluster_N: NDArray[np.int32]
    resampling: Resampling

    @classmethod
    def of(
        cls, entropy_N: Floats, cluster_N: NDArray[np.int32], fraction: float, resampling: Resampling
    ) -> "_Base":
        return cls(
            entropy_N, top_mask(entropy_N, fraction), rank_bins(entropy_N, NUM_BINS), cluster_N, resampling
        )

    def against(self, name: str, entropy_N: Floats, top_N: Mask, top_final_N: Mask) -> Checkpoint:
        change_N = entropy_N.astype(np.float64) - self.entropy_N
        return Checkpoint(
            name=name,
            overlap_base=shared(top_N, self.top_N, self.cluster_N, self.resampling),
            overlap_final=shared(top_N, top_final_N, self.cluster_N, self.resampling),
            mean_entropy=float(entropy_N.mean(dtype=np.float64)),
            threshold=float(entropy_N[top_N].min()),
            percentiles=exact_quantiles(entropy_N, PERCENTILES),
            change_by_bin=self._by_bin(change_N),
            size_by_bin=self._by_bin(np.abs(change_N)),
        )

    def bin_means(self) -> list[float]:
        """Mean entropy of each bin."""
        whole = Resampling(num=0)
        return [
            each.value for each in means_by_bin(self.entropy_N, self.bin_N, self.cluster_N, NUM_BINS, whole)
        ]

    def _by_bin(self, value_N: Floats) -> list[Interval]:
        return means_by_bin(value_N, self.bin_N, self.cluster_N, NUM_BINS, self.resampling)


def shared(
    one_N: Mask, other_N: Mask, cluster_N: NDArray[np.integer[Any]], resampling: Resampling
) -> Interval:
    """Share of equally many top positions that two checkpoints have in common: positions in both / mean size of the two.

    In a resample the two sets are no longer equally large, so that a share of one of them would depend on which; this one
    does not, and neither does its interval.
    """
    num_clusters = int(cluster_N.max()) + 1
    one_C, other_C, both_C = (
        np.bincount(cluster_N, weights=each, minlength=num_clusters).astype(np.float64)[:, None]
        for each in (one_N, other_N, one_N & other_N)
    )
    (found,) = ratios(2 * both_C, one_C + other_C, resampling)
    return found


def shifts(
    token_N: Ids, top_base_N: Mask, top_final_N: Mask, num: int, min_count: int, num_examples: int = 3
) -> tuple[list[Shift], list[Shift]]:
    """Items that lose most of the top, and items that gain most, at most `num` of each; the larger net first."""
    left_N, entered_N = top_base_N & ~top_final_N, top_final_N & ~top_base_N
    total_V = np.bincount(token_N)
    base_V, final_V, left_V, entered_V = (
        np.bincount(token_N[mask], minlength=len(total_V))
        for mask in (top_base_N, top_final_N, left_N, entered_N)
    )

    def shift(token_id: int, moved_N: Mask) -> Shift:
        examples = spread(np.flatnonzero(moved_N & (token_N == token_id)), num_examples)
        total, base, final, left, entered = (
            int(each[token_id]) for each in (total_V, base_V, final_V, left_V, entered_V)
        )
        return Shift(token_id, total, base, final, left, entered, examples)

    net_V = (final_V - base_V) * (total_V >= min_count)
    order = np.argsort(net_V, kind="stable").tolist()
    leaving = [i for i in order if net_V[i] < 0][:num]
    entering = [i for i in reversed(order) if net_V[i] > 0][:num]
    return [shift(i, left_N) for i in leaving], [shift(i, entered_N) for i in entering]


def _checked(entropy_N: Floats, name: str, num_tokens: int) -> Floats:
    if len(entropy_N) != num_tokens:
        raise DriftError(f"'{name}' has {len(entropy_N)} entropies for {num_tokens} tokens; score it again")
    return entropy_N
