"""Attention over blocks against the slow, obvious version, on any tables: scattered, shared, with windows and soft-caps."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from navtoken.engine import packing
from navtoken.engine.attention import attend_gathered
from navtoken.engine.block_attention import attend_blocks
from navtoken.engine.kv_cache import KVCache
from navtoken.engine.packing import Feed, Packed

HEAD_SIZE, NUM_BLOCKS = 6, 60
CPU = torch.device("cpu")

feeds = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=6)
"""Tokens in the cache and new ones, of each row."""
kernel_options = st.fixed_dictionaries(
    {
        "scale": st.sampled_from([0.3, 1.7]),
        "window": st.sampled_from([None, None, 1, 3, 9, 40]),
        "softcap": st.sampled_from([None, None, 2.5]),
    }
)


def filled_cache(kv_heads: int, block_size: int, heads_first: bool, seed: int) -> KVCache:
    """A cache with something in every block, whoever's it is."""
    cache = KVCache(NUM_BLOCKS, block_size, CPU, heads_first)
    generator = torch.Generator().manual_seed(seed)
    shape = (kv_heads, block_size) if heads_first else (block_size, kv_heads)
    for store in (cache.keys, cache.values):
        store[0] = 2 * torch.randn(NUM_BLOCKS, *shape, HEAD_SIZE, generator=generator, dtype=torch.float64)
    return cache


def packed_of(cache: KVCache, tables: list[list[int]], lengths: list[tuple[int, int]]) -> Packed:
    rows = [Feed(table, cached, [7] * new) for table, (cached, new) in zip(tables, lengths, strict=True)]
    return Packed.of(rows, cache, CPU)


