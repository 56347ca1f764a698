"""Which vocabulary items are typical of a set: by hand, and for any set."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from navtoken.analysis.items import spread, typical_items


def test_items_are_ranked_by_how_far_they_exceed_their_expectation() -> None:
    # Token 1 is frequent and rarely in the set, token 2 is in it each time, token 3 as often as anything.
    token = np.array([1] * 12 + [2] * 3 + [3] * 5, np.int32)
    member = np.array([True] * 1 + [False] * 11 + [True] * 3 + [True] + [False] * 4)
    (two,) = typical_items(token, member, 10, min_count=1)
    assert (two.token_id, two.count, two.total, two.rate) == (2, 3, 3, 1.0)
    assert two.examples == (12, 13, 14)
    assert typical_items(token, member, 10, min_count=4) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=60), st.integers(1, 4))
def test_examples_are_members_and_counts_are_counts(pairs: list[tuple[int, bool]], num: int) -> None:
    token, member = (np.array(column) for column in zip(*pairs, strict=True))
    items = typical_items(token.astype(np.int32), member, num, min_count=1)
    assert len(items) <= num
    for item in items:
        assert item.count == sum(t == item.token_id and m for t, m in pairs)
        assert item.total == sum(t == item.token_id for t, m in pairs)
        assert item.rate > member.mean()
        assert all(member[i] and token[i] == item.token_id for i in item.examples)
        assert len(set(item.examples)) == len(item.examples) == min(3, item.count)


def test_examples_are_spread_from_first_to_last() -> None:
    assert spread(np.arange(100), 3) == (0, 50, 99)
    assert spread(np.array([7, 9]), 3) == (7, 9)
