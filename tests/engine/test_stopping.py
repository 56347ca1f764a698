"""Where a response ends: end tokens, stop strings across tokens, length, and all of them from `min_tokens` on."""

from typing import Any

import pytest

from fake_engine import EOS, PIECES, FakeTokenizer
from navtoken.engine import SamplingParams, Sequence
from navtoken.engine.stopping import End, end_of
from navtoken.policies import make_policy

TOKEN = {piece: index for index, piece in enumerate(PIECES)}


def ends(pieces: list[bytes], max_len: int = 99, **sampling: Any) -> list[End | None]:
    """Whether the response ends with each of its tokens, were it not ended before."""
    ids = [1, *(TOKEN[piece] for piece in pieces)]
    row = Sequence(0, ids, 1, SamplingParams(**sampling), max_len, 0, 0, make_policy("slm"))
    return [end_of(row, num, frozenset([EOS]), FakeTokenizer()) for num in range(1, len(pieces) + 1)]


def test_an_end_token_ends_unless_ends_are_ignored() -> None:
    assert ends([b"a", b"", b"b"]) == [None, End("stop"), None]
    assert ends([b"a", b"", b"b"], ignore_eos=True) == [None] * 3
    assert ends([b"", b"a", b""], min_tokens=2) == [None, None, End("stop")]


def test_the_last_token_that_fits_ends() -> None:
    assert ends([b"a", b"a", b"a"], max_len=4) == [None, None, End("length")]
    assert ends([b"a", b"a", b""], max_len=4)[-1] == End("stop"), "what the model says comes first"
    assert ends([b"a", b"a"], max_len=3, min_tokens=9) == [None, End("length")]


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        ([b"a", b"b", b"c"], ("abc",), [None, None, "abc"]),
        ([b"ab", b"c", b"c"], ("abc",), [None, "abc", None]),
        ([b"abc", b"a"], ("b",), ["b", None]),
        ([b"a", b"abc"], ("aab",), [None, "aab"]),
        ([b"\xc3", b"\xa9"], ("\u00e9",), [None, "\u00e9"]),
        ([b"a", b"\xc3", b"\xa9", b"b"], ("a\u00e9b", "x"), [None, None, None, "a\u00e9b"]),
        ([b"cc", b"c"], ("cc",), ["cc", "cc"]),
        ([b" ", b"ab"], ("b", " a"), [None, " a"]),
        ([b"a", b"c"], ("b",), [None, None]),
    ],
)
def test_a_stop_string_ends_where_it_is_whole(
    pieces: list[bytes], stop: tuple[str, ...], expected: list[str | None]
) -> None:
    assert ends(pieces, stop=stop) == [found and End("stop", found) for found in expected]


def test_a_stop_string_that_was_whole_before_min_tokens_does_not_count_but_the_next_one_does() -> None:
    pieces = [b"ab", b" ", b"a", b"c", b"ab", b"a"]
    assert ends(pieces, stop=("ab",), min_tokens=3) == [None] * 4 + [End("stop", "ab"), None]
    assert ends(pieces, stop=("ab",), min_tokens=5)[4] == End("stop", "ab")
    assert ends(pieces, stop=("ab",), min_tokens=6) == [None] * 6
