"""Which blocks of a model's KV cache hold which tokens of which row: plain bookkeeping, no tensors.

A row's tokens lie in blocks of `block_size` tokens; its table lists them in order. Blocks are counted by how many tables
name them, so that samples of one prompt share its blocks; whoever writes into a shared block first gets a copy.

The lowest free block is taken first, so that what is in use stays together: attention on a CPU reads neighbouring
blocks as one view, and memory is touched only as far as it is needed.
"""

import heapq
from collections.abc import Sequence as Seq


class OutOfBlocks(Exception):
    """No block is free; the scheduler puts a row back."""


class BlockPool:
    """Blocks of one model's cache, with how often each is used."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.users = [0] * num_blocks
        self._free = list(range(num_blocks))

    @property
    def num_blocks(self) -> int:
        return len(self.users)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks so many tokens take."""
        return -(-num_tokens // self.block_size)

    def allocate(self) -> int:
        """The lowest free block. Raises `OutOfBlocks`."""
        if not self._free:
            raise OutOfBlocks
        block = heapq.heappop(self._free)
        self.users[block] = 1
        return block

    def share(self, blocks: Seq[int]) -> list[int]:
        """One more table names these blocks."""
        for block in blocks:
            assert self.users[block] > 0, "only blocks in use can be shared"
            self.users[block] += 1
        return list(blocks)

    def release(self, blocks: Seq[int]) -> None:
        """One table fewer names these blocks; those that nobody names are free."""
        for block in blocks:
            assert self.users[block] > 0, "a block is released twice"
            self.users[block] -= 1
            if not self.users[block]:
                heapq.heappush(self._free, block)

    def is_shared(self, block: int) -> bool:
        return self.users[block] > 1


def extend_table(pool: BlockPool, table: list[int], start: int, end: int) -> list[tuple[int, int]]:
    """Make a row's table fit for writing tokens [start, end); returns the blocks to copy, as (from, to).

    Raises `OutOfBlocks` before anything is changed: half done, its copies would be forgotten.
    """
    written = range(start // pool.block_size, pool.blocks_for(end))
    shared = [index for index in written if index < len(table) and pool.is_shared(table[index])]
    if pool.num_free < len(shared) + max(0, written.stop - len(table)):
        raise OutOfBlocks
    copies = []
    for index in shared:
        copies.append((table[index], pool.allocate()))
        pool.release([table[index]])
        table[index] = copies[-1][1]
    while len(table) < written.stop:
        table.append(pool.allocate())
    return copies
