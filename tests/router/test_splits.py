"""The three parts of the problems: their sizes, and that nothing is in two."""

from collections import Counter

import pytest

from navtoken.router.splits import FRACTIONS, PARTS, part_of


def test_parts_have_their_sizes() -> None:
    found = Counter(part_of(f"problem {number}") for number in range(20_000))
    for part, fraction in zip(PARTS, FRACTIONS, strict=True):
        assert found[part] / 20_000 == pytest.approx(fraction, abs=0.01)


def test_a_problem_is_in_one_part_for_good() -> None:
    # Routers that lie on disk say which problems they never saw; these must not move.
    known = {"p10": "train", "p11": "validation", "p12": "test"}
    assert {name: part_of(name) for name in known} == known
