"""The rewards of reinforcement learning by reference, in the form that TRL's trainers call.

    verifier                            1 for a right answer, 0 for any other: the task's exact verifier
    python:package.module.function      anybody's function, plain or async (`reward_functions`)
    judge:URL,model=NAME,rubric=FILE    a model scores what nothing can check (`rubric_judge`)

The first reward of a run is its *outcome*. Dynamic sampling (DAPO) keeps the groups of responses whose outcomes differ, before
length or anything else is added: a shaped reward differs in nearly every group, and would keep those that are all right or all
wrong. `Outcome` computes it once, for the choice and for the trainer.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from navtoken.reference import Reference, parse_reference
from navtoken.rlvr.problems import ProblemSet
from navtoken.rlvr.reward_functions import HOOKS, OUTCOME, RewardError, imported, name_of
from navtoken.rlvr.rubric_judge import rubric_judge_from
from navtoken.tasks.loading import require

__all__ = ["Outcome", "Reward", "RewardError", "is_informative", "overlong", "reward_named"]

TOLERANCE = 1e-4
"""A spread of rewards up to this is float noise. Rewards are of the order of 1: those that lie closer are not told apart."""

Scores = list[float | None]
"""One per completion; None where there is no score, which TRL leaves out of the sum and of the group's mean."""


class Reward(Protocol):
    """What TRL calls with `prompts`, `completions`, `completion_ids`, the rows' columns and its hooks, all by keyword.

    Gives one number or None per completion, or, where it is async, a promise of them.
    """

    __name__: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


Maker = Callable[[Reference, ProblemSet, Path | None], Reward]


def reward_named(reference: str, problems: ProblemSet, folder: Path | None = None) -> Reward:
    """Make a reward. A judge keeps its scores in `folder`, unless its reference names another: a run that goes on pays nothing twice.

    Raises `BadReference`, `RewardError` and what judges raise (`RubricError`, `EndpointOptionError`), naming the part that does
    not fit.
    """
    parsed = parse_reference(reference)
    if parsed.name not in _MAKERS:
        raise RewardError(
            f"no reward is called '{parsed.name}'; there are {', '.join(_SPELLED.get(name, name) for name in _MAKERS)}"
        )
    return _MAKERS[parsed.name](parsed, problems, folder)


class VerifierReward:
    """1 for a response that ends in a right answer, 0 for one that does not."""

    __name__ = "verifier"

    def __init__(self, problems: ProblemSet) -> None:
        self.problems = problems

    def __call__(
        self, completions: Sequence[str], task: Sequence[str], problem_id: Sequence[str], **columns: Any
    ) -> Scores:
        """Raises `ProblemError` for a row whose problem is not in this run."""
        asked = zip(task, problem_id, completions, strict=True)
        return [float(self.problems.verify(name, problem, text)) for name, problem, text in asked]


