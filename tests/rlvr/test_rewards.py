"""Rewards by reference, the outcome that dynamic sampling and the trainer share, and when a group has something to learn from."""

import asyncio
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from navtoken.reference import BadReference
from navtoken.rlvr.problems import ProblemError, ProblemSet
from navtoken.rlvr.reward_functions import COLUMNS, HOOKS, name_of
from navtoken.rlvr.rewards import Outcome, RewardError, is_informative, overlong, reward_named
from navtoken.rlvr.rubric_judge import RubricError, RubricJudge
from navtoken.tasks.base import GeneratedTask

NONE = ProblemSet({}, {})
FUNCTIONS = """
import asyncio
import functools


def length(completions, **kwargs):
    return [float(len(text)) for text in completions]


async def later(completions, question, **kwargs):
    await asyncio.sleep(0)
    return [float(len(text) + len(asked)) for text, asked in zip(completions, question)]


def without_kwargs(completions):
    return [0.0 for _ in completions]


def asks_for_more(completions, colour, **kwargs):
    return [0.0 for _ in completions]


class Grader:
    def __call__(self, completions, **kwargs):
        return [1.0 for _ in completions]

    def grade(self, completions, **kwargs):
        return [0.5 for _ in completions]


grader = Grader()
short = functools.partial(length, limit=3)
NUMBER = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of somebody's own rewards."""
    folder = tmp_path / "somebodys_own"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "rewards.py").write_text(FUNCTIONS)
    (folder / "broken.py").write_text("import not_there_at_all\n")
    (folder / "wrong.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "somebodys_own"


def rows_of(problems: ProblemSet) -> list[dict[str, Any]]:
    """Rows as a data set holds them, without a tokenizer."""
    return [
        {"prompt": f"<{problem.prompt}>", "prompt_ids": [1, 2], "task": task, "problem_id": problem_id}
        | {"question": problem.prompt, "answer": str(problem.answer)}
        for (task, problem_id), problem in problems.problems.items()
    ]


def rows(number: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"p{i}",
            "prompt_ids": [i],
            "task": "t",
            "problem_id": str(i),
            "question": "q" * i,
            "answer": "a",
        }
        for i in range(number)
    ]


def as_trl_calls(rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> dict[str, Any]:
    """TRL's keywords (`GRPOTrainer._calculate_rewards`)."""
    keys = [key for key in rows[0] if key not in ("prompt", "completion", "completion_ids")]
    return {
        "prompts": [row["prompt"] for row in rows],
        "completions": list(completions),
        "completion_ids": [[1] for _ in rows],
        **{key: [row[key] for row in rows] for key in keys},
        "trainer_state": SimpleNamespace(global_step=0),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }


class Recorded:
    """A reward that says what it is told to, and keeps what it was given."""

    __name__ = "recorded"

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **given: Any) -> Any:
        self.calls.append(given)
        return self.answer


# ---- by reference ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["countdown", "knights", "arithmetic"])
def test_the_verifier_tells_right_from_wrong(task: str) -> None:
    problems = ProblemSet.load([task], "train", 6, seed=3)
    loaded = problems.tasks[task]
    given = rows_of(problems)
    assert isinstance(loaded, GeneratedTask)
    right = [loaded.reference(problem, Random(0)) for problem in problems.problems.values()]
    reward = reward_named("verifier", problems)
    assert reward.__name__ == "verifier"
    assert reward(**as_trl_calls(given, right)) == [1.0] * 6
    assert (
        reward(**as_trl_calls(given, ["", "I do not know.", right[0][:5], "=", "\\boxed{}", "answer is"]))
        == [0.0] * 6
    )
    # Each text is held against its own row's problem.
    mixed = [right[0], "no", right[2], "no", right[4], "no"]
    assert reward(**as_trl_calls(given, mixed)) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]


def test_the_verifier_refuses_a_problem_of_another_run() -> None:
    reward = reward_named("verifier", ProblemSet.load(["arithmetic"], "train", 1, seed=0))
    with pytest.raises(ProblemError, match="no problem '0' of task 't'"):
        reward(**as_trl_calls(rows(1), ["x"]))


def test_functions_by_their_import_path(package: str) -> None:
    for path in (f"{package}.rewards.length", f"{package}.rewards:length"):
        reward = reward_named(f"python:{path}", NONE)
        assert reward.__name__ == "length"
        assert reward(**as_trl_calls(rows(2), ["abc", ""])) == [3.0, 0.0]
    assert reward_named(f"python:{package}.rewards:grader.grade", NONE)(completions=["x"]) == [0.5]
    assert name_of(reward_named(f"python:{package}.rewards.grader", NONE)) == "Grader"
    assert name_of(reward_named(f"python:{package}.rewards.short", NONE)) == "length"


