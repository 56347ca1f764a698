"""The study of test-time scaling: seeds are averaged within problems, shares have intervals, and tables name arms that are drawn."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from navtoken.evaluation.measurements import METRICS, Measurements, Setting

ROOT = Path(__file__).parents[1]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        import test_time_scaling
    finally:
        sys.path.pop(0)
    return test_time_scaling


@pytest.fixture(scope="module")
def told(study):
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        import test_time_scaling_report
    finally:
        sys.path.pop(0)
    return test_time_scaling_report


def measured(policy: str, values: dict[str, float]) -> Measurements:
    own = {problem: dict.fromkeys(METRICS, value) for problem, value in values.items()}
    return Measurements({Setting(policy, "countdown", 1): own}, {policy: 4})


def test_seeds_are_averaged_within_a_problem(told) -> None:
    read = {"one": measured("llm", {"a": 1.0, "b": 0.0}), "two": measured("llm", {"a": 0.5, "b": 0.0})}
    found = told.averaged({"both": ["one", "two"], "first": ["one"]}, read)
    assert found.policies == ["both", "first"]
    own = found.values[Setting("both", "countdown", 1)]
    assert {problem: values["pass"] for problem, values in own.items()} == {"a": 0.75, "b": 0.0}
    assert found.values[Setting("first", "countdown", 1)]["a"]["pass"] == 1.0


def test_another_k_is_compared_problem_by_problem_at_its_cost(told) -> None:
    def at(k: int, value: float, cost: float) -> dict[str, dict[str, float]]:
        return {problem: dict.fromkeys(METRICS, value) | {"bytes": cost, "flops": cost} for problem in "abc"}

    values = {
        Setting("llm", "countdown", 1): at(1, 0.5, 8.0),
        Setting("llm", "countdown", 4): at(4, 0.9, 32.0),
        Setting("router", "countdown", 1): at(1, 0.25, 1.0),
        Setting("router", "countdown", 4): at(4, 0.75, 4.0),
    }
    together = Measurements(values, {"llm": 4, "router": 4})
    found = told._across(together, together.rows(told.RESAMPLING), "router", 4, "llm", 1)
    assert (found["maj"], found["maj_low"]) == (0.25, 0.25)
    assert (found["bytes_ratio"], found["k"], found["less_k"]) == (0.5, 4, 1)


def test_seeds_of_other_problems_are_refused(told) -> None:
    read = {"one": measured("llm", {"a": 1.0}), "two": measured("llm", {"b": 1.0})}
    with pytest.raises(ValueError, match="different problems"):
        told.averaged({"both": ["one", "two"]}, read)


def test_an_llm_share_is_of_tokens_and_tasks_count_alike(told) -> None:
    rng = np.random.default_rng(0)
    total = rng.integers(20, 80, 60).astype(float)
    short = np.stack([np.round(total * 0.2), total], 1)
    long = np.stack([np.round(3 * total * 0.4), 3 * total], 1)
    found = told._interval([{"a": short, "b": long}])
    wanted = (short[:, 0].sum() / short[:, 1].sum() + long[:, 0].sum() / long[:, 1].sum()) / 2
    assert found["share"] == pytest.approx(wanted)
    assert found["share_low"] < wanted < found["share_high"]
    less = told._interval([{"a": short, "b": long}, {"a": short, "b": long}])
    assert less == {"share": 0.0, "share_low": 0.0, "share_high": 0.0}


def test_every_arm_of_the_tables_is_drawn_and_every_arm_that_is_drawn_is_told(study, told) -> None:
    drawn = list(study.arms(study.Options("draw")))
    names = [arm.name for arm in drawn]
    asked = {arm for arms in told.GROUPS.values() for own in arms.values() for arm in own}
    assert len(set(names)) == len(names) == len({arm.folder for arm in drawn})
    assert asked == set(names)
    for question, pairs in told.COMPARED.items():
        assert {name for pair in pairs for name in pair} <= told.GROUPS[question].keys()


def test_compared_arms_answer_the_same_problems(study, told) -> None:
    size = {arm.name: (arm.tasks, arm.num) for arm in study.arms(study.Options("draw"))}
    for question, pairs in told.COMPARED.items():
        for pair in pairs:
            arms = {arm for name in pair for arm in told.GROUPS[question][name]}
            assert len({size[arm] for arm in arms}) == 1


def test_an_arm_is_drawn_once_and_measured_at_every_k_that_it_has(study, tmp_path: Path) -> None:
    arm = study.Arm("router 20%", "router,share=0.2", tasks=("arithmetic",), num=2, samples=4)
    study.draw(arm, tmp_path, QUIET)
    folder = tmp_path / "arms" / arm.folder
    found = Measurements.read(folder / study.MEASUREMENTS)
    assert {setting.k for setting in found.values} == {1, 4}
    assert {setting.budget for setting in found.values} == {*study.BUDGETS, None}
    (row,) = json.loads((folder / "table.json").read_text())
    assert row["num_responses"] == 8
    before = (folder / "table.json").stat().st_mtime_ns
    study.draw(replace(arm, policy="no such policy"), tmp_path, QUIET)
    assert (folder / "table.json").stat().st_mtime_ns == before


def test_the_slm_is_trained_as_the_arms_were(study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(study, "train_rl", lambda options, console: asked.append(options))
    options = study.Options("train", work=tmp_path, tuned=ROOT / "experiments" / "rlvr" / "runs")
    study.trained_slm(options, QUIET)
    (own,) = asked
    assert (own.model, own.selection.select, own.update.learning_rate) == (
        "embedded:slm",
        "top_entropy:0.2",
        3e-4,
    )
    (tmp_path / "slm" / "model").mkdir(parents=True)
    study.trained_slm(options, QUIET)
    assert len(asked) == 1


def test_one_question_is_drawn_as_small_as_asked(study) -> None:
    own = list(study.arms(study.Options("draw", question=("policies",), num=8, samples=32)))
    assert [arm.name for arm in own] == [arm.name for arm in study.policy_arms()]
    assert {(arm.num, arm.samples) for arm in own} == {(8, 16), (8, 32)}
