"""Curves of seconds by new tokens, and their online estimate."""

import numpy as np
import pytest

from navtoken.planner import PlanError, StepTimer, StepTimes


def test_constant_times_do_not_depend_on_the_tokens():
    times = StepTimes.constant(0.006)
    assert times(1) == times(0.5) == times(10_000) == 0.006


def test_between_points_below_the_first_and_above_the_last():
    times = StepTimes.of({8: 2.0, 16: 4.0, 24: 5.0})
    assert times(1) == 2.0
    assert times(12) == pytest.approx(3.0)
    assert times(24) == 5.0
    assert times(40) == pytest.approx(7.0)


def test_measured_times_that_fall_are_lifted_to_the_running_maximum():
    times = StepTimes.of({4: 1.5, 1: 2.0, 8: 3.0})
    assert times(4) == 2.0
    assert times(6) == pytest.approx(2.5)


@pytest.mark.parametrize("points", [{3: 1.0}, {1: 1.0, 2: 1.0}, {2: 1.0, 5: 3.0, 6: 3.5}])
def test_arrays_and_single_numbers_agree(points: dict[float, float]):
    times = StepTimes.of(points)
    wanted = np.array([[1.0, 2.0, 3.5], [5.0, 6.0, 99.0]])
    np.testing.assert_allclose(times.at(wanted), [[times(each) for each in row] for row in wanted])


@pytest.mark.parametrize(
    "points", [{}, {0: 1.0}, {1: 0.0}, {1: -1.0}, {1: float("nan")}, {float("inf"): 1.0}]
)
def test_points_that_cannot_be_are_refused(points: dict[float, float]):
    with pytest.raises(PlanError, match="give"):
        StepTimes.of(points)


def test_the_timer_says_nothing_until_a_bucket_has_seen_three_passes():
    timer = StepTimer()
    timer.record(1, 1.0)
    timer.record(1, 1.0)
    timer.record(100, 1.0)
    assert timer.times() is None
    timer.record(1, 1.0)
    assert timer.times() == StepTimes.of({1: 1.0})


def test_the_timer_takes_medians_per_power_of_two():
    timer = StepTimer()
    for num_tokens, seconds in ((1, 9.0), (1, 1.0), (1, 1.0), (5, 2.0), (8, 2.5), (8, 90.0), (9, 3.0)):
        timer.record(num_tokens, seconds)
    assert timer.times() == StepTimes.of({1: 1.0, 8: 2.5})


def test_the_timer_forgets_old_passes():
    timer = StepTimer()
    for seconds in (5.0,) * 40 + (2.0,) * 32:
        timer.record(4, seconds)
    times = timer.times()
    assert times is not None
    assert times(4) == 2.0


@pytest.mark.parametrize(("num_tokens", "seconds"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_the_timer_refuses_what_is_no_pass(num_tokens: int, seconds: float):
    with pytest.raises(PlanError, match="cannot be recorded"):
        StepTimer().record(num_tokens, seconds)