class Outcome:
    """A reward that dynamic sampling asks before the trainer does, and that says the same to both.

    Always a plain function to TRL, whatever it wraps. Async functions run in one event loop that is kept from call to call, as
    TRL keeps one: clients that they hold open belong to their loop.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.__name__ = name_of(reward)
        self._runner: asyncio.Runner | None = None

    def score(
        self,
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        *,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
    ) -> Scores:
        """Outcomes of completions, each of the row beside it; a stored one is computed anew.

        There is no `log_extra`: its values would stand beside other rows once groups are left out. Raises `RewardError` for
        answers that are no rewards, and what the reward raises.
        """
        if not len(rows) == len(completions) == len(completion_ids):
            raise RewardError(
                f"{len(rows)} rows, {len(completions)} completions and {len(completion_ids)} lists of token ids do not belong "
                "together; give one of each per response"
            )
        if not rows:
            return []
        hooks = dict.fromkeys(HOOKS, _ignored) | {"trainer_state": trainer_state}
        if log_metric is not None:
            hooks["log_metric"] = log_metric
        texts = {"prompts": [row["prompt"] for row in rows], "completions": list(completions)}
        return self._computed({**texts, "completion_ids": list(completion_ids), **_columns(rows), **hooks})

    def __call__(self, **given: Any) -> Scores:
        """TRL's call: outcomes that rows hold already, else computed ones."""
        if OUTCOME in given:
            return [_score(value, self.__name__) for value in given[OUTCOME]]
        return self._computed(given)

    def close(self) -> None:
        """Let go of the event loop, and of what the reward holds."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None
        close = getattr(self.reward, "close", None)
        if callable(close):
            close()

    def _computed(self, given: dict[str, Any]) -> Scores:
        returned = self.reward(**given)
        if isinstance(returned, Awaitable):
            self._runner = self._runner or asyncio.Runner()
            returned = self._runner.run(_awaited(returned))
        try:
            scores = [_score(value, self.__name__) for value in returned]
        except TypeError as error:
            raise RewardError(
                f"reward '{self.__name__}' returned {returned!r:.100}; it must return a list of numbers and None"
            ) from error
        if len(scores) != len(given["completions"]):
            raise RewardError(
                f"reward '{self.__name__}' returned {len(scores)} values for {len(given['completions'])} completions; it must "
                "return one for each"
            )
        return scores


def is_informative(values: Sequence[float | None], tolerance: float = TOLERANCE) -> bool:
    """Do the outcomes of a group differ, so that it has something to learn from? For 0 and 1: are some right, but not all?

    Values without a score do not count; fewer than two others say nothing. A spread up to `tolerance` is float noise, which
    the standard deviation would blow up to advantages of full size.
    """
    scored = [value for value in values if value is not None and not math.isnan(value)]
    return len(scored) > 1 and max(scored) - min(scored) > tolerance


def overlong(max_tokens: int, cache: int) -> Reward:
    """DAPO's soft punishment of length, TRL's own: 0 up to `max_tokens - cache` tokens, down to -1 at `max_tokens`.

    TRL checks neither: a cache above the maximum punishes every response. Raises `RewardError`.
    """
    if not 0 < cache <= max_tokens:
        raise RewardError(
            f"a cache of {cache} tokens does not fit responses of up to {max_tokens}; give between 1 and {max_tokens}"
        )
    rewards = require("trl.rewards", "rl", "the punishment of overlong responses")
    made: Reward = rewards.get_soft_overlong_punishment(max_tokens, cache)
    return made


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns as TRL makes them of rows."""
    left_out = ("prompt", "completion", "completion_ids", OUTCOME)
    return {key: [row[key] for row in rows] for key in rows[0] if key not in left_out}


def _score(value: Any, name: str) -> float | None:
    """A number, or None for none: columns of a data set may hold NaN in its place. Raises `RewardError`."""
    if value is None:
        return None
    try:
        # Text is no number here, whatever it spells.
        number = math.inf if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise RewardError(f"reward '{name}' returned {value!r:.100}; it must be a finite number or None")
    return None if math.isnan(number) else number


async def _awaited(promise: Awaitable[Any]) -> Any:
    return await promise


def _ignored(*args: Any, **kwargs: Any) -> None:
    """Stands for a hook of TRL's: functions may call theirs without asking whether there is one."""


def _check_options(reference: Reference) -> None:
    for key in reference.options:
        raise RewardError(f"'{reference}': {reference.name} has no option '{key}'; it knows none")


def _verifier(reference: Reference, problems: ProblemSet, folder: Path | None) -> Reward:
    _check_options(reference)
    if reference.target is not None:
        raise RewardError(f"'{reference}': verifier takes nothing after ':'")
    return VerifierReward(problems)


def _python(reference: Reference, problems: ProblemSet, folder: Path | None) -> Reward:
    _check_options(reference)
    return imported(reference)


def _judge(reference: Reference, problems: ProblemSet, folder: Path | None) -> Reward:
    return rubric_judge_from(reference, folder)


_MAKERS: dict[str, Maker] = {"verifier": _verifier, "python": _python, "judge": _judge}
_SPELLED = {"python": "python:package.module.function", "judge": "judge:URL,model=NAME,rubric=FILE"}