def test_async_functions_stay_async(package: str) -> None:
    reward = reward_named(f"python:{package}.rewards.later", NONE)
    assert asyncio.iscoroutinefunction(reward)
    assert asyncio.run(reward(**as_trl_calls(rows(2), ["abc", ""]))) == [3.0, 1.0]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (
            "rewarding",
            "no reward is called 'rewarding'; there are verifier, python:package.module.function, judge:URL",
        ),
        ("verifier:math", "takes nothing after ':'"),
        ("verifier,weight=2", "verifier has no option 'weight'"),
        ("python", "write python:package.module.function"),
        ("python:length", "write python:package.module.function"),
        ("python:a.b.", "write python:package.module.function"),
        ("python:__import__('os').system('true')", "write python:package.module.function"),
        ("python:somebodys_own.rewards.length,limit=2", "python has no option 'limit'"),
        ("python:nobodys_own.rewards.length", r"'nobodys_own.rewards' cannot be imported .*PYTHONPATH"),
        ("python:somebodys_own.broken.length", "No module named 'not_there_at_all'"),
        ("python:somebodys_own.rewards.height", "has no attribute 'height'"),
        ("python:somebodys_own.rewards.NUMBER", "a value of type int, which TRL cannot call"),
        ("python:somebodys_own.rewards.Grader", "is a class, which TRL cannot call"),
        (
            "python:somebodys_own.rewards.without_kwargs",
            r"write def without_kwargs\(completions, \*\*kwargs\)",
        ),
        ("python:somebodys_own.rewards.asks_for_more", "missing a required argument: 'colour'"),
    ],
)
def test_references_that_do_not_fit(package: str, reference: str, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        reward_named(reference, NONE)


def test_what_a_module_raises_itself_comes_through(package: str) -> None:
    with pytest.raises(RuntimeError, match="no licence"):
        reward_named(f"python:{package}.wrong.length", NONE)


def test_the_grammar_is_the_projects() -> None:
    with pytest.raises(BadReference, match="nothing after ':'"):
        reward_named("python:", NONE)


def test_a_judge_by_reference_keeps_its_scores_in_the_runs_folder_unless_told_otherwise(
    tmp_path: Path,
) -> None:
    judge = reward_named("judge:http://h:1/v1,model=m", NONE, tmp_path / "run")
    other = reward_named(f"judge:http://h:1/v1,model=m,cache={tmp_path / 'else'}", NONE, tmp_path / "run")
    assert isinstance(judge, RubricJudge) and isinstance(other, RubricJudge)
    assert judge.__name__ == "judge" and name_of(judge) == "judge"
    assert (judge.options.cache, other.options.cache) == (str(tmp_path / "run"), str(tmp_path / "else"))
    judge.close()
    other.close()
    with pytest.raises(RubricError, match="no option 'rubrick'"):
        reward_named("judge:http://h:1/v1,model=m,rubrick=x", NONE)


def test_names_are_those_under_which_trl_logs() -> None:
    trl_utils = pytest.importorskip("trl.trainer.utils")
    judged = functools.partial(functools.partial(rows_of))
    for reward in (rows_of, judged, Recorded([]), SimpleNamespace):
        assert name_of(reward) == trl_utils.get_callable_name(reward)


# ---- the outcome ----------------------------------------------------------------------------------------------


def test_score_calls_as_trl_does() -> None:
    """The same keywords and columns, whether dynamic sampling asks or the trainer."""
    reward = Recorded([1.0, 0.0, None])
    outcome = Outcome(reward)
    assert outcome.__name__ == "recorded"
    given = rows(3)
    assert outcome.score(given, ["a", "b", "c"], [[1], [1], [1]]) == [1.0, 0.0, None]
    assert outcome(**as_trl_calls(given, ["a", "b", "c"])) == [1.0, 0.0, None]
    ours, theirs = reward.calls
    assert ours.keys() == theirs.keys() == {"prompts", "completions", "completion_ids", *COLUMNS, *HOOKS}
    assert all(ours[key] == theirs[key] for key in ours if key not in HOOKS)
    # Hooks can be called without asking whether there is one.
    assert ours["log_metric"]("x", 1.0) is None and ours["log_extra"]("x", [1, 2, 3]) is None


def test_score_hands_on_the_trainers_state_and_metrics() -> None:
    reward = Recorded([1.0])
    logged: list[tuple[str, float]] = []
    state = SimpleNamespace(global_step=7)
    Outcome(reward).score(
        rows(1),
        ["a"],
        [[1]],
        trainer_state=state,
        log_metric=lambda name, value: logged.append((name, value)),
    )
    reward.calls[0]["log_metric"]("judge/cached", 0.5)
    assert logged == [("judge/cached", 0.5)] and reward.calls[0]["trainer_state"] is state


def test_a_stored_outcome_is_not_computed_again() -> None:
    reward = Recorded([9.0, 9.0, 9.0, 9.0])
    outcome = Outcome(reward)
    stored = [row | {"outcome": value} for row, value in zip(rows(4), [1.0, None, math.nan, 0], strict=True)]
    assert outcome(**as_trl_calls(stored, ["a", "b", "c", "d"])) == [1.0, None, None, 0.0]
    assert reward.calls == []
    # Dynamic sampling asks about new completions of rows that held an old outcome.
    assert outcome.score(stored, ["e", "f", "g", "h"], [[1]] * 4) == [9.0] * 4
    assert "outcome" not in reward.calls[0]


def test_async_rewards_are_run_in_one_loop(package: str) -> None:
    """Clients that a function keeps open belong to the loop in which they were opened."""
    loops = []

    async def remembers(completions: list[str], **kwargs: Any) -> list[float]:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    outcome = Outcome(remembers)
    assert not asyncio.iscoroutinefunction(outcome) and not asyncio.iscoroutinefunction(outcome.__call__)
    assert outcome.score(rows(2), ["abc", ""], [[1], [1]]) == [3.0, 0.0]
    assert outcome(**as_trl_calls(rows(1), ["ab"])) == [2.0]
    assert loops[0] is loops[1]
    outcome.close()
    assert loops[0].is_closed()
    by_path = Outcome(reward_named(f"python:{package}.rewards.later", NONE))
    assert by_path.score(rows(2), ["abc", ""], [[1], [1]]) == [3.0, 1.0]
    by_path.close()


def test_other_kinds_of_numbers_are_numbers() -> None:
    outcome = Outcome(Recorded(value for value in (True, 1, torch.tensor(0.5), math.nan)))
    assert outcome.score(rows(4), ["a"] * 4, [[1]] * 4) == [1.0, 1.0, 0.5, None]
    assert Outcome(Recorded(torch.tensor([0.25, 0.5]))).score(rows(2), ["a"] * 2, [[1]] * 2) == [0.25, 0.5]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        (None, "returned None; it must return a list"),
        (1.0, r"returned 1\.0; it must return a list"),
        ([1.0, "1.0"], "returned '1.0'; it must be a finite number"),
        ([1.0, math.inf], "returned inf; it must be a finite number"),
        ([1.0, [1.0]], r"returned \[1\.0\]; it must be a finite number"),
    ],
)
def test_answers_that_are_no_rewards(answer: Any, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        Outcome(Recorded(answer)).score(rows(2), ["a", "b"], [[1], [1]])


def test_lists_that_do_not_belong_together() -> None:
    with pytest.raises(RewardError, match="2 rows, 1 completions and 2 lists"):
        Outcome(Recorded([1.0])).score(rows(2), ["a"], [[1], [1]])
    assert Outcome(Recorded([1.0])).score([], [], []) == []


# ---- groups with something to learn from ----------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 1.0]), max_size=20))
def test_right_and_wrong_is_informative_where_some_are_right_but_not_all(values: list[float]) -> None:
    assert is_informative(values) == (0 < sum(values) < len(values))


@given(
    st.floats(-2, 2),
    st.lists(st.floats(-1, 1, exclude_min=True, exclude_max=True), max_size=20),
    st.floats(1e-12, 5e-5),
)
@example(0.3, [0.0, 0.1 + 0.2 - 0.3], 1.0)
def test_float_noise_is_no_spread(value: float, noise: list[float], size: float) -> None:
    assert not is_informative([value + size * each for each in noise])


@given(st.lists(st.none() | st.floats(0, 1) | st.just(math.nan), max_size=12), st.randoms())
def test_values_without_a_score_do_not_count_and_order_does_not_matter(
    values: list[float | None], random: Any
) -> None:
    scored = [value for value in values if value is not None and not math.isnan(value)]
    expected = len(scored) > 1 and max(scored) - min(scored) > 1e-4
    shuffled = list(values)
    random.shuffle(shuffled)
    assert is_informative(values) == is_informative(shuffled) == is_informative(scored) == expected


@given(st.none() | st.floats(), st.integers(0, 8))
def test_one_scored_value_says_nothing(value: float | None, others: int) -> None:
    assert not is_informative([value] + [None, math.nan] * others)


def test_the_tolerance_is_what_it_says() -> None:
    assert is_informative([0.5, 0.5002]) and not is_informative([0.5, 0.5002], tolerance=1e-3)


# ---- length ---------------------------------------------------------------------------------------------------


def test_overlong_is_the_papers_ramp() -> None:
    pytest.importorskip("trl")
    reward = overlong(100, 20)
    lengths = [0, 80, 81, 90, 100, 101, 500]
    assert reward(completion_ids=[[1] * length for length in lengths], completions=[]) == pytest.approx(
        [0, 0, -0.05, -0.5, -1, -1, -1]
    )
    assert overlong(10, 10)(completion_ids=[[1] * 5]) == [-0.5]


@pytest.mark.parametrize(("max_tokens", "cache"), [(10, 0), (10, 11), (0, 1), (10, -1)])
def test_overlong_refuses_a_cache_that_does_not_fit(max_tokens: int, cache: int) -> None:
    with pytest.raises(RewardError, match=f"a cache of {cache} tokens"):
        overlong(max_tokens, cache)
