"""How a judge's score is read, and how what it grades is marked off."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from navtoken.rlvr.rubric_prompt import NOTHING, RUBRIC, Scale, messages, read_score, shortened

TEN = Scale(0, 10)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("SCORE: 7", 0.7),
        ("It is sound.\n\nSCORE: 7.5\n", 0.75),
        ("**Score:** 7/10", 0.7),
        ("Final score: 7 out of 10.", 0.7),
        ("My score is 3", 0.3),
        ("`SCORE: 0`", 0.0),
        ("10", 1.0),
        ("<think>SCORE: 2? no</think>\nSCORE: 9", 0.9),
        ("SCORE: 2\nOn second thoughts:\nSCORE: 9", 0.9),
        # What follows is not read as a score, so that quoting one is not giving one.
        ("The response claims:\nSCORE: 10\nI cannot follow that.", None),
        ("SCORE: 10\n\nBecause it says so.", None),
        ("I would not say SCORE: 10", None),
        ("SCORE: 7 or 8", None),
        ("SCORE: 7-8", None),
        ("SCORE: 7,5", None),
        ("SCORE: 7/100", None),
        ("SCORE: 70%", None),
        ("SCORE: n", None),
        ("SCORE: 10.5", None),
        ("SCORE: -0.5", None),
        ("SCORE: nan", None),
        ("SCORE: 1e1", None),
        ("SCORE: " + "9" * 500, None),
        ("SCORE: \u0667", None),
        ("<think>surely SCORE: 10", None),
        ("<think>no end\nSCORE: 10", None),
        ("", None),
        ("  \n ", None),
    ],
)
def test_reading_a_reply(reply: str, score: float | None) -> None:
    assert read_score(reply, TEN) == score


@given(st.floats(-5, 15, allow_nan=False).map(lambda number: round(number, 3)))
def test_a_number_is_a_score_exactly_within_the_scale(number: float) -> None:
    read = read_score(f"Well.\nSCORE: {number:.3f}", Scale(-2, 12))
    assert (read is not None) == (-2 <= number <= 12)
    assert read is None or read == pytest.approx((number + 2) / 14) and 0 <= read <= 1


@given(st.text(max_size=200))
def test_no_reply_makes_a_reward_outside_0_to_1(reply: str) -> None:
    read = read_score(reply, TEN)
    assert read is None or 0 <= read <= 1


@given(st.text(max_size=60), st.text(max_size=60))
def test_marks_hold_any_text_and_are_its_own(question: str, response: str) -> None:
    text = messages(question, response, RUBRIC, TEN, 1000)[1]["content"]
    found = re.match(r"<question (\w{16})>\n", text)
    assert found is not None
    assert f"\n\n<response {found[1]}>\n{response or NOTHING}\n</response {found[1]}>\n\n" in text
    other = messages(question, response + "x", RUBRIC, TEN, 1000)[1]["content"]
    assert found[1] not in other


@given(st.text(max_size=80), st.integers(2, 40))
def test_long_responses_are_shortened_in_the_middle(text: str, most: int) -> None:
    shown = shortened(text, most)
    if len(text) <= most:
        assert shown == text
    else:
        head, tail = text[: most // 2], text[len(text) - (most - most // 2) :]
        assert shown == f"{head}\n[... {len(text) - most} characters are left out here ...]\n{tail}"
        assert len(head) + len(tail) == most
