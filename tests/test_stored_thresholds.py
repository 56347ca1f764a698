"""A share asked of a router: the threshold that was found when it was trained, where that is for the same task and sampling."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from navtoken.commands import solve
from navtoken.engine import SamplingParams
from navtoken.generation import ready_policy
from navtoken.generation.calibration import Calibrations
from navtoken.policies import PolicyError, make_policy
from navtoken.policies.router import RouterPolicy
from navtoken.router import StoredThreshold
from navtoken.router.splits import part_of
from navtoken.tasks import load_task
from navtoken.tasks.base import Problem
from navtoken.tasks.finite import FiniteTask
from navtoken.tasks.prompts import render
from small_runs import few
from tiny_models import tiny_pair
from tiny_routers import tiny_router

STORED = tuple(
    StoredThreshold(task, threshold, temperature=temperature, share=0.2)
    for task, threshold, temperature in (
        ("arithmetic", 0.31, 0.0),
        ("arithmetic", 0.42, 1.0),
        ("all", 0.53, 0.0),
    )
)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A router asked for a share that it has thresholds for. Calibrating anew finds 0.9."""
    tiny_router(tmp_path / "router", tiny_pair(), thresholds=STORED)
    monkeypatch.setattr(
        "navtoken.generation.calibration.calibrate", lambda policy, *_: policy.with_threshold(0.9)
    )
    return f"router:{tmp_path / 'router'},share=0.2"


def threshold(asked: str, task: Any, **changes: Any) -> float | None:
    policy = ready_policy(asked, tiny_pair(), task, few(**changes))
    assert isinstance(policy, RouterPolicy)
    return policy.threshold


def test_what_was_found_in_training_is_used(asked: str) -> None:
    task = load_task("arithmetic")
    assert threshold(asked, task) == 0.31
    assert threshold(asked, task, sampling=SamplingParams(temperature=1.0)) == 0.42


def test_what_was_found_for_something_else_is_not(asked: str) -> None:
    task = load_task("arithmetic")
    assert threshold(asked, task, sampling=SamplingParams(temperature=0.5)) == 0.9
    assert threshold(asked.replace("0.2", "0.3"), task) == 0.9
    # It can be calibrated on its own problems, which is better than what fits all tasks together.
    assert threshold(asked, load_task("countdown")) == 0.9
    # Asked for by name.
    assert threshold(asked, task, calibrate_on="countdown") == 0.9


def test_a_task_to_test_only_takes_what_fits_all_tasks(asked: str) -> None:
    task = FiniteTask("exam", {"test": [Problem("exam", "p", "1 + 1", "2")]})
    assert threshold(asked, task) == 0.53


def test_another_router_in_the_same_folder_is_calibrated_anew(asked: str, tmp_path: Path) -> None:
    other = asked.replace("0.2", "0.4")
    calibrations = Calibrations(tmp_path / "run")
    task = load_task("arithmetic")
    before = ready_policy(other, tiny_pair(), task, few(), calibrations)
    assert len(calibrations.references) == 1
    tiny_router(tmp_path / "router", tiny_pair(), seed=5)
    after = ready_policy(other, tiny_pair(), task, few(), calibrations)
    assert len(calibrations.references) == 2
    assert before.reference != after.reference


DEFAULTS = (
    StoredThreshold("arithmetic", 0.31, temperature=1.0, share=0.2),
    StoredThreshold("all", 0.53, share=0.2),
    StoredThreshold("all", 0.64, share=0.3),
    StoredThreshold("all", 0.75, temperature=1.0, share=0.2),
    StoredThreshold("all", 0.86, temperature=1.0, share=0.3),
)


