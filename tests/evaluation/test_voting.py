"""What k of n samples would say, against a count over every subset."""

from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navtoken.evaluation import voting
from navtoken.evaluation.voting import SCORERS, Ballot, ScalingError, best_of_k, majority_at_k
from small_traces import small_trace

ANSWERS = st.lists(st.sampled_from(["7", "8", "9", "10", None]), min_size=1, max_size=9)
"""The answer is 7."""


def subsets(num: int, k: int) -> list[tuple[int, ...]]:
    return list(combinations(range(num), k))


def vote(answers: list[str | None], correct: list[bool]) -> float:
    """Right share of the commonest answers of one subset."""
    given_answers = [answer for answer in answers if answer is not None]
    if not given_answers:
        return 0.0
    most = max(given_answers.count(answer) for answer in given_answers)
    winners = {answer for answer in given_answers if given_answers.count(answer) == most}
    return fmean(
        fmean(right for answer, right in zip(answers, correct, strict=True) if answer == winner)
        for winner in winners
    )


@settings(max_examples=150, deadline=None)
@given(ANSWERS, st.data())
def test_majority_is_the_mean_over_all_subsets(answers: list[str | None], data: st.DataObject) -> None:
    correct = [answer == "7" for answer in answers]
    k = data.draw(st.integers(1, len(answers)))
    counted = fmean(vote([answers[i] for i in s], [correct[i] for i in s]) for s in subsets(len(answers), k))
    assert majority_at_k(Ballot.of(answers, correct), k) == pytest.approx(counted)


def test_answers_that_are_right_in_different_words_share_no_votes() -> None:
    ballot = Ballot.of(["a", "b", "c", "c"], [True, True, False, False])
    assert majority_at_k(ballot, 4) == 0.0
    assert majority_at_k(ballot, 1) == 0.5


def test_no_answer_never_wins_but_where_there_is_no_other() -> None:
    assert majority_at_k(Ballot.of([None, None, None, "7"], [False, False, False, True]), 4) == 1.0
    assert majority_at_k(Ballot.of([None, None, None, "7"], [False, False, False, True]), 2) == 0.5
    assert majority_at_k(Ballot.of([None, None], [False, False]), 1) == 0.0
    assert majority_at_k(Ballot.of([None, None], [False, False]), 2) == 0.0


def test_too_many_subsets_are_drawn_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [*["7"] * 6, *["8"] * 5, *["9"] * 3, None, None]
    ballot = Ballot.of(answers, [answer == "7" for answer in answers])
    exact = [majority_at_k(ballot, k) for k in (2, 5, 9)]
    monkeypatch.setattr(voting, "MOST_WORK", 0)
    drawn = [majority_at_k(ballot, k) for k in (2, 5, 9)]
    assert drawn == pytest.approx(exact, abs=0.03)
    assert drawn != exact
    assert drawn == [majority_at_k(ballot, k) for k in (2, 5, 9)]
    assert drawn != [majority_at_k(ballot, k, seed=1) for k in (2, 5, 9)]
    sparse = Ballot.of(["7", *[None] * 9], [True, *[False] * 9])
    assert majority_at_k(sparse, 2) == pytest.approx(0.2, abs=0.03)


def test_hundreds_of_different_answers_take_no_time() -> None:
    answers = [str(index // 2) for index in range(600)]
    ballot = Ballot.of(answers, [answer == "7" for answer in answers])
    assert voting._work(ballot, 300) > voting.MOST_WORK
    assert 0.0 <= majority_at_k(ballot, 300) < 0.05


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-2.5, -1.0, 0.0]), st.booleans()), min_size=1, max_size=8), st.data()
)
def test_best_of_k_is_the_mean_over_all_subsets(
    samples: list[tuple[float, bool]], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(samples)))

    def best(chosen: list[tuple[float, bool]]) -> float:
        top = max(score for score, _ in chosen)
        return fmean(right for score, right in chosen if score == top)

    # Ties are broken evenly within a subset.
    counted = fmean(best([samples[i] for i in s]) for s in subsets(len(samples), k))
    scores, correct = zip(*samples, strict=True)
    assert best_of_k(scores, correct, k) == pytest.approx(counted)


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_samples_is_refused(k: int) -> None:
    for estimate in (
        lambda: majority_at_k(Ballot.of(["7"] * 3, [True] * 3), k),
        lambda: best_of_k([0.0] * 3, [True] * 3, k),
    ):
        with pytest.raises(ScalingError, match=f"k is {k}, of 3 samples.*draw more"):
            estimate()


def test_scores_are_of_who_wrote_each_token() -> None:
    trace = small_trace([5, 6, 7], writer=[0, 1, 0])
    trace.columns = {
        "logprob_slm": np.array([-1.0, -100.0, -4.0]),
        "logprob_llm": np.array([-50.0, -2.0, np.nan]),
        "entropy_slm": np.array([0.5, 9.0, np.nan]),
        "entropy_llm": np.array([9.0, 1.5, 9.0]),
    }
    assert SCORERS["logprob"](trace, 3) == pytest.approx(-7 / 3)
    assert SCORERS["logprob"](trace, 2) == pytest.approx(-1.5)
    assert SCORERS["entropy"](trace, 3) == pytest.approx(-1.0)
    assert [SCORERS["length"](trace, end) for end in (2, 9)] == [-2.0, -3.0]
    assert SCORERS["logprob"](small_trace([5, 6]), 2) is None
