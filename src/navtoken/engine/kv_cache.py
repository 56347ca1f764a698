"""KV storage of one model: a pool of blocks per layer, which block tables share out among rows.

Nothing here knows what is where: a sequence's block table and `cached_len` do. The pool is reserved once and never grows
or moves. On a CPU the operating system backs a page of it with memory when it is first written.

Shapes: C blocks in the pool, L tokens in a block, K key/value heads, H head size, T tokens fed.
"""

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

GAP_BYTES = 1 << 18
"""Reading so much for nothing takes about as long as opening another view."""


class KVCache:
    """Keys and values of all layers by blocks, reserved when a layer first writes.

    On a CPU (C, K, L, H), so that a block's keys of one head are one matrix; on CUDA (C, L, K, H), as its kernels want.
    """

    def __init__(
        self, num_blocks: int, block_size: int, device: torch.device, heads_first: bool | None = None
    ) -> None:
        """`heads_first` None is what the device's kernels want."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.device = device
        self.heads_first = device.type == "cpu" if heads_first is None else heads_first
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    @property
    def scratch(self) -> int:
        """The last block, where graphs let tokens that are nobody's be written; no row is given it."""
        return self.num_blocks - 1

    @property
    def max_gap(self) -> int:
        """How many blocks between two that are wanted may be read with them."""
        keys = next(iter(self.keys.values()))
        return GAP_BYTES // (2 * keys[0].numel() * keys.element_size())

    def write(self, layer: int, places: Tensor, keys_TKH: Tensor, values_TKH: Tensor) -> None:
        """Store new keys and values.

        Places are (T,) block * L + offset where tokens come first, else (T * K,) rows of the pool seen as (C * K * L, H).
        """
        for store, new_TKH in ((self.keys, keys_TKH), (self.values, values_TKH)):
            if layer not in store:
                store[layer] = self._reserve(new_TKH)
            if self.heads_first:
                width = new_TKH.shape[-1]
                store[layer].view(-1, width).index_copy_(0, places, new_TKH.reshape(-1, width))
            else:
                store[layer].flatten(0, 1).index_copy_(0, places, new_TKH)

    def copy_blocks(self, pairs: Seq[tuple[int, int]]) -> None:
        """Copy whole blocks, (from, to)."""
        if not pairs:
            return
        for store in (self.keys, self.values):
            for pool in store.values():
                sources, targets = torch.tensor(pairs, device=pool.device).T
                pool[targets] = pool[sources]

    def tokens(self, store: dict[int, Tensor], layer: int, places_S: Tensor) -> Tensor:
        """Copies of what stands at some places, (S, K, H)."""
        blocks_S, offsets_S = places_S // self.block_size, places_S % self.block_size
        if self.heads_first:
            return store[layer][blocks_S, :, offsets_S]
        return store[layer][blocks_S, offsets_S]

    def _reserve(self, new_TKH: Tensor) -> Tensor:
        _, num_heads, width = new_TKH.shape
        if not self.heads_first:
            size = (self.num_blocks, self.block_size, num_heads, width)
            return torch.zeros(size, dtype=new_TKH.dtype, device=new_TKH.device)
        # Zeros that cost nothing until they are touched: what was never written must still be finite, for a masked
        # value times 0 is 0 only then.
        shape = (self.num_blocks, num_heads, self.block_size, width)
        num_bytes = int(np.prod(shape)) * new_TKH.element_size()
        return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(new_TKH.dtype).view(shape)
