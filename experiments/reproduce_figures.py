"""What a figure of `reproduce.py` is, and how it is read out of a result file.

A figure is a place in a result file. How it may move when it is made again is said by `varies`:

* `no`: the same problems, the same weights and the same noise (greedy, or noise keyed by seed and position). Only another CPU's roundings can
  move it, by turning a near-tie; `tolerance` allows for a few of those. LLM shares get a wider one, since one response that runs in circles
  to the length limit holds more than half a point of a share.
* `training`: roundings grow through training, so what is made again is another draw. Its standard error counts on both sides.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

Key = str | int | slice | tuple[tuple[str, Any], ...]
Place = tuple[Key, ...]
Varies = Literal["no", "training"]


@dataclass(frozen=True)
class Figure:
    """A number in a result file, its standard error, and how far roundings may move it."""

    experiment: str
    name: str
    file: str
    place: Place
    tolerance: float
    error: Place | None = None
    """Where its standard error stands, an interval of 95 % (`low`, `high`) or a value per seed or step; None where the file holds none."""
    scale: float = 1.0
    """100 for what is shown in percent."""
    varies: Varies = "no"
    sizes: tuple[str, ...] = ("full", "quick")
    """Where it can be compared."""
    paired: bool = False
    """Whether the small run makes the very same tokens, so that its size is no reason to differ."""
    problems: Place | None = None
    """Where the figure stands problem by problem, so that a small run is compared on the very problems that it has."""
    deviation: float | None = None
    """Standard error of what is trained again, declared where the file holds none."""
    spread: Callable[[Path], float] | None = None
    """Standard error from the responses under the folder of traces, for a small run whose file holds none."""


@dataclass(frozen=True)
class Measured:
    """A figure's value in one result file."""

    value: float
    error: float | None


class MissingFigure(LookupError):
    """A declared figure that a result file does not hold."""


def measured(figure: Figure, results: Path) -> Measured:
    """The figure in the result files under `results` (`experiments/`, or what was made again)."""
    data = _read(figure, results)
    try:
        value = _mean(at(data, figure.place))
        error = figure.deviation if figure.error is None else _error(at(data, figure.error))
    except (LookupError, TypeError) as problem:
        raise MissingFigure(f"{figure.experiment}/{figure.file} holds no {figure.name}: {problem}") from None
    return Measured(value, error)


def on_shared_problems(figure: Figure, committed: Path, made: Path, part: float) -> tuple[Measured, Measured]:
    """The figure of the problems that a small run has, committed and made again; they must be the `part` of all that it should have."""
    assert figure.problems is not None
    ours, theirs = (at(_read(figure, results), figure.problems) for results in (committed, made))
    shared, expected = ours.keys() & theirs.keys(), round(part * len(ours))
    if len(shared) != expected:
        raise MissingFigure(f"{len(shared)} problems of {figure.name} are in both files, not {expected}")
    means = (fmean(each[problem] for problem in shared) for each in (ours, theirs))
    was, now = (Measured(value, None) for value in means)
    return was, now


def _read(figure: Figure, results: Path) -> Any:
    path = results / figure.experiment / figure.file
    if not path.exists():
        # Tables are committed: no folder of one machine.
        raise MissingFigure(f"{figure.experiment}/{figure.file} is missing in {results.name}")
    return json.loads(path.read_text())


def at(data: Any, place: Place) -> Any:
    """Follow keys and indices; a tuple of pairs picks the first of a list's rows that has them, a slice several rows."""
    for index, key in enumerate(place):
        if isinstance(key, slice):
            return [at(row, place[index + 1 :]) for row in data[key]]
        if isinstance(key, tuple):
            wanted = dict(key)
            data = next((row for row in data if wanted.items() <= row.items()), None)
            if data is None:
                raise LookupError(f"no row with {wanted}")
        else:
            data = data[key]
    return data


def _mean(found: Any) -> float:
    """Of a list (a value per seed or step) its mean."""
    return fmean(found) if isinstance(found, list) else float(found)


def _error(found: Any) -> float | None:
    if isinstance(found, Mapping):
        return float(found["high"] - found["low"]) / (2 * 1.96)
    if isinstance(found, list):
        return stdev(found) / sqrt(len(found))
    return None if found is None else float(found)


def where(**wanted: Any) -> Key:
    return tuple(wanted.items())
