"""The mean time of an LLM pass over rows that lack different numbers of tokens."""

from math import lgamma

import numpy as np
import pytest

from navtoken.planner import StepTimes, Workload
from navtoken.planner.passes import llm_pass_seconds, new_tokens

SLM = StepTimes.constant(1.0)


def exact(times: StepTimes, num_rows: int, share: float) -> float:
    """Mean over the negative binomial distribution of the total."""
    mean = num_rows / share
    total = np.arange(num_rows, int(mean + 14 * (num_rows * (1 - share)) ** 0.5 / share + 20))
    log_ways = [lgamma(n) - lgamma(num_rows) - lgamma(n - num_rows + 1) for n in total]
    logs = np.array(log_ways) + num_rows * np.log(share) + (total - num_rows) * np.log1p(-share)
    return float(np.exp(logs) @ times.at(total))


@pytest.mark.parametrize("share", [0.02, 0.13, 0.35, 0.9, 1.0])
def test_the_mean_number_of_new_tokens_is_exact(share: float):
    num_rows = np.array([1, 2, 7, 64])
    fed = new_tokens(num_rows, share)
    np.testing.assert_allclose(fed.mean(1), num_rows / share)
    assert (fed >= num_rows[:, None]).all()


@pytest.mark.parametrize("share", [0.05, 0.13, 0.3])
@pytest.mark.parametrize("num_rows", [1, 2, 8])
def test_a_sharp_bend_at_the_mean_is_averaged_over(share: float, num_rows: int):
    mean = num_rows / share
    bent = StepTimes.of({0.5: 1.0, mean: 1.0, 2 * mean: 3.0})
    seconds = llm_pass_seconds(Workload(SLM, bent, share, num_rows))[num_rows]
    wanted = exact(bent, num_rows, share)
    assert seconds == pytest.approx(wanted, rel=0.03)
    assert bent(mean) < 0.85 * wanted


def test_straight_times_need_no_average():
    straight = StepTimes.of({1: 1.0, 2: 1.5})
    seconds = llm_pass_seconds(Workload(SLM, straight, 0.25, 3))
    np.testing.assert_allclose(seconds, [0.0, straight(4), straight(8), straight(12)])
