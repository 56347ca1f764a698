"""The chains against the simulation that keeps every row's own lag."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from navtoken.planner import PlanError, StepTimes, Workload, predict, simulate

MILLISECONDS = st.floats(0.5, 20.0)


@st.composite
def workloads(draw: st.DrawFn) -> tuple[Workload, int]:
    """A workload with bent times, and a rule for it."""
    slm, llm = draw(MILLISECONDS) / 1000, draw(MILLISECONDS) / 200
    bend = draw(st.integers(2, 30))
    workload = Workload(
        slm=StepTimes.of({1: slm, 16: slm * draw(st.floats(1.0, 1.5))}),
        llm=StepTimes.of({1: llm, bend: 1.1 * llm, 4 * bend: llm * draw(st.floats(1.1, 3.0))}),
        share=draw(st.floats(0.05, 0.6)),
        rows=draw(st.integers(1, 12)),
        placement=draw(st.sampled_from(("turns", "side-by-side"))),
        overhead_slm=draw(st.floats(0.0, 0.001)),
        overhead_llm=draw(st.floats(0.0, 0.001)),
    )
    return workload, draw(st.integers(1, workload.rows))


def overlapped(slm: float, llm: float, share: float, rows: int) -> Workload:
    return Workload(StepTimes.constant(slm), StepTimes.constant(llm), share, rows, "side-by-side")


GROWING = Workload(StepTimes.of({1: 0.006, 64: 0.01}), StepTimes.constant(0.0279), 0.13, 24, "side-by-side")


# A pass ends within an SLM step while rows wait; two end within one; times fit no grid, then a coarse one.
@example((overlapped(0.010, 0.012, 0.5, 8), 1))
@example((overlapped(0.010, 0.004, 0.6, 5), 1))
@example((overlapped(0.010, 0.0137, 0.3, 20), 2))
@example((GROWING, 1))
@settings(max_examples=15, deadline=None, derandomize=True)
@given(workloads())
def test_the_chain_is_what_the_simulation_shows(drawn: tuple[Workload, int]):
    workload, min_rows = drawn
    chain = predict(workload, min_rows)
    played = simulate(workload, min_rows, num_tokens=30_000, seed=1)
    slack = 4 * played.standard_error + 0.015 * chain.tokens_per_second
    assert abs(chain.tokens_per_second - played.tokens_per_second) < slack
    assert chain.slm_passes_per_token == pytest.approx(played.slm_passes_per_token, rel=0.03)
    assert chain.llm_passes_per_token == pytest.approx(played.llm_passes_per_token, rel=0.04)
    assert chain.mean_llm_rows == pytest.approx(played.mean_llm_rows, rel=0.04)


@pytest.mark.parametrize("placement", ["turns", "side-by-side"])
def test_the_seed_is_all_there_is_to_chance(placement: str):
    slm, llm = StepTimes.constant(0.006), StepTimes.constant(0.0279)
    workload = Workload(slm, llm, 0.35, 4, placement)  # type: ignore[arg-type]
    assert simulate(workload, 2, 5_000, seed=3) == simulate(workload, 2, 5_000, seed=3)
    assert simulate(workload, 2, 5_000, seed=3) != simulate(workload, 2, 5_000, seed=4)


def test_the_standard_error_is_the_scatter_between_seeds():
    workload = Workload(StepTimes.constant(0.006), StepTimes.constant(0.0279), 0.35, 4)
    runs = [simulate(workload, 3, 5_000, seed=seed) for seed in range(30)]
    mean = sum(run.tokens_per_second for run in runs) / len(runs)
    scatter = (sum((run.tokens_per_second - mean) ** 2 for run in runs) / (len(runs) - 1)) ** 0.5
    claimed = sum(run.standard_error for run in runs) / len(runs)
    assert 0.6 < claimed / scatter < 1.6


def test_nothing_to_decode_is_refused():
    workload = Workload(StepTimes.constant(1.0), StepTimes.constant(2.0), 0.5, 1)
    with pytest.raises(PlanError, match="num_tokens is 0"):
        simulate(workload, 1, num_tokens=0)
