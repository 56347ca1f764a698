"""Numbers in words: one way for every page."""

import math

import pytest

from navtoken.report.markup import percent


@pytest.mark.parametrize(
    ("value", "digits", "words"),
    [
        (0.123, 0, "12 %"),
        (0.123, 1, "12.3 %"),
        (1.0, 0, "100 %"),
        (None, 1, "–"),
        (math.nan, 0, "–"),
        (math.inf, 0, "–"),
    ],
)
def test_a_fraction_is_written_with_its_sign(value: float | None, digits: int, words: str) -> None:
    assert percent(value, digits) == words
