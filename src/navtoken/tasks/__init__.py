"""Tasks by reference: `load_task("countdown,level=2")`, `load_task("jsonl:FILE")`, `load_task("aime24")`.

Loaders import their module when they are first asked for, so naming one task never needs another's packages.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable
from functools import partial

from navtoken.reference import Reference, parse_reference
from navtoken.tasks.base import Problem, Split, Task
from navtoken.tasks.loading import TaskError, TaskOptionError, UnknownTaskError, typed_options

__all__ = ["Problem", "Split", "Task", "TaskError", "known_tasks", "load_task"]

Loader = Callable[[Reference], Task]


def load_task(reference: str | Reference) -> Task:
    """Load the task that `name[:target][,key=value...]` names.

    Raises `UnknownTaskError` listing the known ones, `TaskOptionError` for an option that the task does not have,
    `MissingExtraError` where an optional package is missing, and `TaskError` for unusable data.
    """
    parsed = parse_reference(reference) if isinstance(reference, str) else reference
    loader = _LOADERS.get(parsed.name)
    if loader is None:
        raise UnknownTaskError(_unknown(parsed.name))
    return loader(parsed)


def known_tasks() -> list[str]:
    """How each task is named in a reference."""
    return [_SPELLED.get(name, name) for name in _LOADERS]


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, _LOADERS, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"unknown task '{name}'; known: {', '.join(known_tasks())}.{hint}"


def _generated(class_name: str, reference: Reference) -> Task:
    if reference.target is not None:
        raise TaskOptionError(
            f"task '{reference.name}' takes no ':{reference.target}'; write {reference.name},key=value"
        )
    family = getattr(importlib.import_module(f"navtoken.tasks.{reference.name}"), class_name)
    defaults = {key: parameter.default for key, parameter in inspect.signature(family).parameters.items()}
    options = typed_options(reference.name, reference.options, defaults)
    try:
        task: Task = family(**options)
    except ValueError as error:
        raise TaskOptionError(f"task '{reference}': {error}") from error
    return task


def _hub(reference: Reference) -> Task:
    from navtoken.tasks.hub import load_hub_task

    return load_hub_task(reference)


def _jsonl(reference: Reference) -> Task:
    from navtoken.tasks.jsonl import load_jsonl_task

    return load_jsonl_task(reference)


def _gym(reference: Reference) -> Task:
    from navtoken.tasks.gym import load_gym_task

    return load_gym_task(reference)


_HUB_NAMES = (
    "aime24",
    "aime25",
    "amc23",
    "math500",
    "minerva",
    "olympiad",
    "gpqa-diamond",
    "gsm8k",
    "dapo-math-17k",
)

_LOADERS: dict[str, Loader] = {
    "countdown": partial(_generated, "Countdown"),
    "knights": partial(_generated, "Knights"),
    "arithmetic": partial(_generated, "Arithmetic"),
    **dict.fromkeys(_HUB_NAMES, _hub),
    "jsonl": _jsonl,
    "gym": _gym,
}

_SPELLED = {"jsonl": "jsonl:FILE", "gym": "gym:NAME"}
