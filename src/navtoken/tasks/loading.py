"""What every task loader needs: errors that name the remedy, typed options, optional packages.

Options arrive as strings from the reference grammar; an unknown or ill-typed one is an error at load time, so
that a typing mistake never turns into a run with the default.
"""

import importlib
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any


class TaskError(ValueError):
    """A task reference, or the data behind it, that cannot be used as it stands."""


class UnknownTaskError(TaskError):
    """No task has this name."""


class TaskOptionError(TaskError):
    """An option that the task does not have, or a value of the wrong type."""


class MissingExtraError(ImportError):
    """A package of an optional extra is not installed."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional `module`, or raise `MissingExtraError` that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package '{module}', which is not installed: pip install navtoken[{extra}]"
        ) from error


def typed_options(owner: str, given: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Convert option strings to the types of their defaults (a default of None takes a string).

    Raises `TaskOptionError` naming the options that `owner` has.
    """
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        known = ", ".join(sorted(defaults)) or "none"
        raise TaskOptionError(f"task '{owner}' has no option '{unknown[0]}'; its options: {known}")
    return {key: _typed(owner, key, text, defaults[key]) for key, text in given.items()}


def _typed(owner: str, key: str, text: str, default: Any) -> Any:
    if default is None or isinstance(default, str):
        return text
    try:
        value = json.loads(text.lower() if isinstance(default, bool) else text)
    except ValueError:
        value = text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise TaskOptionError(
            f"task '{owner}': {key}={text} is not of type {type(default).__name__} (default: {default!r})"
        )
    return value
