"""Filling a batch with informative groups: whoever draws, however unlucky, and whatever other ranks need."""

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navtoken.rlvr.groups import (
    LEAST_SHARE,
    DynamicSamplingOptions,
    Filled,
    Group,
    GroupError,
    ProblemStream,
    Rollout,
    fill,
)

WAIT = 2
"""Seconds after which a rank that waits for others is taken for hung."""


class Meeting:
    """`most` of several threads: each waits for the others' numbers, as in a collective."""

    def __init__(self, ranks: int) -> None:
        self.numbers = [0] * ranks
        self.barrier = threading.Barrier(ranks, timeout=WAIT)

    def most(self, rank: int, number: int) -> int:
        self.numbers[rank] = number
        self.barrier.wait()
        largest = max(self.numbers)
        self.barrier.wait()
        return largest


class Rank(NamedTuple):
    """What one rank did."""

    filled: Filled
    draws: list[list[int]]
    """Numbers of the rows of each call of `draw`, counted from 0 in the order in which they were drawn."""
    asked: list[int]
    """How many further rows were wanted, call by call."""


def run_rank(
    rank: int,
    luck: Sequence[bool],
    wanted: int,
    options: DynamicSamplingOptions,
    share: float,
    meeting: Meeting,
) -> Rank:
    """`luck` says which of the groups that this rank draws are informative, over and over."""
    draws: list[list[int]] = []
    asked: list[int] = []

    def more(num: int) -> list[dict[str, Any]]:
        asked.append(num)
        return [{} for _ in range(num)]

    def draw(rows: Sequence[dict[str, Any]]) -> list[Group]:
        start = sum(map(len, draws))
        draws.append(list(range(start, start + len(rows))))
        return [
            Group({"number": number}, [Rollout([number])], [0.0], luck[number % len(luck)])
            for number in draws[-1]
        ]

    found = fill([{}] * wanted, draw, more, lambda number: meeting.most(rank, number), options, share)
    return Rank(found, draws, asked)


def run_ranks(
    lucks: Sequence[Sequence[bool]], wanted: int, options: DynamicSamplingOptions, share: float = 1.0
) -> list[Rank]:
    """All ranks at once; fails where they do not meet equally often."""
    meeting = Meeting(len(lucks))
    done: dict[int, Rank] = {}

    def run(rank: int) -> None:
        try:
            done[rank] = run_rank(rank, lucks[rank], wanted, options, share, meeting)
        except BaseException:
            # The others would wait for this one.
            meeting.barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(lucks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len(lucks), "ranks did not meet equally often"
    return [done[rank] for rank in range(len(lucks))]


def numbers(groups: Sequence[Group]) -> list[int]:
    return [group.row["number"] for group in groups]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=3),
    st.integers(1, 6),
    st.integers(0, 4),
    st.booleans(),
    st.floats(0.0, 1.0),
)
def test_batches_are_full_in_order_and_ranks_draw_alike(
    lucks: list[list[bool]], wanted: int, max_rounds: int, dynamic: bool, share: float
) -> None:
    ranks = run_ranks(lucks, wanted, DynamicSamplingOptions(dynamic, max_rounds), share)
    assert len({tuple(map(len, rank.draws)) for rank in ranks}) == 1, "a collective in drawing would hang"
    assert len({tuple(rank.asked) for rank in ranks}) == 1, "ranks would take others' problems"
    for rank, luck in zip(ranks, lucks, strict=True):
        filled, drawn = rank.filled, list(range(sum(map(len, rank.draws))))
        informative = [number for number in drawn if luck[number % len(luck)]]
        others = [number for number in drawn if not luck[number % len(luck)]]
        assert len(filled.groups) == wanted
        assert numbers(filled.groups) == (informative + others)[:wanted], "first drawn, first taken"
        assert filled.shortage == max(0, wanted - len(informative))
        assert (filled.drawn, filled.informative) == (len(drawn), len(informative))
        assert filled.rounds == len(rank.draws) <= 1 + (max_rounds if dynamic else 0)
        if not dynamic:
            assert filled.drawn == wanted
    short = any(rank.filled.shortage for rank in ranks)
    used_up = ranks[0].filled.rounds == 1 + max_rounds
    if dynamic:
        assert used_up or not short, "rounds are left, and the batch is not full"
    if not short and dynamic and ranks[0].filled.rounds > 1:
        last = len(ranks[0].draws[-1])
        before = [
            sum(luck[number % len(luck)] for number in range(rank.filled.drawn - last))
            for rank, luck in zip(ranks, lucks, strict=True)
        ]
        assert min(before) < wanted, "a round was drawn that no rank needed"


