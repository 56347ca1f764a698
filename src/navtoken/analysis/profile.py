"""Entropy along the response, and by its outcome: means with standard errors over responses.

Tokens of one response are not independent, so a mean over tokens is taken as the ratio of two sums over responses, and its standard
error is that of a ratio (responses are the clusters). Only sums are kept, so memory does not grow.

Shapes: R responses of a batch, N their tokens, B bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.columns import TokenBatch

__all__ = ["OUTCOMES", "ClusteredMeans", "MeanByBin", "OutcomeProfile", "Profile", "outcome_of"]

OUTCOMES = ("right", "wrong", "unjudged")
"""What a verifier said of a response, in the order of `outcome_of`."""
NUM_PARTS = 20
"""Equal parts of a response."""
POSITION_EDGES = (*range(9), *(round(2 ** (3 + step / 2)) for step in range(1, 37)))
"""Token positions: one by one up to 8, then bins that grow by the square root of 2, up to two million."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MeanByBin:
    """Means of tokens in bins."""

    edges: tuple[float, ...]
    """One more than there are bins."""
    num_tokens: tuple[int, ...]
    mean: tuple[float, ...]
    """NaN where there is no token."""
    error: tuple[float, ...]
    """Standard error over responses; NaN for fewer than two of them."""


@dataclass(frozen=True)
class OutcomeProfile:
    """The entropies of responses with one outcome."""

    num_responses: int
    """Responses with a scored token."""
    num_tokens: int
    mean: float
    """Nats, over tokens."""
    error: float
    """Its standard error over responses."""
    by_part: MeanByBin
    """Along the response, in equal parts of it: edges from 0 to 1."""
    by_position: MeanByBin
    """By token position, counted from 0."""


class ClusteredMeans:
    """Means by bin, fed with the sums of single responses."""

    def __init__(self, num_bins: int) -> None:
        # Over responses: tokens n, sums s, n n, n s, s s, and how many responses have a token there.
        self._sums_6B = np.zeros((6, num_bins))

    def add(self, num_RB: Floats, sum_RB: Floats) -> None:
        """Take responses: tokens and sums of their values, by bin."""
        terms = (num_RB, sum_RB, num_RB * num_RB, num_RB * sum_RB, sum_RB * sum_RB, num_RB > 0)
        self._sums_6B += np.stack([term.sum(0) for term in terms])

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        return self._sums_6B[0].astype(np.int64)

    @property
    def num_responses(self) -> NDArray[np.int64]:
        return self._sums_6B[5].astype(np.int64)

    @property
    def mean(self) -> Floats:
        """(B,) NaN where there is no token."""
        n, s = self._sums_6B[:2]
        return np.divide(s, n, out=np.full(len(n), math.nan), where=n > 0)

    @property
    def error(self) -> Floats:
        """(B,) standard errors of the means; NaN for fewer than two responses."""
        n, _, nn, ns, ss, count = self._sums_6B
        mean = self.mean
        spread = np.sqrt(np.maximum(ss - 2 * mean * ns + mean * mean * nn, 0.0))
        several = count > 1
        factor = np.sqrt(count / np.maximum(count - 1, 1))
        return np.divide(factor * spread, n, out=np.full(len(n), math.nan), where=several)

    def table(self, edges: Sequence[float]) -> MeanByBin:
        return MeanByBin(
            tuple(edges),
            tuple(self.num_tokens.tolist()),
            tuple(self.mean.tolist()),
            tuple(self.error.tolist()),
        )


class Profile:
    """Sums of one column by outcome, part of the response and position."""

    def __init__(self) -> None:
        self._whole = {outcome: ClusteredMeans(1) for outcome in OUTCOMES}
        self._parts = {outcome: ClusteredMeans(NUM_PARTS) for outcome in OUTCOMES}
        self._positions = {outcome: ClusteredMeans(len(POSITION_EDGES) - 1) for outcome in OUTCOMES}

    def add(
        self, batch: TokenBatch, values_N: NDArray[np.floating], known_N: NDArray[np.bool_] | None = None
    ) -> None:
        """Take a batch with its field `correct`; `known_N` is False where a value was not computed, None where all were."""
        summed = _Running.of(values_N, known_N)
        parts = summed.between(_part_bounds(batch))
        positions = summed.between(_position_bounds(batch))
        outcome_R = outcome_of(batch)
        for number, outcome in enumerate(OUTCOMES):
            rows = outcome_R == number
            if rows.any():
                self._parts[outcome].add(*(sums[rows] for sums in parts))
                self._positions[outcome].add(*(sums[rows] for sums in positions))
                self._whole[outcome].add(*(sums[rows].sum(1, keepdims=True) for sums in parts))

    def outcomes(self) -> dict[str, OutcomeProfile]:
        """By outcome, those with a scored token."""
        part_edges = [index / NUM_PARTS for index in range(NUM_PARTS + 1)]
        return {
            outcome: OutcomeProfile(
                num_responses=int(whole.num_responses[0]),
                num_tokens=int(whole.num_tokens[0]),
                mean=float(whole.mean[0]),
                error=float(whole.error[0]),
                by_part=self._parts[outcome].table(part_edges),
                by_position=_cut(self._positions[outcome].table(POSITION_EDGES)),
            )
            for outcome, whole in self._whole.items()
            if whole.num_tokens[0]
        }


@dataclass(frozen=True)
class _Running:
    """Running sums over a batch's tokens: the sum of any stretch is one subtraction, so bins cost nothing per token."""

    sums: Floats
    """[N + 1] of the values."""
    counts: NDArray[np.int64] | None
    """[N + 1] of the values there are; None where there are all."""

    @classmethod
    def of(cls, values_N: NDArray[np.floating], known_N: NDArray[np.bool_] | None) -> "_Running":
        sums, counts = np.zeros(len(values_N) + 1), None
        if known_N is not None:
            values_N = np.where(known_N, values_N, 0)
            counts = np.concatenate([[0], np.cumsum(known_N, dtype=np.int64)])
        np.cumsum(values_N, dtype=np.float64, out=sums[1:])
        return cls(sums, counts)

    def between(self, bounds_RB: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """(R, B + 1) bounds of neighbouring stretches -> tokens and sums of each, (R, B)."""
        ends = bounds_RB if self.counts is None else self.counts[bounds_RB]
        return np.diff(ends).astype(np.float64), np.diff(self.sums[bounds_RB])


def _part_bounds(batch: TokenBatch) -> NDArray[np.int64]:
    """Where each part of each response begins: token p of n is in part floor(p NUM_PARTS / n)."""
    parts = np.arange(NUM_PARTS + 1)
    return batch.starts[:, None] - (-parts * batch.lengths[:, None] // NUM_PARTS)


def _position_bounds(batch: TokenBatch) -> NDArray[np.int64]:
    return batch.starts[:, None] + np.minimum(np.array(POSITION_EDGES), batch.lengths[:, None])


def outcome_of(batch: TokenBatch) -> NDArray[np.int64]:
    """(R,) index into `OUTCOMES` of each response."""
    return np.array([2 if correct is None else 0 if correct else 1 for correct in batch["correct"]], np.int64)


def _cut(table: MeanByBin) -> MeanByBin:
    """The bins up to the last one with tokens."""
    last = max(index for index, count in enumerate(table.num_tokens) if count) + 1
    return MeanByBin(table.edges[: last + 1], table.num_tokens[:last], table.mean[:last], table.error[:last])
