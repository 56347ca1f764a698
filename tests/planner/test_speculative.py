"""Speculative decoding of the same two models."""

import numpy as np
import pytest

from navtoken.planner import PlanError, StepTimes, Workload, best_num_drafts, speculative_rate

SLM, LLM = StepTimes.constant(0.001), StepTimes.of({1: 0.02, 64: 0.02, 128: 0.04})


def test_the_rate_is_what_coins_show():
    rng = np.random.default_rng(0)
    accepted = np.minimum(rng.geometric(1 - 0.8, size=100_000) - 1, 4)
    workload = Workload(SLM, LLM, 0.5, 2, overhead_slm=0.0005, overhead_llm=0.002)
    wanted = 2 * (accepted.mean() + 1) / (4 * 0.0015 + 0.022)
    assert speculative_rate(workload, 0.8, 4) == pytest.approx(wanted, rel=0.01)


def test_drafts_that_are_always_accepted_all_count():
    assert speculative_rate(Workload(SLM, LLM, 0.5, 1), 1.0, 3) == pytest.approx(4 / 0.023)


def test_the_llm_pass_covers_all_rows_and_drafts():
    busy = Workload(SLM, LLM, 0.5, 32)
    assert speculative_rate(busy, 0.0, 3) == pytest.approx(32 / (0.003 + 0.04))


def test_fewer_drafts_are_best_under_load_and_when_few_are_accepted():
    alone, busy = Workload(SLM, LLM, 0.5, 1), Workload(SLM, LLM, 0.5, 32)
    assert best_num_drafts(alone, 0.9) > best_num_drafts(alone, 0.5) > best_num_drafts(busy, 0.5) == 1
    assert best_num_drafts(alone, 0.9, max_drafts=2) == 2
    rates = [speculative_rate(alone, 0.9, num) for num in range(1, 17)]
    assert best_num_drafts(alone, 0.9) == int(np.argmax(rates)) + 1


def test_what_cannot_be_is_refused():
    workload = Workload(SLM, LLM, 0.5, 1)
    with pytest.raises(PlanError, match="acceptance is 1.5"):
        speculative_rate(workload, 1.5, 2)
    with pytest.raises(PlanError, match="num_drafts is 0"):
        speculative_rate(workload, 0.5, 0)
    with pytest.raises(PlanError, match="max_drafts is 0"):
        best_num_drafts(workload, 0.5, 0)
