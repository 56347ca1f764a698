"""A share asked of a router: the threshold that was found when it was trained, where that is for the same task and sampling."""

from pathlib import Path
from typing import Any

import pytest

from navtoken.engine import SamplingParams
from navtoken.generation import ready_policy
from navtoken.generation.calibration import Calibrations
from navtoken.policies.router import RouterPolicy
from navtoken.router import StoredThreshold
from navtoken.tasks import load_task
from navtoken.tasks.base import Problem
from navtoken.tasks.finite import FiniteTask
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
