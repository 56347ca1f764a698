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
    short, long = (
        {f"p{i}": [round(share * num), int(num)] for i, num in enumerate(times * total)}
        for times, share in ((1, 0.2), (3, 0.4))
    )
    found = told._interval([{"a": short, "b": long}])
    sums = [np.sum(list(each.values()), 0) for each in (short, long)]
    wanted = sum(llm / whole for llm, whole in sums) / 2
    assert found["share"] == pytest.approx(wanted)
    assert found["share_low"] < wanted < found["share_high"]
    less = told._interval([{"a": short, "b": long}, {"a": short, "b": long}])
    assert less == {"share": 0.0, "share_low": 0.0, "share_high": 0.0}
    with pytest.raises(ValueError, match="different problems of b"):
        told._interval([{"b": long}, {"b": {"other": [1, 2]}}])


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
    study.draw(arm, tmp_path, QUIET)
    assert (folder / "table.json").stat().st_mtime_ns == before
    for other in (replace(arm, num=3), replace(arm, policy="llm"), replace(arm, llm="embedded:base")):
        with pytest.raises(SystemExit, match="was drawn with"):
            study.draw(other, tmp_path, QUIET)


def test_a_model_that_is_not_there_is_named_before_anything_is_drawn(study, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no/such/model' is missing; make it"):
        study.draw(study.Arm("x", "llm", llm="no/such/model"), tmp_path, QUIET)


def test_a_part_of_the_study_is_told(study, told, tmp_path: Path) -> None:
    options = study.Options("report", question=("policies",), num=2, samples=4)
    arms = [replace(arm, tasks=("arithmetic",)) for arm in study.arms(options)]
    with pytest.raises(SystemExit, match="no question's arms are all under"):
        told.report(arms, tmp_path, tmp_path / "out", QUIET)
    for arm in arms:
        study.draw(arm, tmp_path, QUIET)
    told.report(arms, tmp_path, tmp_path / "out", QUIET)
    made = json.loads((tmp_path / "out" / "scale.json").read_text())
    assert made.keys() == {"policies", "labels", "provenance"}
    assert {row["k"] for row in made["policies"]["rows"]} == {1, 4}
    assert made["policies"]["across"] and made["policies"]["shares"].keys() >= {"router 10%", "hindsight"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| llm |" in table and "Training" not in table
    assert {path.name for path in (tmp_path / "out").glob("*.svg")} == {
        "samples.svg",
        "tokens.svg",
        "cost.svg",
        "diversity.svg",
    }


def test_the_slm_is_trained_as_the_arms_were(study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(study, "train_rl", lambda options, console: asked.append(options))
    options = study.Options("train", work=tmp_path, tuned=ROOT / "experiments" / "rlvr" / "runs")
    study.trained_slms(options, QUIET)
    assert [each.selection.select for each in asked] == ["top_entropy:0.2", "all"]
    assert {(each.model, each.update.learning_rate) for each in asked} == {("embedded:slm", 3e-4)}
    for each in asked:
        assert str(each.out / "model") in {study.slm_of(name, tmp_path) for name in study.SLMS}
        (each.out / "model").mkdir(parents=True)
    study.trained_slms(options, QUIET)
    assert len(asked) == 2


def test_all_llms_meet_the_thresholds_that_ship(study) -> None:
    thresholds = study.shipped_thresholds()
    assert list(thresholds) == list(study.SHARES) and sorted(thresholds.values(), reverse=True) == list(
        thresholds.values()
    )
    arms = [arm for arm in study.both_halves(study.Options("draw")) if arm.name.startswith("router 20%")]
    assert len(arms) == 4 and {arm.policy for arm in arms} == {f"router,threshold={thresholds[0.2]!r}"}


def test_one_question_is_drawn_as_small_as_asked(study) -> None:
    own = list(study.arms(study.Options("draw", question=("policies",), num=8, samples=32)))
    assert [arm.name for arm in own] == [arm.name for arm in study.policy_arms()]
    assert {(arm.num, arm.samples) for arm in own} == {(8, 16), (8, 32)}
