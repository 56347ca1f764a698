"""KV storage of one model: one slot per row, so that rows join and leave at any time.

Slots are rows of one tensor per layer. Nothing here knows what is in a slot: a sequence's `cached_len` says how much
of it is valid, and stale entries behind that are masked and overwritten. Growing doubles, so each entry is copied at
most a few times in its life and never by a decode step.

Shapes: R slots, K key/value heads, C capacity in tokens, H head size, T tokens fed.
"""

import torch
from torch import Tensor

MIN_CAPACITY = 64
"""Tokens per slot to start with."""


class KVCache:
    """Keys and values of all layers, `(R, K, C, H)` each, made when a layer first writes."""

    def __init__(self) -> None:
        self.num_slots = 0
        self.capacity = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def reserve(self, num_slots: int, num_tokens: int) -> None:
        """Make room for slots 0..num_slots-1 with `num_tokens` tokens each."""
        if num_slots <= self.num_slots and num_tokens <= self.capacity:
            return
        self.num_slots = _grown(self.num_slots, num_slots, 1)
        self.capacity = _grown(self.capacity, num_tokens, MIN_CAPACITY)
        for store in (self.keys, self.values):
            for layer, old_RKCH in store.items():
                store[layer] = self._resized(old_RKCH)

    def write(
        self, layer: int, slots_T: Tensor, positions_T: Tensor, keys_TKH: Tensor, values_TKH: Tensor
    ) -> None:
        """Store new keys and values at (slot, position)."""
        for store, new_TKH in ((self.keys, keys_TKH), (self.values, values_TKH)):
            if layer not in store:
                _, num_heads, head_size = new_TKH.shape
                store[layer] = new_TKH.new_zeros(self.num_slots, num_heads, self.capacity, head_size)
            store[layer][slots_T, :, positions_T] = new_TKH

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy a slot's first tokens into another slot."""
        self.reserve(max(source, target) + 1, num_tokens)
        for store in (self.keys, self.values):
            for tensor_RKCH in store.values():
                tensor_RKCH[target, :, :num_tokens] = tensor_RKCH[source, :, :num_tokens]

    def _resized(self, old_RKCH: Tensor) -> Tensor:
        slots, num_heads, capacity, head_size = old_RKCH.shape
        new_RKCH = old_RKCH.new_zeros(self.num_slots, num_heads, self.capacity, head_size)
        new_RKCH[:slots, :, :capacity] = old_RKCH
        return new_RKCH


def _grown(current: int, needed: int, least: int) -> int:
    size = max(current, least)
    while size < needed:
        size *= 2
    return size


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, -inf elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)
