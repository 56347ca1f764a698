"""Estimates of one problem against a count over every subset, and intervals over problems."""

from dataclasses import replace
from itertools import combinations
from math import isnan, sqrt
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navtoken.evaluation.scaling import (
    Interval,
    PromptCost,
    Resampling,
    Response,
    ScalingError,
    measure,
    pass_at_k,
)


def response(
    correct: bool, tokens: int = 10, flops: float = 100.0, llm: bool = True, **more: object
) -> Response:
    answer = "7" if correct else "8"
    return Response(correct, answer, tokens, flops, 2 * flops, 0.5, (True, llm), **more)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(correct: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(correct)))
    counted = fmean(any(chosen) for chosen in combinations(correct, k))
    assert pass_at_k(len(correct), sum(correct), k) == pytest.approx(counted)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ScalingError, match="k is 5, of 4 samples"):
        pass_at_k(4, 2, 5)
    with pytest.raises(ScalingError, match="5 of 4 samples"):
        pass_at_k(4, 5, 2)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 9), st.integers(0, 99), st.booleans()), min_size=1, max_size=7
    ),
    st.data(),
)
def test_costs_are_means_over_all_subsets_that_pay_for_the_prompt_once(
    samples: list[tuple[bool, int, int, bool]], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(samples)))
    responses = [response(correct, tokens, float(flops), llm) for correct, tokens, flops, llm in samples]
    prompt = PromptCost((1000.0, 7000.0), (11.0, 13.0))

    def paid(chosen: tuple[Response, ...]) -> float:
        models = 1000.0 + 7000.0 * any(each.runs[1] for each in chosen)
        return models + sum(each.flops for each in chosen)

    found = measure(responses, k, prompt)
    chosen = list(combinations(responses, k))
    assert found["flops"] == pytest.approx(fmean(map(paid, chosen)))
    assert found["tokens"] == pytest.approx(fmean(sum(each.tokens for each in some) for some in chosen))
    assert found["avg"] == pytest.approx(fmean(each.correct for each in responses))
    assert found["seconds"] == pytest.approx(0.5 * k)


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=7), st.data())
def test_distinct_answers_are_those_of_the_average_subset(
    answers: list[str | None], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    responses = [replace(response(False), answer=answer) for answer in answers]
    counted = [len(set(some) - {None}) for some in combinations(answers, k)]
    assert measure(responses, k)["distinct"] == pytest.approx(fmean(counted))


def test_a_score_that_some_responses_lack_chooses_none() -> None:
    scored = [
        response(True, scores={"logprob": -1.0, "length": -3.0}),
        response(False, scores={"length": -2.0}),
    ]
    found = measure(scored, 2)
    assert found["best_length"] == 0.0
    assert isnan(found["best_logprob"])


def test_intervals_are_as_wide_as_the_error_says_and_seeded() -> None:
    rng = np.random.default_rng(3)
    values_PM = rng.random((400, 2))
    found = Resampling(4000).intervals([values_PM])
    for interval, column in zip(found, values_PM.T, strict=True):
        error = column.std(ddof=1) / sqrt(400)
        assert interval.value == pytest.approx(column.mean())
        assert (interval.high - interval.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.06)
        assert interval.low < interval.value < interval.high
    assert found == Resampling(4000).intervals([values_PM])
    assert found != Resampling(4000, seed=1).intervals([values_PM])


def test_tasks_count_the_same_and_are_drawn_apart() -> None:
    small, large = np.full((2, 1), 1.0), np.zeros((50, 1))
    (interval,) = Resampling(200).intervals([small, large])
    assert interval == Interval(0.5, 0.5, 0.5)


def test_what_is_equal_on_every_problem_differs_by_nothing() -> None:
    rng = np.random.default_rng(0)
    hard_PM = rng.random((30, 1))
    (interval,) = Resampling(100).intervals([hard_PM + 0.1 - hard_PM])
    assert interval.clear
    assert interval.low == pytest.approx(0.1)
    assert not Interval(0.1, -0.1, 0.3).clear


def test_one_problem_or_no_resample_has_no_interval() -> None:
    for found in (
        Resampling(10).intervals([np.ones((1, 1))]),
        Resampling(0).intervals([np.ones((5, 1))]),
    ):
        assert isnan(found[0].low) and isnan(found[0].high) and not found[0].clear
    with pytest.raises(ScalingError, match="-1 resamples"):
        Resampling(-1)
