"""Rows and prefixes share blocks, and every row still reads what it would have written itself."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navtoken.engine import SamplingParams, Sequence
from navtoken.engine.blocks import BlockPool, OutOfBlocks
from navtoken.engine.memory import Memory, Prefix
from navtoken.engine.options import OptionError
from navtoken.engine.sequence import Written
from navtoken.policies import Writer, make_policy

SIZE = 4


def row_of(number: int, token_ids: list[int]) -> Sequence:
    return Sequence(number, token_ids, len(token_ids), SamplingParams(), 99, 0, 0, make_policy("random:0.5"))


class Filled:
    """A memory, and what stands in its blocks: at each place, all tokens of the row up to there."""

    def __init__(self, num_blocks: int) -> None:
        self.memory = Memory((BlockPool(num_blocks, SIZE), BlockPool(num_blocks, SIZE)))
        self.places: list[list[Any]] = [[None] * (num_blocks * SIZE) for _ in Writer]
        self.rows: list[Sequence] = []

    def extend(self, row: Sequence, model: Writer, end: int) -> None:
        """What a pass does. Raises `OutOfBlocks`."""
        copies = self.memory.make_room(row, model, end)
        place = self.places[model]
        for target, content in [(to, place[of * SIZE : (of + 1) * SIZE]) for of, to in copies]:
            place[target * SIZE : (target + 1) * SIZE] = content
        for position in range(row.cached_len[model], end):
            at = row.tables[model][position // SIZE] * SIZE + position % SIZE
            place[at] = tuple(row.token_ids[: position + 1])
        row.cached_len[model] = end
        self.memory.donate(row, model)

    def check(self) -> None:
        """Every block is counted, and holds for each of its readers what that one needs."""
        self.memory.check(self.rows)
        for row in self.rows:
            for model in Writer:
                assert self.held(model, row.tables[model], row.cached_len[model]) == [
                    tuple(row.token_ids[: position + 1]) for position in range(row.cached_len[model])
                ]
                if row.prefix is not None:
                    prefix = row.prefix
                    assert self.held(model, prefix.tables[model], prefix.cached_len[model]) == [
                        tuple(row.token_ids[: position + 1]) for position in range(prefix.cached_len[model])
                    ]

    def held(self, model: Writer, table: list[int], num_tokens: int) -> list[Any]:
        return [self.places[model][table[at // SIZE] * SIZE + at % SIZE] for at in range(num_tokens)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_interleaving_keeps_what_every_row_reads(data: st.DataObject) -> None:
    filled = Filled(data.draw(st.integers(3, 14)))
    memory, rows = filled.memory, filled.rows
    for number in range(data.draw(st.integers(5, 40))):
        action = data.draw(
            st.sampled_from(
                ["add", "fork", "extend", "extend", "commit", "roll back", "end", "put back", "forget"]
            )
        )
        row = data.draw(st.sampled_from(rows)) if rows else None
        model = data.draw(st.sampled_from(list(Writer)))
        if action == "forget":
            memory.forget_prefixes()
        elif action == "add" or row is None:
            _add_samples(filled, number, data)
        elif action == "fork":
            end = data.draw(st.integers(row.prompt_len, len(row.token_ids)))
            fork = row_of(number, [*row.token_ids[:end], *data.draw(st.lists(st.integers(0, 3), max_size=3))])
            memory.join(fork, memory.snapshot(row, end))
            rows.append(fork)
        elif action == "extend":
            memory.take(row, model)
            if (start := row.cached_len[model]) < len(row.token_ids):
                try:
                    filled.extend(row, model, data.draw(st.integers(start + 1, len(row.token_ids))))
                except OutOfBlocks:
                    memory.release(row)
        elif action == "commit":
            row.commit(Written(data.draw(st.integers(0, 3)), Writer.SLM))
        elif action == "roll back":
            row.roll_back(data.draw(st.integers(0, row.num_response)))
            row.feed_last()
        elif action == "put back":
            memory.release(row)
        else:
            memory.leave(row)
            rows.remove(row)
        filled.check()
    for row in rows:
        memory.leave(row)
    assert not memory.prefixes
    assert all(pool.num_used == 0 for pool in memory.pools)


def _add_samples(filled: Filled, number: int, data: st.DataObject) -> None:
    prompt = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=11))
    prefix = Prefix(len(prompt))
    for _ in range(data.draw(st.integers(1, 3))):
        row = row_of(number, list(prompt))
        filled.memory.join(row, prefix)
        filled.rows.append(row)


def sharing_rows(num: int, prompt_len: int, num_blocks: int = 20) -> Filled:
    filled = Filled(num_blocks)
    prefix = Prefix(prompt_len)
    for number in range(num):
        filled.rows.append(row_of(number, list(range(prompt_len))))
        filled.memory.join(filled.rows[-1], prefix)
    return filled


def test_samples_take_what_the_first_has_computed_but_for_the_token_that_they_must_feed() -> None:
    filled = sharing_rows(3, prompt_len=10)
    first, second, _ = filled.rows
    filled.extend(first, Writer.SLM, 10)
    filled.memory.take(second, Writer.SLM)
    assert second.cached_len == [9, 0]
    assert second.tables == (first.tables[0], [])
    assert filled.memory.pools[0].num_used == 3
    assert filled.memory.make_room(second, Writer.SLM, 10) == [(2, 3)], "two rows would write one block"


def test_a_follower_takes_more_when_the_leader_has_gone_on() -> None:
    """Prompts are computed in parts: what was taken of the first part must not stand in the way of the rest."""
    filled = sharing_rows(2, prompt_len=10)
    leader, follower = filled.rows
    for end, taken in ((3, 3), (8, 8), (10, 9)):
        filled.extend(leader, Writer.LLM, end)
        filled.memory.take(follower, Writer.LLM)
        assert follower.cached_len[Writer.LLM] == taken
        filled.check()
    assert not filled.memory.lacks_prefix(follower, Writer.LLM)
    filled.memory.take(follower, Writer.LLM)
    filled.memory.check(filled.rows)


def test_a_prefix_outlives_the_row_that_computed_it() -> None:
    filled = sharing_rows(2, prompt_len=10)
    first, second = filled.rows
    filled.extend(first, Writer.SLM, 10)
    filled.memory.leave(filled.rows.pop(0))
    filled.memory.take(second, Writer.SLM)
    assert second.cached_len[Writer.SLM] == 9
    filled.check()
    filled.memory.leave(filled.rows.pop())
    assert filled.memory.pools[0].num_used == 0


def test_forgotten_prefixes_are_computed_and_shared_again() -> None:
    filled = sharing_rows(2, prompt_len=6)
    first, second = filled.rows
    filled.extend(first, Writer.SLM, 6)
    assert filled.memory.forget_prefixes()
    assert not filled.memory.forget_prefixes()
    assert filled.memory.lacks_prefix(second, Writer.SLM)
    filled.memory.release(first)
    filled.extend(second, Writer.SLM, 6)
    filled.memory.take(first, Writer.SLM)
    assert first.cached_len[Writer.SLM] == 5
    filled.check()


def test_provisional_tokens_are_left_for_the_llm_to_judge() -> None:
    filled = sharing_rows(2, prompt_len=8)
    first, second = filled.rows
    filled.extend(first, Writer.LLM, 8)
    second.num_provisional = 3
    filled.memory.take(second, Writer.LLM)
    assert second.cached_len[Writer.LLM] == 4


def test_a_leak_is_seen() -> None:
    filled = sharing_rows(1, prompt_len=8)
    filled.extend(filled.rows[0], Writer.SLM, 8)
    filled.memory.pools[0].share([filled.rows[0].tables[0][0]])
    with pytest.raises(AssertionError):
        filled.memory.check(filled.rows)


def test_rows_fork_off_anywhere_in_a_prefix() -> None:
    filled = Filled(20)
    text = list(range(11))
    prefix = Prefix(11, text)
    filled.memory.hold(prefix)
    for number, length in enumerate((11, 6, 3)):
        row = row_of(number, [*text[:length], 90 + number])
        filled.memory.join(row, prefix, length)
        filled.rows.append(row)
    first, second, third = filled.rows
    assert filled.memory.lacks_prefix(second, Writer.LLM)
    filled.extend(first, Writer.LLM, 12)
    assert prefix.cached_len == [0, 11]
    for row, length in ((second, 6), (third, 3)):
        assert not filled.memory.lacks_prefix(row, Writer.LLM)
        filled.memory.take(row, Writer.LLM)
        assert row.cached_len == [0, length]
        filled.extend(row, Writer.LLM, length + 1)
        assert filled.held(Writer.LLM, row.tables[Writer.LLM], length + 1) == [
            tuple(row.token_ids[: position + 1]) for position in range(length + 1)
        ]
    for row in filled.rows:
        filled.memory.leave(row)
    # Held: whoever comes next finds it.
    assert filled.memory.prefixes == [prefix]
    assert filled.held(Writer.LLM, prefix.tables[Writer.LLM], 11) == [
        tuple(text[: position + 1]) for position in range(11)
    ]
    filled.memory.let_go(prefix)
    assert all(pool.num_used == 0 for pool in filled.memory.pools)


def test_a_row_that_has_less_of_a_prefix_donates_that_and_one_with_more_the_rest() -> None:
    filled = Filled(20)
    prefix = Prefix(10, list(range(10)))
    short, long = row_of(0, [*range(4), 50]), row_of(1, [*range(10), 51])
    filled.rows += [short, long]
    filled.memory.join(short, prefix, 4)
    filled.memory.join(long, prefix, 10)
    filled.extend(short, Writer.SLM, 5)
    assert prefix.cached_len == [4, 0]
    assert not filled.memory.lacks_prefix(short, Writer.SLM)
    assert filled.memory.lacks_prefix(long, Writer.SLM)
    filled.memory.take(long, Writer.SLM)
    filled.extend(long, Writer.SLM, 11)
    assert prefix.cached_len == [10, 0]
    filled.memory.check(filled.rows)
    assert filled.held(Writer.SLM, long.tables[Writer.SLM], 11) == [
        tuple(long.token_ids[: position + 1]) for position in range(11)
    ]


@pytest.mark.parametrize(
    ("tokens", "length", "known", "message"),
    [
        ([0, 1, 9], 3, True, "does not begin with the 3 tokens"),
        ([0, 1], 3, True, "does not begin with the 3 tokens"),
        ([0, 1, 2], 0, True, "prefix_len is 0, of a prefix of 3"),
        ([0, 1, 2], 4, True, "prefix_len is 4, of a prefix of 3"),
        ([0, 1, 2], 2, False, "say the prefix's token_ids"),
    ],
)
def test_a_row_that_does_not_begin_so_is_refused(
    tokens: list[int], length: int, known: bool, message: str
) -> None:
    memory = Filled(4).memory
    with pytest.raises(OptionError, match=message):
        memory.join(row_of(0, tokens), Prefix(3, [0, 1, 2] if known else []), length)
    assert not memory.prefixes
