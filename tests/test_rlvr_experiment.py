"""The tables of the RLVR experiment: differences problem by problem, arms by their names, and the plan that the runs keep to."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


rlvr, rlvr_report = loaded("rlvr"), loaded("rlvr_report")


def run(name: str, seed: int, correct: dict[str, float]) -> dict[str, Any]:
    accuracy = sum(correct.values()) / len(correct)
    test = {"accuracy": accuracy, "correct": {"countdown": correct}, "mean_length": 50.0}
    return {"name": name, "seed": seed, "test": {"countdown": test}}


def test_a_difference_is_taken_problem_by_problem_over_the_seeds_that_both_have() -> None:
    one = [run("top20_0", 0, {"a": 1.0, "b": 0.5}), run("top20_1", 1, {"a": 1.0, "b": 1.0})]
    other = [run("all_0", 0, {"a": 0.5, "b": 0.5}), run("all_1", 1, {"a": 0.5, "b": 0.0})]
    found = rlvr_report.difference(one, other, "countdown")
    # Problem a: 1 - 0.5; problem b: 0.75 - 0.25.
    assert found.value == pytest.approx(0.5)
    assert found.error_problems == pytest.approx(0.0)
    assert found.by_seed == pytest.approx([0.25, 0.75])
    assert found.error == pytest.approx((0.125 / 2) ** 0.5)
    alone = rlvr_report.difference(one, [*other[:1], run("all_7", 7, {"a": 0.0, "b": 0.0})], "countdown")
    assert alone.by_seed == pytest.approx([0.25])


def test_runs_go_to_their_arms() -> None:
    names = ("all_0", "top20_1", "top20_0", "all_0_longer", "all_0_again")
    arms = rlvr_report.by_arm([run(name, int(name.split("_")[1]), {"a": 1.0}) for name in names])
    assert {arm: [each["seed"] for each in runs] for arm, runs in arms.items()} == {
        "all": [0],
        "top20": [0, 1],
        "all_longer": [0],
        "all_again": [0],
    }


def test_what_went_on_is_held_against_what_it_went_on_from() -> None:
    accuracies = {
        "all_0": 0.1,
        "all_0_again": 0.3,
        "all_0_limit": 0.4,
        "all_0_more": 0.5,
        "all_0_longer": 0.9,
    }
    runs = [run(name, 0, {"a": accuracy}) for name, accuracy in accuracies.items()]
    for each in runs:
        each |= {"drift": [], "provenance": {"git_revision": "r"}}
        each["test"] = dict.fromkeys(rlvr_report.TESTS, each["test"]["countdown"])
    found = rlvr_report.summary(rlvr_report.by_arm(runs), None)["differences"]
    assert {name: round(each["countdown"]["value"], 3) for name, each in found.items()} == {
        "all_again - all": 0.2,
        "all_limit - all_again": 0.1,
        "all_more - all_limit": 0.1,
        "all_longer - all_more": 0.4,
    }


def test_arms_differ_in_their_selection_alone(tmp_path: Path) -> None:
    planned = [rlvr.planned_run(arm, select, 0, 3e-4, tmp_path) for arm, select in rlvr.ARMS.items()]
    first = planned[0].options
    for each in planned:
        same = {name: getattr(each.options, name) for name in vars(first) if name not in ("selection", "out")}
        assert same == {name: getattr(first, name) for name in same}
    assert [each.options.selection.select for each in planned] == [
        "all",
        "top_entropy:0.2",
        "bottom_entropy:0.8",
        "random:0.2",
    ]


def test_the_seed_that_the_rate_was_tuned_with_is_no_arm_s() -> None:
    assert rlvr.TUNE_SEED not in (*rlvr.SEEDS, rlvr.TEST_SEED)
