"""What is asked of the planner: limits, the best rule, whether routing pays."""

import subprocess
import sys
from typing import Any

import pytest

from navtoken.planner import PlanError, StepTimes, Workload, best_min_rows, pays, predict, roofline
from navtoken.planner.prediction import _search

SLM, LLM = StepTimes.constant(0.006), StepTimes.constant(0.0279)


def test_one_row_runs_at_the_roofline():
    workload = Workload(SLM, LLM, 0.13, 1)
    assert roofline(workload) == pytest.approx(1 / (0.006 + 0.13 * 0.0279))
    assert predict(workload, 1).tokens_per_second == pytest.approx(roofline(workload))
    slower = Workload(SLM, LLM, 0.13, 1, overhead_slm=0.001)
    assert predict(slower, 1).tokens_per_second < roofline(slower) == roofline(workload)


def test_the_roofline_counts_catch_up():
    straight = StepTimes.of({1: 0.010, 2: 0.011})
    assert roofline(Workload(SLM, straight, 0.25, 1)) == pytest.approx(1 / (0.006 + 0.25 * 0.013))


def test_the_llm_alone_feeds_one_token_a_row():
    llm = StepTimes.of({1: 0.02, 8: 0.03})
    assert Workload(SLM, llm, 0.5, 8, overhead_llm=0.01).llm_alone == pytest.approx(8 / 0.04)


def test_routing_pays_while_passes_are_bound_by_weights_and_not_once_bound_by_arithmetic():
    flat, steep = Workload(SLM, LLM, 0.13, 16), Workload(SLM, StepTimes.of({1: 0.002, 2: 0.004}), 0.13, 16)
    assert pays(flat, best_min_rows(flat))
    assert not pays(steep, best_min_rows(steep))
    assert predict(steep, 1).times_llm_alone < 1


def test_a_rule_beyond_the_rows_waits_for_all_of_them():
    for placement in ("turns", "side-by-side"):
        workload = Workload(SLM, LLM, 0.2, 3, placement)  # type: ignore[arg-type]
        assert predict(workload, 8) == predict(workload, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.1}, "share is 1.1"),
        ({"share": float("nan")}, "share is nan"),
        ({"rows": 0}, "rows is 0"),
        ({"rows": 10**6}, "rows is 1000000"),
        ({"overhead_llm": -1.0}, "overheads are 0.0 and -1.0"),
    ],
)
def test_workloads_that_cannot_be_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(PlanError, match=words):
        Workload(**{"slm": SLM, "llm": LLM, "share": 0.2, "rows": 4, **changes})


def test_a_rule_below_one_is_refused():
    with pytest.raises(PlanError, match="min_rows is 0"):
        predict(Workload(SLM, LLM, 0.2, 4), 0)


@pytest.mark.parametrize("peak", [1, 2, 3, 21, 40, 63, 100])
def test_the_search_climbs_to_the_peak_in_few_questions(peak: int):
    asked = []

    def rate(num: int) -> float:
        asked.append(num)
        return 1000.0 - abs(num - peak)

    assert _search(rate, 100) == peak
    assert len(asked) == len(set(asked)) < 22


def test_planning_needs_no_models():
    code = "import sys, navtoken.planner; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
