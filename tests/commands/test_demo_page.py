"""The page says what its numbers say."""

from math import nan

import pytest

from navtoken.commands.demo_page import routing_title


@pytest.mark.parametrize(
    ("entropy", "error", "words"),
    [
        (0.8, 0.05, "30 points more"),
        (0.2, 0.05, "30 points fewer"),
        (0.8, 0.2, "not clearly"),
        (0.8, nan, "not clearly"),
    ],
)
def test_a_gap_is_claimed_only_beyond_its_error(entropy: float, error: float, words: str) -> None:
    rows = {
        "slm": {"accuracy": 0.1, "accuracy_se": 0.0},
        "random,share=0.1": {"accuracy": 0.5, "accuracy_se": 0.05},
        "entropy,share=0.1": {"accuracy": entropy, "accuracy_se": error},
    }
    assert words in routing_title(rows)
