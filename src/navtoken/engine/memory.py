"""Who holds which blocks of both models' KV caches: rows, and prefixes that several rows share.

Samples of one prompt and forks share a `Prefix`: the first row that computes it for a model donates its blocks, the others
take them instead of computing. A row may begin with a part of it only, and forks off where that part ends. Plain bookkeeping;
what must be copied is returned, and the runner copies it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from navtoken.engine.blocks import BlockPool, extend_table
from navtoken.engine.options import OptionError
from navtoken.engine.sequence import Sequence
from navtoken.policies.base import Writer


@dataclass(eq=False)
class Prefix:
    """First tokens that several rows have in common."""

    length: int
    """Tokens in common."""
    token_ids: list[int] = field(default_factory=list)
    """Which those are; where nobody says, what the first row brings."""
    tables: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    """Per model, blocks that hold them."""
    cached_len: list[int] = field(default_factory=lambda: [0, 0])
    """Per model, how many of them the blocks hold."""
    num_users: int = 0
    """Rows that may still take it, and callers that hold it."""


class Memory:
    """The blocks of both models."""

    def __init__(self, pools: tuple[BlockPool, BlockPool]) -> None:
        self.pools = pools
        self.prefixes: list[Prefix] = []

    @property
    def capacity(self) -> int:
        """Tokens of the longest row that fits."""
        return min(pool.num_blocks * pool.block_size for pool in self.pools)

    def join(self, row: Sequence, prefix: Prefix, length: int | None = None) -> None:
        """Let a row take, and donate to, the first `length` tokens of a prefix; None is all of it.

        Raises `OptionError` where it does not begin with them.
        """
        length = prefix.length if length is None else length
        if not 1 <= length <= prefix.length or (length < prefix.length and not prefix.token_ids):
            raise OptionError(
                f"prefix_len is {length}, of a prefix of {prefix.length} tokens; give 1 to {prefix.length}, and say the "
                "prefix's token_ids where a request has but a part of them"
            )
        tokens = row.token_ids[:length]
        if len(tokens) < length or tokens != (prefix.token_ids[:length] or tokens):
            raise OptionError(
                f"the prompt does not begin with the {length} tokens of its prefix; give each prompt its own Prefix"
            )
        prefix.token_ids = prefix.token_ids or tokens
        self.hold(prefix)
        row.prefix, row.prefix_len = prefix, length

    def hold(self, prefix: Prefix) -> None:
        """Keep what a prefix holds, and will hold, whether rows use it or not."""
        if prefix not in self.prefixes:
            self.prefixes.append(prefix)
        prefix.num_users += 1

    def let_go(self, prefix: Prefix) -> None:
        """Undo `hold`; what nobody holds is freed."""
        prefix.num_users -= 1
        if not prefix.num_users:
            self._empty(prefix)
            self.prefixes.remove(prefix)

    def snapshot(self, row: Sequence, length: int) -> Prefix:
        """What a row's caches hold of its first `length` tokens, kept whatever becomes of the row."""
        prefix = Prefix(length)
        for model in Writer:
            self._hand_over(prefix, row, model, length)
        return prefix

    def take(self, row: Sequence, model: Writer) -> None:
        """Give a row what its prefix holds, if that is more than its own, but for the tokens that it must feed."""
        prefix = row.prefix
        if prefix is None:
            return
        most = min(row.prefix_len, len(row.token_ids) - 1 - row.num_provisional)
        num_tokens = min(prefix.cached_len[model], most)
        if num_tokens <= row.cached_len[model]:
            return
        pool = self.pools[model]
        shared = pool.share(prefix.tables[model][: pool.blocks_for(num_tokens)])
        pool.release(row.tables[model])
        row.tables[model][:] = shared
        row.cached_len[model] = num_tokens

    def donate(self, row: Sequence, model: Writer) -> None:
        """Let a row's prefix hold what the row has computed of it."""
        if row.prefix is not None and row.prefix.cached_len[model] < row.prefix_len:
            self._hand_over(row.prefix, row, model, row.prefix_len)

    def lacks_prefix(self, row: Sequence, model: Writer) -> bool:
        """Would extending this row compute what of its prefix another row could share?"""
        prefix = row.prefix
        if prefix is None:
            return False
        return max(row.cached_len[model], prefix.cached_len[model]) < row.prefix_len

    def make_room(self, row: Sequence, model: Writer, end: int) -> list[tuple[int, int]]:
        """Blocks for a row's tokens up to `end`; returns blocks to copy first. Raises `OutOfBlocks`."""
        return extend_table(self.pools[model], row.tables[model], row.cached_len[model], end)

    def release(self, row: Sequence) -> None:
        """Take a row's blocks; its prefix stays."""
        for model in Writer:
            self.pools[model].release(row.tables[model])
            row.tables[model].clear()
            row.cached_len[model] = 0

    def leave(self, row: Sequence) -> None:
        """A row has ended: take its blocks, and its prefix's with the last user."""
        self.release(row)
        prefix, row.prefix = row.prefix, None
        if prefix is not None:
            self.let_go(prefix)

    def forget_prefixes(self) -> bool:
        """Empty all prefixes, to be computed again; returns whether there was anything to free."""
        held = [prefix for prefix in self.prefixes if any(prefix.cached_len)]
        for prefix in held:
            self._empty(prefix)
        return bool(held)

    def check(self, rows: Iterable[Sequence]) -> None:
        """Assert that every block is named exactly as often as it is counted."""
        holders: list[Sequence | Prefix] = [*rows, *self.prefixes]
        for model, pool in zip(Writer, self.pools, strict=True):
            counted = [0] * pool.num_blocks
            for holder in holders:
                assert len(holder.tables[model]) >= pool.blocks_for(holder.cached_len[model])
                for block in holder.tables[model]:
                    counted[block] += 1
            assert counted == pool.users
            assert pool.num_free == counted.count(0)

    def _hand_over(self, prefix: Prefix, row: Sequence, model: Writer, length: int) -> None:
        """Let a prefix hold what a row has computed of its first `length` tokens."""
        num_tokens = min(row.cached_len[model], length)
        if num_tokens <= prefix.cached_len[model]:
            return
        pool = self.pools[model]
        shared = pool.share(row.tables[model][: pool.blocks_for(num_tokens)])
        pool.release(prefix.tables[model])
        prefix.tables[model][:] = shared
        prefix.cached_len[model] = num_tokens

    def _empty(self, prefix: Prefix) -> None:
        for model in Writer:
            self.pools[model].release(prefix.tables[model])
            prefix.tables[model].clear()
        prefix.cached_len = [0, 0]