def test_a_routers_default_is_the_one_for_the_sampling_in_use(tmp_path: Path) -> None:
    card = tiny_router(tmp_path, tiny_pair(), thresholds=DEFAULTS, default_threshold=0.53)
    task, plain = load_task("arithmetic"), f"router:{tmp_path}"
    hot = {"sampling": SamplingParams(temperature=1.0)}
    assert threshold(plain, task) == 0.53
    assert threshold(plain, task, **hot) == 0.75
    # The reference says what routes, and means that at any sampling.
    found = ready_policy(plain, tiny_pair(), task, few(**hot))
    assert found.reference == f"router:{tmp_path},threshold=0.75,weights={card.weights[:8]}"
    assert threshold(found.reference, task) == 0.75
    # What was asked for is left alone, even where it is the default; so is a sampling that nothing was found for.
    assert threshold(f"{plain},threshold=0.53", task, **hot) == 0.53
    assert threshold(plain, task, sampling=SamplingParams(temperature=0.5)) == 0.53


def test_a_default_that_was_found_elsewhere_stays(tmp_path: Path) -> None:
    task, hot = load_task("arithmetic"), {"sampling": SamplingParams(temperature=1.0)}
    # As a checkpoint brought it: of no share that was looked for here.
    tiny_router(tmp_path / "own", tiny_pair(), thresholds=DEFAULTS, default_threshold=0.6)
    assert threshold(f"router:{tmp_path / 'own'}", task, **hot) == 0.6
    tiny_router(tmp_path / "router", tiny_pair(), thresholds=DEFAULTS, default_threshold=0.53)
    policy = make_policy(f"router:{tmp_path / 'router'}")
    assert isinstance(policy, RouterPolicy)
    assert policy.in_sampling({"temperature": 1.0}, "another LLM").threshold == 0.53
    assert policy.in_sampling({"temperature": 1.0}).threshold == 0.75


def test_a_question_is_answered_at_the_default_for_its_sampling(tmp_path: Path) -> None:
    tiny_router(tmp_path, tiny_pair(), thresholds=DEFAULTS, default_threshold=0.53)
    asked = solve.SolveOptions("1 + 1", policy=f"router:{tmp_path}", sampling=SamplingParams(temperature=1.0))
    policy = solve._policy(asked, tiny_pair(), None)
    assert isinstance(policy, RouterPolicy) and policy.threshold == 0.75


@pytest.mark.parametrize("kind", ["token", "query"])
def test_a_router_is_calibrated_on_problems_that_it_did_not_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    pair, task = tiny_pair(), load_task("arithmetic")
    tiny_router(tmp_path / "router", pair, kind=kind)
    found: list[list[list[int]]] = []

    def noting(policy: Any, _: Any, prompts: Any, *__: Any) -> Any:
        found.append(prompts)
        return policy.with_threshold(0.9)

    monkeypatch.setattr("navtoken.generation.calibration.calibrate", noting)
    name = "router" if kind == "token" else "query"
    options = few(calibration_num=4)
    ready_policy(f"{name}:{tmp_path / 'router'},share=0.2", pair, task, options)
    ready_policy("entropy,share=0.2", pair, task, options)
    first = list(task.problems("train", 100, options.seed))
    kept = [problem for problem in first if part_of(problem.problem_id) == "validation"][:4]
    ids = [
        [render(pair.tokenizer, task, each, options.prompts).ids for each in own] for own in (kept, first[:4])
    ]
    assert found == ids


def test_a_router_without_problems_to_be_calibrated_on_says_so(asked: str) -> None:
    learnt = next(
        each
        for each in load_task("arithmetic").problems("train", 9, 0)
        if part_of(each.problem_id) == "train"
    )
    task = FiniteTask("small", {"train": [learnt]})
    with pytest.raises(PolicyError, match="calibrate_on"):
        threshold(asked, task)


def test_a_threshold_that_missed_its_share_or_was_found_with_another_limit_is_not_used(
    tmp_path: Path, asked: str
) -> None:
    task = load_task("arithmetic")
    found = StoredThreshold("arithmetic", 0.31, share=0.2, realised_share=0.215, max_tokens=6)
    for stored, wanted in (
        (found, 0.31),
        (replace(found, realised_share=0.17), 0.9),
        (replace(found, realised_share=None), 0.31),
        (replace(found, max_tokens=7), 0.9),
        (replace(found, max_tokens=None), 0.31),
    ):
        tiny_router(tmp_path / "router", tiny_pair(), thresholds=(stored,))
        assert threshold(asked, task) == wanted
