"""Estimators against brute force."""

import itertools
from dataclasses import replace
from math import isnan, sqrt
from statistics import fmean, pvariance

import pytest

from fake_engine import CARD
from navtoken.engine import Costs, Ledger
from navtoken.evaluation import Tally, average, mean_and_error
from navtoken.trace import Trace


def trace(problem: str, sample: int, correct: bool, writer: list[int], **changes: object) -> Trace:
    ledger = Ledger()
    ledger.written = [writer.count(0), writer.count(1)]
    ledger.slm.record(0, 3 + len(writer), 3, len(writer))
    ledger.slm.passes = ledger.llm.passes = len(writer)
    fields = {
        "task": "t", "problem_id": problem, "sample": sample, "prompt": "p", "prompt_ids": [1, 2, 3],
        "response_ids": [5] * len(writer), "text": "", "finish_reason": "stop", "seed": 0, "policy": "x",
        "writer": writer, "correct": correct, "ledger": {**ledger.as_dict(), "seconds": 0.5},
    }  # fmt: skip
    return Trace(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[1.0, 0.0, 0.0, 1.0], [0.25, 0.75, 1.0, 0.0, 0.5], [1.0, 1.0, 1.0]])
def test_standard_error_against_every_bootstrap_sample(values: list[float]) -> None:
    mean, error = mean_and_error(values)
    means = [fmean(sample) for sample in itertools.product(values, repeat=len(values))]
    assert mean == pytest.approx(fmean(means))
    # The bootstrap's variance divides by n where the estimator divides by n - 1.
    assert error == pytest.approx(sqrt(pvariance(means) * len(values) / (len(values) - 1)))


def test_one_problem_has_no_standard_error() -> None:
    mean, error = mean_and_error([1.0])
    assert mean == 1.0
    assert isnan(error)


def test_samples_of_one_problem_are_one_observation() -> None:
    verdicts = {"a": [True, True, True, False], "b": [False, False, False, False], "c": [True, False]}
    tally = Tally(Costs(CARD, CARD))
    for problem, row in verdicts.items():
        for sample, correct in enumerate(row):
            tally.add(trace(problem, sample, correct, [0]))
    row = tally.row()
    shares = [0.75, 0.0, 0.5]
    center = sum(shares) / 3
    assert row["accuracy"] == pytest.approx(center)
    assert row["accuracy_se"] == pytest.approx(sqrt(sum((s - center) ** 2 for s in shares) / 2 / 3))
    assert (row["num_problems"], row["num_responses"]) == (3, 10)


def test_costs_are_per_committed_token() -> None:
    costs = Costs(CARD, CARD)
    traces = [
        trace("a", 0, True, [0, 0, 1]),
        trace("b", 0, False, [1], finish_reason="length"),
    ]
    tally, whole = Tally(costs), Ledger()
    for each in traces:
        tally.add(each)
        whole.add(Ledger.from_dict(each.ledger))
    row = tally.row()
    assert row["llm_share"] == 0.5
    assert row["mean_length"] == 2.0
    assert row["cut_share"] == 0.5
    assert row["tokens_per_second"] == pytest.approx(4 / 1.0)
    assert row["flops_per_token"] == pytest.approx(costs.flops(whole) / 4)
    assert row["bytes_per_token"] == pytest.approx(costs.bytes(whole) / 4)
    assert row["average_activated_parameters"] == pytest.approx(CARD.active_parameters)
    assert isnan(row["acceptance"])


def test_both_total_costs_are_per_response() -> None:
    costs = Costs(CARD, replace(CARD, active_parameters=10_000), router_parameters=7)
    ledger = Ledger()
    ledger.written = [3, 1]
    ledger.slm.prefill_tokens, ledger.slm.decode_tokens = 5, 4
    ledger.llm.prefill_tokens, ledger.llm.catchup_tokens, ledger.llm.decode_tokens = 5, 2, 1
    ledger.router_calls = 4
    tally = Tally(costs)
    for problem in ("a", "b"):
        tally.add(trace(problem, 0, True, [0, 0, 0, 1], ledger={**ledger.as_dict(), "seconds": 1.0}))
    row = tally.row()
    # What was written, as in the paper; and all that was computed.
    assert row["total_cost"] == pytest.approx(3 * 1_000 + 1 * 10_000 + 4 * 7)
    assert row["computed_cost"] == pytest.approx(9 * 1_000 + 8 * 10_000 + 4 * 7)


def test_passes_and_discarded_tokens_are_per_token() -> None:
    ledger = Ledger()
    ledger.written = [3, 1]
    ledger.llm.passes = ledger.llm.row_passes = 2
    ledger.discarded_drafts, ledger.rolled_back_tokens = 1, 3
    ledger.judged_drafts, ledger.accepted_drafts = 6, 3
    tally = Tally(Costs(CARD, CARD))
    tally.add(trace("a", 0, True, [0, 0, 0, 1], ledger={**ledger.as_dict(), "seconds": 1.0}))
    row = tally.row()
    assert (row["llm_passes_per_token"], row["discarded_per_token"], row["acceptance"]) == (0.5, 1.0, 0.5)


def test_mean_over_tasks_counts_each_task_the_same() -> None:
    rows = [
        {"accuracy": 1.0, "accuracy_se": 0.3, "num_problems": 10},
        {"accuracy": 0.5, "accuracy_se": 0.4, "num_problems": 90},
    ]
    mean = average(rows)
    assert mean["accuracy"] == 0.75
    assert mean["accuracy_se"] == pytest.approx(sqrt(0.3**2 + 0.4**2) / 2)
    assert mean["num_problems"] == 100
