"""Anybody's reward by its import path: `python:package.module.function`, a function as TRL's trainers take them.

It is imported and held against the call that TRL will make before anything is loaded or generated: a misspelt path or a function
without `**kwargs` would otherwise end the run after its first batch.
"""

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

from navtoken.reference import Reference

COLUMNS = ("prompt_ids", "task", "problem_id", "question", "answer")
"""What rows have beside the prompt (`ProblemSet.rows`)."""
HOOKS = ("trainer_state", "log_extra", "log_metric")
"""What TRL hands to a reward beside columns."""
OUTCOME = "outcome"
"""Column that dynamic sampling adds to rows: what the first reward said."""

_CALL = ("prompts", "completions", "completion_ids", *COLUMNS, OUTCOME, *HOOKS)


class RewardError(ValueError):
    """A reward that cannot be made, or an answer of one that is none."""


def imported(reference: Reference) -> Callable[..., Any]:
    """The callable that `python:package.module.function` names; `python:package.module:object.method` reaches deeper.

    What the module itself raises when it is imported comes through as it is. Raises `RewardError` where the path leads nowhere, or
    to what TRL cannot call.
    """
    module, name = _parted(reference)
    try:
        found: Any = attrgetter(name)(import_module(module))
    except ImportError as error:
        raise RewardError(
            f"'{reference}': '{module}' cannot be imported ({error}); install it, or where it is a file of this folder set "
            "PYTHONPATH to the folder"
        ) from error
    except AttributeError as error:
        raise RewardError(f"'{reference}': {error}; check the name after the module") from error
    if not callable(found) or inspect.isclass(found):
        kind = "a class" if inspect.isclass(found) else f"a value of type {type(found).__name__}"
        raise RewardError(f"'{reference}' is {kind}, which TRL cannot call for rewards; name a function")
    _check_call(found, reference)
    reward: Callable[..., Any] = found
    return reward


def name_of(reward: Callable[..., Any]) -> str:
    """The name under which TRL logs a reward: partials have that of what they wrap, objects that of their class."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


def _parted(reference: Reference) -> tuple[str, str]:
    target = reference.target or ""
    module, _, name = target.partition(":") if ":" in target else target.rpartition(".")
    parts = [*module.split("."), *name.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise RewardError(f"'{reference}': write python:package.module.function")
    return module, name


def _check_call(reward: Callable[..., Any], reference: Reference) -> None:
    try:
        signature = inspect.signature(reward)
    except ValueError:
        # Some compiled functions do not say what they take.
        return
    try:
        signature.bind(**dict.fromkeys(_CALL))
    except TypeError as error:
        raise RewardError(
            f"'{reference}' cannot be called as TRL calls rewards, with {', '.join(_CALL)} ({error}); write def "
            f"{name_of(reward)}(completions, **kwargs)"
        ) from error