def queries_of(lengths: list[tuple[int, int]], heads: int, seed: int) -> Tensor:
    num = sum(new for _, new in lengths)
    return torch.randn(
        num, heads, HEAD_SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def random_tables(lengths: list[tuple[int, int]], block_size: int, data: st.DataObject) -> list[list[int]]:
    """Blocks in any order; some rows begin with the blocks of another, as samples of one prompt do."""
    order = iter(data.draw(st.permutations(range(NUM_BLOCKS))))
    tables: list[list[int]] = []
    for cached, new in lengths:
        shared: list[int] = []
        if tables and data.draw(st.booleans()):
            full = cached // block_size
            shared = data.draw(st.sampled_from(tables))[:full]
        needed = -(-(cached + new) // block_size) - len(shared)
        spare = data.draw(st.integers(0, 1))
        tables.append([*shared, *(next(order, 0) for _ in range(needed + spare))])
    return tables


@settings(max_examples=150, deadline=None)
@given(feeds, kernel_options, st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]), st.data())
def test_any_tables_attend_as_gathered_keys_do(
    lengths: list[tuple[int, int]], options: dict, heads: tuple[int, int], data: st.DataObject
) -> None:
    kv_heads, groups = heads
    block_size = data.draw(st.sampled_from([4, 8]))
    tables = random_tables(lengths, block_size, data)
    cache = filled_cache(kv_heads, block_size, True, seed=len(lengths))
    query_TQH = queries_of(lengths, kv_heads * groups, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("navtoken.engine.kv_cache.GAP_BYTES", data.draw(st.sampled_from([0, 2000, 1 << 18])))
        # So that some rows are long ones, and attend in parts.
        patch.setattr(packing, "LONG", data.draw(st.sampled_from([0, 5, 64])))
        patch.setattr(
            "navtoken.engine.block_attention.MOST_SCORES", data.draw(st.sampled_from([50, 1 << 22]))
        )
        ours = attend_blocks(query_TQH, 0, packed_of(cache, tables, lengths), **options)
    expected = attend_gathered(query_TQH, 0, packed_of(cache, tables, lengths), **options)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("window", [None, 4])
def test_the_slow_version_is_attention(heads_first: bool, window: int | None) -> None:
    """Against `torch`'s own on each row's keys, which are put into the blocks here."""
    generator = torch.Generator().manual_seed(0)
    cache = filled_cache(2, 4, heads_first, seed=1)
    lengths, tables = [(9, 2), (0, 5), (6, 1)], [[7, 2, 30], [5, 4], [40, 41]]
    query_TQH = queries_of(lengths, 4, seed=2)
    outs, first = [], 0
    for (cached, new), table in zip(lengths, tables, strict=True):
        keys, values = torch.randn(2, cached + new, 2, HEAD_SIZE, generator=generator, dtype=torch.float64)
        feed = Packed.of([Feed(table, 0, [7] * (cached + new))], cache, CPU)
        places = feed.places(2) if heads_first else feed.places_T
        cache.write(0, places, keys, values)
        positions = torch.arange(cached + new)
        seen = positions <= positions[cached:, None]
        if window is not None:
            seen &= positions > positions[cached:, None] - window
        query = query_TQH[first : first + new].transpose(0, 1)[None]
        each = (keys.transpose(0, 1)[None], values.transpose(0, 1)[None])
        out = scaled_dot_product_attention(query, *each, seen, scale=0.4, enable_gqa=True)
        outs.append(out[0].transpose(0, 1))
        first += new
    ours = attend_gathered(query_TQH, 0, packed_of(cache, tables, lengths), 0.4, window, None)
    torch.testing.assert_close(ours, torch.cat(outs), atol=1e-12, rtol=0)


def test_nothing_beyond_a_rows_own_tokens_is_seen() -> None:
    """Not even what is no number: blocks of others, and places of a row's last block that were never written."""
    cache = filled_cache(2, 4, True, seed=4)
    lengths, tables = [(5, 1), (9, 2)], [[3, 1], [8, 9, 12]]
    query_TQH = queries_of(lengths, 4, seed=5)
    before = attend_blocks(query_TQH, 0, packed_of(cache, tables, lengths), 0.5, None, None)
    for store in (cache.keys[0], cache.values[0]):
        store[2] = store[10] = 1e30
        store[1, :, 2:] = store[12, :, 3:] = 1e30
    after = attend_blocks(query_TQH, 0, packed_of(cache, tables, lengths), 0.5, None, None)
    torch.testing.assert_close(after, before)


def test_packed_says_where_everything_is() -> None:
    cache = KVCache(20, 4, CPU)
    rows = [Feed([3, 9], 2, [11, 12, 13], 2), Feed([5], 0, [14], 1), Feed([0, 1, 7], 8, [15, 16], 0)]
    packed = Packed.of(rows, cache, CPU)
    assert packed.token_ids_T.tolist() == [11, 12, 13, 14, 15, 16]
    assert packed.positions_T.tolist() == [2, 3, 4, 0, 8, 9]
    assert packed.places_T.tolist() == [14, 15, 36, 20, 28, 29]
    assert packed.asked_M.tolist() == [1, 2, 3]
    assert packed.lengths == [3, 1, 2]
    assert packed.offsets.tolist() == [0, 3, 4, 6]
    assert packed.used_B.tolist() == [5, 1, 10]
    assert packed.table.tolist() == [[3, 9, 0], [5, 0, 0], [0, 1, 7]]
    assert (packed.max_new, packed.max_used) == (3, 10)


@settings(max_examples=60, deadline=None)
@given(feeds, st.sampled_from([4, 8]), st.data())
def test_what_is_written_is_found_again(lengths: list[tuple[int, int]], block_size: int, data: Any) -> None:
    """Both layouts of the pool, and blocks that are copied."""
    tables = random_tables([(0, cached + new) for cached, new in lengths], block_size, data)
    generator = torch.Generator().manual_seed(1)
    total = sum(map(sum, lengths))
    keys, values = torch.randn(2, total, 2, HEAD_SIZE, generator=generator)
    for heads_first in (True, False):
        cache = KVCache(2 * NUM_BLOCKS, block_size, CPU, heads_first)
        packed = packed_of(cache, tables, [(0, sum(each)) for each in lengths])
        cache.write(0, packed.places(2) if heads_first else packed.places_T, keys, values)
        assert torch.equal(cache.tokens(cache.keys, 0, packed.places_T), keys)
        cache.copy_blocks([(block, block + NUM_BLOCKS) for block in {b for table in tables for b in table}])
        moved = packed.places_T + NUM_BLOCKS * block_size
        assert torch.equal(cache.tokens(cache.values, 0, moved), values)


def test_blocks_are_copied_at_once() -> None:
    """A block may be given up and taken anew in one pass: what is copied is what stood there before."""
    cache = KVCache(4, 2, CPU)
    cache.write(0, torch.arange(8), torch.arange(8.0)[:, None, None], torch.arange(8.0)[:, None, None])
    cache.copy_blocks([(0, 1), (1, 2)])
    assert cache.keys[0].flatten().tolist() == [0, 1, 0, 1, 2, 3, 6, 7]
    cache.copy_blocks([])
