"""Which tokens come where the model was uncertain: mean entropy per vocabulary item, and examples of the extremes.

The entropy of a token is that of the distribution it was drawn from. Departure from the first paper: its lists take tokens that come
more than 100 times in a million; a smaller corpus gets a smaller bound, said in a note, since the same bound would leave no token
in it.

Shapes: N tokens, V vocabulary items seen so far.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.columns import TokenBatch
from navtoken.trace import TraceError

__all__ = ["MIN_FREQUENCY", "Context", "TokenStat", "TokenTables", "TokenTally", "find_contexts"]

MIN_FREQUENCY = 100
"""Least frequency of a listed token in a corpus of `REFERENCE_TOKENS`: the first paper's."""
REFERENCE_TOKENS = 1_000_000
FEWEST = 20
"""A mean over fewer tokens says little: at T = 1 it may be a handful of slips. Less only where that is one token in a thousand."""
SHARE_LISTED = 4
"""A list takes at most one of so many of the items that are frequent enough."""
LARGEST_ID = 2**24
"""Token ids from here on are no vocabulary's."""


@dataclass(frozen=True)
class Context:
    """One occurrence of a token, as ids."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    entropy: float
    """Nats, at this occurrence."""


@dataclass(frozen=True)
class TokenStat:
    """A vocabulary item over the whole corpus."""

    token_id: int
    count: int
    mean_entropy: float
    """Nats."""
    standard_deviation: float
    """Of the entropy over its occurrences, nats."""
    contexts: tuple[Context, ...] = ()

    @property
    def error(self) -> float:
        """Standard error of the mean in nats, the occurrences taken as independent; NaN for a single one."""
        return self.standard_deviation / math.sqrt(self.count - 1) if self.count > 1 else math.nan


@dataclass(frozen=True)
class TokenTables:
    """The extremes."""

    highest: tuple[TokenStat, ...]
    """Most uncertain first."""
    lowest: tuple[TokenStat, ...]
    """Most certain first; no item is in both lists."""
    min_frequency: int
    """How often a listed token comes at least."""
    num_items: int
    """Different tokens in the corpus."""
    num_frequent: int
    """Those that come often enough to be listed."""
    notes: tuple[str, ...]
    """What was done because the corpus is small."""


class TokenTally:
    """Counts and sums per vocabulary item, fed batch by batch; grows with the vocabulary, not with the corpus."""

    def __init__(self) -> None:
        self._count_V = np.zeros(0, np.int64)
        self._total_V = np.zeros(0)
        self._squares_V = np.zeros(0)

    def add(self, ids_N: NDArray[np.integer], entropy_N: NDArray[np.floating]) -> None:
        """Count tokens with their entropies (nats, none NaN). Raises `TraceError` for ids of no vocabulary."""
        if not ids_N.size:
            return
        low, high = int(ids_N.min()), int(ids_N.max())
        if low < 0 or high >= LARGEST_ID:
            raise TraceError(
                f"token id {low if low < 0 else high} is of no vocabulary; write these traces again"
            )
        self._grow(high + 1)
        size = len(self._count_V)
        values = entropy_N.astype(np.float64)
        self._count_V += np.bincount(ids_N, minlength=size)
        self._total_V += np.bincount(ids_N, values, size)
        self._squares_V += np.bincount(ids_N, values * values, size)

    def tables(self, num: int = 100, min_frequency: int | None = None) -> TokenTables:
        """The `num` items of highest and of lowest mean entropy among those that come `min_frequency` times or more.

        None is `MIN_FREQUENCY` in `REFERENCE_TOKENS`, scaled down to the corpus. Where few items are frequent
        enough each list takes a quarter of them: an extreme is one only against the rest.
        """
        bound, notes = self._bound(min_frequency)
        frequent_V = np.flatnonzero(self._count_V >= bound)
        length = min(num, max(1, len(frequent_V) // SHARE_LISTED), len(frequent_V))
        if length < num:
            notes.append(
                f"{len(frequent_V)} different tokens come {bound} times or more, so each list has {length} of them, not {num}."
            )
        mean = self._total_V[frequent_V] / self._count_V[frequent_V]
        # Of equals, the more frequent first.
        upward = np.lexsort((-self._count_V[frequent_V], mean))
        downward = np.lexsort((-self._count_V[frequent_V], -mean))
        lowest = frequent_V[upward[:length]]
        taken = set(lowest.tolist()) if len(frequent_V) > 1 else set()
        highest = [item for item in frequent_V[downward].tolist() if item not in taken][:length]
        return TokenTables(
            highest=tuple(self._stat(item) for item in highest),
            lowest=tuple(self._stat(int(item)) for item in lowest),
            min_frequency=bound,
            num_items=int((self._count_V > 0).sum()),
            num_frequent=len(frequent_V),
            notes=tuple(notes),
        )

    def _grow(self, size: int) -> None:
        if extra := max(0, size - len(self._count_V)):
            self._count_V = np.pad(self._count_V, (0, extra))
            self._total_V = np.pad(self._total_V, (0, extra))
            self._squares_V = np.pad(self._squares_V, (0, extra))

    def _bound(self, asked: int | None) -> tuple[int, list[str]]:
        if asked is not None:
            return max(1, asked), []
        tokens = int(self._count_V.sum())
        fewest = min(FEWEST, math.ceil(tokens / 1000))
        scaled = min(MIN_FREQUENCY, max(1, fewest, math.ceil(MIN_FREQUENCY * tokens / REFERENCE_TOKENS)))
        if scaled == MIN_FREQUENCY:
            return scaled, []
        note = (
            f"The corpus has {tokens:,} tokens, so tokens are listed that come {scaled} times or more, not {MIN_FREQUENCY} as in a "
            "million."
        )
        if scaled < FEWEST:
            note += " Means over so few are rough: look at their standard errors."
        return scaled, [note]

    def _stat(self, item: int) -> TokenStat:
        count = int(self._count_V[item])
        mean = float(self._total_V[item]) / count
        variance = max(0.0, float(self._squares_V[item]) / count - mean * mean)
        return TokenStat(item, count, mean, math.sqrt(variance))


def find_contexts(
    batches: Iterable[TokenBatch],
    column: str,
    stats: Sequence[TokenStat],
    num: int = 3,
    before: int = 8,
    after: int = 6,
) -> tuple[TokenStat, ...]:
    """`stats` with up to `num` occurrences each, from different responses; reading stops once all are found.

    `batches` have `response_ids` and the entropy `column`.
    """
    found: dict[int, list[Context]] = {stat.token_id: [] for stat in stats}
    lacking = set(found) if num else set()
    for batch in batches if lacking else ():
        _search(batch, column, found, lacking, num, before, after)
        if not lacking:
            break
    return tuple(replace(stat, contexts=tuple(found[stat.token_id])) for stat in stats)


def _search(
    batch: TokenBatch,
    column: str,
    found: dict[int, list[Context]],
    lacking: set[int],
    num: int,
    before: int,
    after: int,
) -> None:
    """Add the occurrences of this batch; `lacking` loses the tokens that have enough."""
    ids, entropy, starts = batch["response_ids"], batch[column], batch.starts
    hits = np.flatnonzero(np.isin(ids, np.fromiter(lacking, ids.dtype)) & ~np.isnan(entropy))
    responses = np.searchsorted(starts, hits, side="right") - 1
    taken: set[tuple[int, int]] = set()
    for at, response in zip(hits.tolist(), responses.tolist(), strict=True):
        token = int(ids[at])
        if token not in lacking or (token, response) in taken:
            continue
        taken.add((token, response))
        start, end = int(starts[response]), int(starts[response] + batch.lengths[response])
        left, right = ids[max(start, at - before) : at], ids[at + 1 : min(end, at + 1 + after)]
        found[token].append(Context(tuple(left.tolist()), tuple(right.tolist()), float(entropy[at])))
        if len(found[token]) == num:
            lacking.discard(token)
