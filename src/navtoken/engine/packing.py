"""Packs the new tokens of several rows into one forward, and says where everything is.

A `Feed` is one row's part; `Packed` is the whole as tensors, made once and used by every layer. On CUDA the tensors have a
bucket's shape, filled up with rows that are nobody's, so that one captured graph serves all batches of the bucket.

Shapes: T packed tokens, B rows, R rows of a group, N new tokens of a row, M positions at which logits are asked for,
P most blocks of a row, L tokens in a block, E pairs of a row and one of its blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from navtoken.engine.kv_cache import KVCache

LONG = 64
"""Rows with more new tokens attend by themselves."""


@dataclass(frozen=True)
class Feed:
    """One row's new tokens."""

    table: Sequence[int]
    """The row's blocks, those of the new tokens included."""
    start: int
    """Position of the first new token: what precedes it is in the cache already."""
    token_ids: Sequence[int]
    num_logits: int = 1
    """At so many last positions logits are asked for; 0 where the row is fed in parts and this is not the last."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


class Order(NamedTuple):
    """Pairs of a row and one of its blocks, in the order of blocks.

    Neighbouring blocks are read as one view, whoever's they are; where few blocks are nobody's in between, they are read
    too rather than another view opened.
    """

    owner_E: Tensor
    """Row of each pair; R for blocks that are nobody's."""
    asker_E: Tensor
    """Row whose query each pair takes; any row for blocks that are nobody's."""
    place_E: Tensor
    """Where the pair stands in the padded (R, P); any place for blocks that are nobody's."""
    padded_RP: Tensor
    """The pair at each padded place; any pair where the row has no more blocks."""
    absent_RP1: Tensor
    """Which padded places are such."""
    runs: list[tuple[int, int, int]]
    """Stretches of neighbouring blocks, read as one view: (first pair, first block, how many)."""
    in_place: bool
    """Is the order of pairs that of the padded places?"""


class Pairs(NamedTuple):
    """A group's rows and the blocks that each of them reads: what one batched product works on."""

    order: Order
    hidden: Tensor
    """What each query must not see: (R, 1, N, P * L) from the row's first block on where the order of pairs is that of the
    padded places, else (E, 1, 1, N, L)."""


