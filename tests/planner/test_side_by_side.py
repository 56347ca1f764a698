"""Two devices: TokenRouter's published table, and the chain's own laws."""

import pytest

from navtoken.planner import StepTimes, Workload, best_min_rows, predict

# arXiv 2610.12242, figure 10: share 0.35, an SLM step of 6.0 ms and an LLM step of 27.9 ms on A100s.
PREDICTED = {2: [99.0, 110.3], 3: [142.3, 158.1, 151.9], 4: [187.2, 195.4, 207.9, 190.7]}
MEASURED = {2: [94.4, 122.3], 3: [125.9, 169.0, 158.3], 4: [161.2, 179.1, 197.4, 193.7]}


def tokenrouter(rows: int) -> Workload:
    return Workload(StepTimes.constant(0.006), StepTimes.constant(0.0279), 0.35, rows, "side-by-side")


@pytest.mark.parametrize("rows", PREDICTED)
def test_tokenrouters_predictions_are_ours(rows: int):
    ours = [predict(tokenrouter(rows), min_rows).tokens_per_second for min_rows in range(1, rows + 1)]
    # To the printed digit; N = 4, B = 3 is 207.954 here and 207.9 there.
    assert ours == pytest.approx(PREDICTED[rows], abs=0.06)


@pytest.mark.parametrize("rows", MEASURED)
def test_the_best_rule_is_the_one_that_they_measured_as_best(rows: int):
    measured = MEASURED[rows]
    assert best_min_rows(tokenrouter(rows)) == measured.index(max(measured)) + 1


def test_their_measurements_are_off_by_up_to_a_sixth():
    worst = {
        rows: max(
            abs(predict(tokenrouter(rows), min_rows).tokens_per_second / rate - 1)
            for min_rows, rate in enumerate(MEASURED[rows], start=1)
        )
        for rows in MEASURED
    }
    assert worst == pytest.approx({2: 0.098, 3: 0.131, 4: 0.161}, abs=0.001)


def test_one_row_alone_waits_for_each_model_in_turn():
    side, turns = (
        predict(Workload(StepTimes.constant(0.006), StepTimes.constant(0.0279), 0.35, 1, placement), 1)
        for placement in ("side-by-side", "turns")
    )
    assert side.tokens_per_second == pytest.approx(turns.tokens_per_second)


@pytest.mark.parametrize("min_rows", [1, 3, 6])
def test_overlapping_is_never_slower_than_taking_turns(min_rows: int):
    slm, llm = StepTimes.of({1: 0.006, 8: 0.008}), StepTimes.of({1: 0.02, 64: 0.05})
    side, turns = (
        predict(Workload(slm, llm, 0.2, 6, placement), min_rows) for placement in ("side-by-side", "turns")
    )
    assert side.tokens_per_second >= turns.tokens_per_second * (1 - 1e-9)
    assert side.llm_passes_per_token * side.mean_llm_rows == pytest.approx(0.2)


def test_waiting_for_all_rows_leaves_nothing_to_overlap():
    slm, llm = StepTimes.constant(0.006), StepTimes.constant(0.0279)
    side, turns = (predict(Workload(slm, llm, 0.2, 5, where), 5) for where in ("side-by-side", "turns"))
    assert side.tokens_per_second == pytest.approx(turns.tokens_per_second)


def test_an_llm_faster_than_an_slm_step_is_followed_within_it():
    # Handed rows are back by the next SLM step, so the LLM costs nothing at all: lockstep at the SLM's pace.
    workload = Workload(StepTimes.constant(0.010), StepTimes.constant(0.002), 0.3, 4, "side-by-side")
    assert predict(workload, 1).tokens_per_second < 4 / 0.010
    assert predict(workload, 1).tokens_per_second > 2.5 / 0.010


def test_more_rows_than_the_chain_holds_are_simulated():
    prediction = predict(tokenrouter(64), 16)
    assert prediction.standard_error > 0
    assert prediction == predict(tokenrouter(64), 16)
    assert predict(tokenrouter(8), 4).standard_error == 0
