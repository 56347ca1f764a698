"""One device: the cycle's closed form against a chain solved the slow way."""

import time
from math import comb

import numpy as np
import pytest

from navtoken.planner import StepTimes, Workload, best_min_rows, predict

# Straight, so that the scatter of the rows' lags plays no part.
SLM = StepTimes.of({1: 0.006, 64: 0.012})
LLM = StepTimes.of({0.5: 0.02, 100: 0.06})


def slowly(workload: Workload, min_rows: int) -> float:
    """Tokens per second from the stationary distribution over parked rows, written as the engine steps."""
    rows, share = workload.rows, workload.share
    jumps, seconds = np.zeros((rows, rows)), np.zeros(rows)
    for parked in range(rows):
        ready = rows - parked
        seconds[parked] = workload.slm(ready) + workload.overhead_slm
        for handed in range(ready + 1):
            chance = comb(ready, handed) * share**handed * (1 - share) ** (ready - handed)
            num = parked + handed
            if num >= min_rows or num == rows:
                seconds[parked] += chance * (workload.llm(num / share) + workload.overhead_llm)
                num = 0
            jumps[parked, num] += chance
    reachable = min(min_rows, rows)
    equations = jumps[:reachable, :reachable].T - np.eye(reachable)
    equations[-1] = 1.0
    stationary = np.linalg.solve(equations, np.eye(reachable)[-1])
    drafts = rows - np.arange(reachable)
    return float(stationary @ drafts / (stationary @ seconds[:reachable]))


@pytest.mark.parametrize("share", [0.02, 0.13, 0.5, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 5, 16])
def test_every_rule_is_what_the_slow_chain_says(rows: int, share: float):
    workload = Workload(SLM, LLM, share, rows, overhead_slm=0.001, overhead_llm=0.003)
    for min_rows in range(1, rows + 1):
        rate = predict(workload, min_rows).tokens_per_second
        assert rate == pytest.approx(slowly(workload, min_rows), rel=1e-9)


def test_the_llm_writes_its_share():
    for min_rows in range(1, 9):
        prediction = predict(Workload(SLM, LLM, 0.2, 8), min_rows)
        assert prediction.llm_passes_per_token * prediction.mean_llm_rows == pytest.approx(0.2)


def test_lockstep_makes_one_slm_step_for_all_rows():
    prediction = predict(Workload(SLM, LLM, 0.2, 8), 1)
    assert prediction.slm_passes_per_token == pytest.approx(1 / 8)
    # Some row needs the LLM in 1 - 0.8^8 of the steps.
    assert prediction.llm_passes_per_token == pytest.approx((1 - 0.8**8) / 8)


def test_waiting_for_all_rows_fills_every_pass():
    assert predict(Workload(SLM, LLM, 0.2, 8), 8).mean_llm_rows == pytest.approx(8)


def test_the_best_rule_is_the_best_of_all():
    for rows in (2, 7, 24):
        workload = Workload(SLM, LLM, 0.13, rows)
        rates = [predict(workload, min_rows).tokens_per_second for min_rows in range(1, rows + 1)]
        assert best_min_rows(workload) == int(np.argmax(rates)) + 1


def test_of_equal_rules_the_smallest_is_best():
    # Every draft goes to the LLM, so all rows park at once under any rule.
    assert best_min_rows(Workload(SLM, LLM, 1.0, 8)) == 1


def test_fast_enough_to_be_asked_while_decoding():
    workload = Workload(SLM, LLM, 0.13, 64)
    best_min_rows(workload)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        best_min_rows(workload)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.01
