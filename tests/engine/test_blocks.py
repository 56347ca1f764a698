"""The pool of blocks: counted users, lowest first, and tables that grow without writing into what others read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navtoken.engine.blocks import BlockPool, OutOfBlocks, extend_table

SIZE = 4


def test_the_lowest_free_block_is_taken_first() -> None:
    pool = BlockPool(4, SIZE)
    assert [pool.allocate() for _ in range(4)] == [0, 1, 2, 3]
    pool.release([2, 0])
    assert [pool.allocate(), pool.allocate()] == [0, 2]
    with pytest.raises(OutOfBlocks):
        pool.allocate()


def test_a_shared_block_is_free_when_its_last_user_is_gone() -> None:
    pool = BlockPool(3, SIZE)
    block = pool.allocate()
    assert pool.share([block]) == [block]
    assert pool.is_shared(block)
    pool.release([block])
    assert (pool.num_free, pool.num_used, pool.is_shared(block)) == (2, 1, False)
    pool.release([block])
    assert pool.num_free == 3
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([block])
    with pytest.raises(AssertionError, match="in use"):
        pool.share([block])


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert BlockPool(1, SIZE).blocks_for(tokens) == blocks


def test_writing_into_a_shared_block_copies_it_and_only_it() -> None:
    pool = BlockPool(9, SIZE)
    table: list[int] = []
    assert extend_table(pool, table, 0, 10) == []
    other = pool.share(table)
    assert extend_table(pool, table, 10, 14) == [(2, 3)]
    assert table == [0, 1, 3, 4]
    assert other == [0, 1, 2]
    assert extend_table(pool, other, 10, 11) == [], "nobody else names its last block any more"


def test_a_table_for_which_there_is_no_room_stays_as_it_is() -> None:
    """The copy alone would fit; made without the rest and forgotten, it would leave a block that nobody filled."""
    pool = BlockPool(3, SIZE)
    table: list[int] = []
    extend_table(pool, table, 0, 7)
    other = pool.share(table)
    with pytest.raises(OutOfBlocks):
        extend_table(pool, table, 7, 9)
    assert table == other == [0, 1]
    assert pool.users == [2, 2, 0]
    pool.release(other)
    assert extend_table(pool, table, 7, 9) == []


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_use_leaves_every_block_counted(data: st.DataObject) -> None:
    pool = BlockPool(data.draw(st.integers(1, 12)), SIZE)
    tables: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["new", "share", "extend", "release"]))
        if action == "new":
            tables.append([])
        elif tables:
            table = data.draw(st.sampled_from(range(len(tables))))
            if action == "share":
                tables.append(pool.share(tables[table][: data.draw(st.integers(0, len(tables[table])))]))
            elif action == "release":
                pool.release(tables.pop(table))
            else:
                _extend_somewhere(pool, tables, table, data)
        counted = [sum(table.count(block) for table in tables) for block in range(pool.num_blocks)]
        assert counted == pool.users
        assert pool.num_free == counted.count(0)
    for table in tables:
        pool.release(table)
    assert pool.num_free == pool.num_blocks


def _extend_somewhere(pool: BlockPool, tables: list[list[int]], which: int, data: st.DataObject) -> None:
    table = tables[which]
    start = data.draw(st.integers(0, len(table) * SIZE))
    end = start + data.draw(st.integers(1, 9))
    before, users = list(table), list(pool.users)
    try:
        copies = extend_table(pool, table, start, end)
    except OutOfBlocks:
        assert (table, pool.users) == (before, users)
        return
    written = table[start // SIZE : -(-end // SIZE)]
    others = {block for index, other in enumerate(tables) if index != which for block in other}
    assert len(table) == max(len(before), -(-end // SIZE))
    assert not others & set(written), "a block is written that another table names"
    assert table[: start // SIZE] == before[: start // SIZE]
    assert [source for source, _ in copies] == [
        old for old, new in zip(before, table, strict=False) if old != new
    ]