@dataclass
class Group:
    """Rows that attend together: they have about the same number of new tokens."""

    feeds: list[Feed]
    first: list[int]
    """Where each row's new tokens start among the packed ones."""
    num_new: int
    """N; rows with fewer new tokens repeat their last one."""
    num_tokens: int
    """T: packed tokens of all groups."""
    cache: KVCache
    _pairs: dict[int | None, Pairs] = field(default_factory=dict)

    @cached_property
    def queries_RN(self) -> Tensor:
        """Packed index of each query."""
        rows = zip(self.feeds, self.first, strict=True)
        return torch.tensor(
            [
                [first + min(index, len(feed.token_ids) - 1) for index in range(self.num_new)]
                for feed, first in rows
            ]
        )

    @cached_property
    def real(self) -> Tensor | None:
        """Which of the flattened (R, N) are no repetitions; None where all."""
        if all(len(feed.token_ids) == self.num_new for feed in self.feeds):
            return None
        lengths_R1 = torch.tensor([len(feed.token_ids) for feed in self.feeds])[:, None]
        return (torch.arange(self.num_new) < lengths_R1).flatten().nonzero()[:, 0]

    @cached_property
    def is_everything(self) -> bool:
        """Are the group's queries the packed tokens as they are?"""
        return self.real is None and torch.equal(self.queries_RN.flatten(), torch.arange(self.num_tokens))

    @cached_property
    def targets(self) -> Tensor:
        """Packed index of each real query."""
        flat = self.queries_RN.flatten()
        return flat if self.real is None else flat[self.real]

    def pairs(self, window: int | None) -> Pairs:
        """Rows and blocks, without blocks out of the window of all of a row's queries; made once for all layers."""
        if window not in self._pairs:
            self._pairs[window] = self._make_pairs(window)
        return self._pairs[window]

    def _make_pairs(self, window: int | None) -> Pairs:
        size = self.cache.block_size
        first_block = [
            0 if window is None else max(0, feed.start - window + 1) // size for feed in self.feeds
        ]
        tables = tuple(
            tuple(feed.table[first : -(-feed.end // size)])
            for feed, first in zip(self.feeds, first_block, strict=True)
        )
        order = by_block(tables, self.cache.max_gap, self.cache.num_blocks)
        most = order.padded_RP.shape[1]
        first_R, queries_RN1 = torch.tensor(first_block), self._positions_RN[:, :, None]
        if order.in_place:
            positions_R1S = first_R[:, None, None] * size + torch.arange(most * size)
            return Pairs(order, _hidden(positions_R1S, queries_RN1, window)[:, None])
        blocks_E = first_R[order.asker_E] + order.place_E % most
        positions_E1L = blocks_E[:, None, None] * size + torch.arange(size)
        return Pairs(order, _hidden(positions_E1L, queries_RN1[order.asker_E], window)[:, None, None])

    @cached_property
    def _positions_RN(self) -> Tensor:
        return torch.tensor(
            [[min(feed.start + index, feed.end - 1) for index in range(self.num_new)] for feed in self.feeds]
        )


def _hidden(positions: Tensor, queries: Tensor, window: int | None) -> Tensor:
    """Which positions lie after a query, or before its window."""
    hidden = positions > queries
    if window is not None:
        hidden |= positions <= queries - window
    return hidden


@lru_cache(maxsize=64)
def by_block(tables: tuple[tuple[int, ...], ...], max_gap: int, num_blocks: int) -> Order:
    """Order the pairs of rows and their blocks by block.

    A block that several rows share is read once for each: first all blocks for their first reader, and so on. Long runs are
    rounded up: the products' kernels are made anew for every new shape. Remembered, as few rows keep their blocks for many steps.
    """
    counts = np.array([len(table) for table in tables])
    row, most = np.repeat(np.arange(len(tables)), counts), int(counts.max())
    index = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    block = np.array([block for table in tables for block in table])
    reader = _occurrences(block)
    order = np.lexsort((block, reader))
    row, index, block, reader = row[order], index[order], block[order], reader[order]
    gap = np.diff(block, prepend=block[0] - 1) - 1
    breaks = (np.diff(reader, prepend=reader[0]) != 0) | (gap > max_gap)
    breaks[0] = True
    starts = np.flatnonzero(breaks)
    ends = np.append(starts[1:], len(block))
    spans = block[ends - 1] - block[starts] + 1
    sizes = [
        min(rounded(int(span), exact=8), num_blocks - int(first))
        for span, first in zip(spans, block[starts], strict=True)
    ]
    firsts = np.cumsum(sizes) - sizes
    pair = np.repeat(firsts - block[starts], ends - starts) + block
    owner_E = np.full(sum(sizes), len(tables))
    place_E = np.zeros(sum(sizes), dtype=np.int64)
    owner_E[pair], place_E[pair] = row, row * most + index
    padded_RP = np.zeros((len(tables), most), dtype=np.int64)
    padded_RP[row, index] = pair
    runs = list(zip(firsts.tolist(), block[starts].tolist(), sizes, strict=True))
    return Order(
        owner_E=torch.from_numpy(owner_E),
        asker_E=torch.from_numpy(np.minimum(owner_E, len(tables) - 1)),
        place_E=torch.from_numpy(place_E),
        padded_RP=torch.from_numpy(padded_RP),
        absent_RP1=torch.from_numpy(np.arange(most) >= counts[:, None])[:, :, None],
        runs=runs,
        in_place=np.array_equal(place_E, np.arange(len(tables) * most)) and len(owner_E) == len(pair),
    )


def _occurrences(values: np.ndarray) -> np.ndarray:
    """How often each value stood before, at each of its places."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    counts = np.diff(np.append(first, len(values)))
    occurrences = np.empty(len(values), dtype=np.int64)
    occurrences[order] = np.arange(len(values)) - np.repeat(first, counts)
    return occurrences


def rounded(count: int, exact: int) -> int:
    """Up to `exact` as it is; above, the next of `exact` steps to the next power of 2."""
    if count <= exact:
        return count
    step = max(1, (1 << (count - 1).bit_length()) // (2 * exact))
    return -(-count // step) * step


@dataclass
class Packed:
    """One forward over several rows."""

    cache: KVCache
    feeds: Sequence[Feed]
    token_ids_T: Tensor
    positions_T: Tensor
    places_T: Tensor
    """Where each new token's key and value go in the pool."""
    asked_M: Tensor
    """Packed indices at which logits are asked for, rows one after the other."""
    kernel: Callable[..., Tensor] | None = None
    """Which attention computes it; None chooses by the tensors (`attention.kernel_for`)."""
    _places: dict[int, Tensor] = field(default_factory=dict)
    _elsewhere: dict[torch.device, "Packed"] = field(default_factory=dict)

    @cached_property
    def groups(self) -> list[Group]:
        """Rows by their number of new tokens, rounded up; without long ones."""
        groups: dict[int, Group] = {}
        for feed, first in zip(self.feeds, accumulate([0, *self.lengths]), strict=False):
            if len(feed.token_ids) <= LONG:
                bucket = rounded(len(feed.token_ids), exact=4)
                group = groups.setdefault(bucket, Group([], [], bucket, len(self.token_ids_T), self.cache))
                group.feeds.append(feed)
                group.first.append(first)
        return list(groups.values())

    @cached_property
    def long_rows(self) -> list[tuple[int, int]]:
        """Rows with more than `LONG` new tokens: (which, its first packed index)."""
        starts = accumulate([0, *self.lengths])
        return [
            (index, start)
            for index, (length, start) in enumerate(zip(self.lengths, starts, strict=False))
            if length > LONG
        ]

    def places(self, num_heads: int) -> Tensor:
        """Where each new token's heads go in a pool seen as rows of (C * K * L), (T * K,)."""
        if num_heads not in self._places:
            size = self.cache.block_size
            first_T1 = (self.places_T // size * (num_heads * size) + self.places_T % size)[:, None]
            self._places[num_heads] = (first_T1 + torch.arange(num_heads) * size).flatten()
        return self._places[num_heads]

    @cached_property
    def lengths(self) -> list[int]:
        """New tokens of each row."""
        return [len(feed.token_ids) for feed in self.feeds]

    @cached_property
    def offsets(self) -> Tensor:
        """Where each row's new tokens start among the packed ones, and their end: (B + 1,) int32."""
        return self._ints([0, *accumulate(self.lengths)])

    @cached_property
    def used_B(self) -> Tensor:
        """Length of each row with its new tokens, int32."""
        return self._ints([feed.end for feed in self.feeds])

    @cached_property
    def used_offsets(self) -> Tensor:
        """Where each row's tokens, cached ones included, would start if all rows stood in line, and their end: (B + 1,)."""
        return self._ints([0, *accumulate(feed.end for feed in self.feeds)])

    @cached_property
    def table(self) -> Tensor:
        """Blocks of each row, (B, most blocks) int32."""
        most = max(len(feed.table) for feed in self.feeds)
        return self._ints([[*feed.table, *[0] * (most - len(feed.table))] for feed in self.feeds])

    @cached_property
    def max_new(self) -> int:
        return max(self.lengths)

    @cached_property
    def max_used(self) -> int:
        return max(feed.end for feed in self.feeds)

    def to(self, device: torch.device | int | str, non_blocking: bool = False) -> "Packed":
        """The same on another device: layers of one model may lie on several."""
        target = torch.device(device)
        if target == self.token_ids_T.device:
            return self
        if target not in self._elsewhere:
            names = ("token_ids_T", "positions_T", "places_T", "asked_M")
            moved = {name: getattr(self, name).to(target, non_blocking=non_blocking) for name in names}
            self._elsewhere[target] = replace(self, **moved, _places={}, _elsewhere=self._elsewhere)
            self._elsewhere[self.token_ids_T.device] = self
        return self._elsewhere[target]

    def _ints(self, values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.token_ids_T.device)

    @classmethod
    def of(cls, feeds: Sequence[Feed], cache: KVCache, device: torch.device) -> "Packed":
        size = cache.block_size
        positions = [position for feed in feeds for position in range(feed.start, feed.end)]
        places = [
            feed.table[at // size] * size + at % size for feed in feeds for at in range(feed.start, feed.end)
        ]
        asked: list[int] = []
        end = 0
        for feed in feeds:
            end += len(feed.token_ids)
            asked += range(end - feed.num_logits, end)
        tokens = [token for feed in feeds for token in feed.token_ids]
        tokens_T, positions_T, places_T = torch.tensor([tokens, positions, places], device=device).unbind()
        asked_M = torch.tensor(asked, device=device, dtype=torch.int64)
        return cls(cache, feeds, tokens_T, positions_T, places_T, asked_M)