def test_a_rank_that_lacks_nothing_draws_along() -> None:
    lucky, unlucky = run_ranks([[True], [False, False, True]], 4, DynamicSamplingOptions())
    assert lucky.filled.rounds == unlucky.filled.rounds > 1
    assert numbers(lucky.filled.groups) == [0, 1, 2, 3], "what it had before the others' needs stays"
    assert numbers(unlucky.filled.groups) == [2, 5, 8, 11]


def test_a_group_is_not_preferred_for_being_short() -> None:
    """Draws answer in their own order; a batch made of what is ready first would favour short responses."""

    def draw(rows: Sequence[dict[str, Any]]) -> list[Group]:
        return [
            Group({"number": i}, [Rollout([7] * length)], [], True) for i, length in enumerate((9, 1, 5, 2))
        ]

    filled = fill([{}] * 3, draw, lambda num: [{}] * num, lambda number: number, DynamicSamplingOptions())
    assert [len(group.rollouts[0].token_ids) for group in filled.groups] == [9, 1, 5]


def test_rounds_are_sized_by_the_share_that_is_expected_and_a_standard_deviation() -> None:
    (even,) = run_ranks([[True, False]], 8, DynamicSamplingOptions(), share=0.5)
    # 8 of 20 are expected, but for the square root of 8 x 0.5.
    assert list(map(len, even.draws)) == [20] and even.filled.shortage == 0
    (first,) = run_ranks([[True, False]], 8, DynamicSamplingOptions(), share=1.0)
    assert list(map(len, first.draws)) == [8, 11], "4 are missing, and half of them are informative"
    (none,) = run_ranks([[False]], 8, DynamicSamplingOptions(max_rounds=2), share=0.0)
    most = math.ceil((8 + math.sqrt(8 * (1 - LEAST_SHARE))) / LEAST_SHARE)
    assert list(map(len, none.draws)) == [most, most, most], "bounded however bad the luck"
    assert none.filled.shortage == 8


def test_without_dynamic_sampling_what_comes_is_taken() -> None:
    (rank,) = run_ranks([[False, True]], 4, DynamicSamplingOptions(dynamic_sampling=False), share=0.1)
    assert rank.filled[1:] == (1, 4, 2, 2)
    assert rank.asked == [0]


def test_fewer_than_no_rounds_are_refused() -> None:
    with pytest.raises(GroupError, match="max_rounds is -1; give at least 0"):
        DynamicSamplingOptions(max_rounds=-1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 5), st.lists(st.integers(0, 60), max_size=20))
def test_a_stream_goes_through_all_problems_before_it_repeats_one(
    size: int, seed: int, positions: list[int]
) -> None:
    stream = ProblemStream(size, seed)
    turns = [[stream[turn * size + place] for place in range(size)] for turn in range(3)]
    assert all(sorted(turn) == list(range(size)) for turn in turns)
    again = ProblemStream(size, seed)
    flat = [number for turn in turns for number in turn]
    for position in positions:
        if position < len(flat):
            assert again[position] == flat[position], "what was asked before does not matter"


def test_turns_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(ProblemStream(50, seed)[turn * 50 + place] for place in range(50))
        for seed in (0, 1)
        for turn in (0, 1)
    }
    assert len(orders) == 4
