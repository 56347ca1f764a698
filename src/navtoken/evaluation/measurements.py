"""What a run measured, problem by problem, so that figures of several runs can be paired on the same problems."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from navtoken.checkpoints import ModelPair
from navtoken.evaluation.evaluate import MEAN
from navtoken.evaluation.metrics import Row, mean_and_error
from navtoken.evaluation.paired import PairingError
from navtoken.evaluation.samples import Budget, drawn_responses
from navtoken.evaluation.scaling import (
    ACCURACIES,
    COSTS,
    DISTINCT,
    Interval,
    Resampling,
    ScalingError,
    measure,
)
from navtoken.generation import Cell

COMPARED = (*ACCURACIES, DISTINCT)
"""Metrics in which policies are held against each other."""
METRICS = (*COMPARED, *COSTS)


class Setting(NamedTuple):
    """What one figure is of."""

    policy: str
    """As it was asked for; of another run, with that run's name."""
    task: str
    k: int
    budget: Budget = None


ByProblem = Mapping[str, Mapping[str, float]]
"""Problem -> metric -> value; NaN where it was not computed."""


@dataclass(frozen=True)
class Measurements:
    """Every metric of every problem at every setting."""

    values: Mapping[Setting, ByProblem]
    num_samples: Mapping[str, int]
    """Responses per problem, by policy."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def policies(self) -> list[str]:
        return list(dict.fromkeys(setting.policy for setting in self.values))

    def beside(self, other: "Measurements", name: str) -> "Measurements":
        """These, and another run's under its name. Raises `ScalingError` where the name stands for another run already."""
        named = {policy: f"{name}: {policy}" for policy in other.policies}
        if twice := next((policy for policy in named.values() if policy in self.policies), None):
            raise ScalingError(f"two runs have '{twice}'; rename the folder of one of them")
        values = {
            setting._replace(policy=named[setting.policy]): own for setting, own in other.values.items()
        }
        samples = {named[policy]: num for policy, num in other.num_samples.items()}
        return Measurements({**self.values, **values}, {**self.num_samples, **samples}, self.provenance)

    def rows(self, resampling: Resampling) -> list[Row]:
        """One per setting, and over all tasks where a policy has several; intervals are `_low` to `_high`."""
        return [
            setting._asdict() | self._figures(list(tasks.values()), resampling)
            for setting, tasks in self._groups()
        ]

    def _figures(self, tasks: Sequence[ByProblem], resampling: Resampling) -> Row:
        arrays = [_array(list(task.values())) for task in tasks]
        figures: Row = {}
        for name, interval in zip(METRICS, resampling.intervals(arrays), strict=True):
            figures |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        averages = [[values["avg"] for values in task.values()] for task in tasks]
        errors = [mean_and_error(values)[1] for values in averages]
        figures["avg_se"] = math.hypot(*errors) / len(errors)
        return figures | {"num_problems": sum(map(len, tasks))}

    def _groups(self) -> Iterator[tuple[Setting, dict[str, ByProblem]]]:
        """Settings with what they are of by task, and those over all tasks of a policy where it has several."""
        for policy in self.policies:
            own = {setting: values for setting, values in self.values.items() if setting.policy == policy}
            yield from ((setting, {setting.task: values}) for setting, values in own.items())
            tasks = dict.fromkeys(setting.task for setting in own)
            if len(tasks) > 1:
                for setting in dict.fromkeys(setting._replace(task=MEAN) for setting in own):
                    yield setting, {task: own[setting._replace(task=task)] for task in tasks}

    def differences(self, resampling: Resampling) -> list[Row]:
        """Every policy less every other at the same task, k and budget, problem by problem.

        Raises `PairingError` where they did not answer the same problems.
        """
        groups = dict(self._groups())
        found = []
        for other, policy in combinations(self.policies, 2):
            for setting, own in groups.items():
                theirs = groups.get(setting._replace(policy=other))
                if setting.policy != policy or theirs is None or own.keys() != theirs.keys():
                    continue
                arrays = [_difference(own[task], theirs[task], setting, other) for task in own]
                intervals = zip(METRICS, resampling.intervals(arrays), strict=True)
                kept = {name: interval for name, interval in intervals if name in COMPARED}
                found.append(setting._asdict() | {"less": other} | _flat(kept))
        return found

    def as_json(self) -> dict[str, Any]:
        """JSON-serialisable; the inverse is `from_json`."""
        cells = [
            setting._asdict()
            | {
                "values": {
                    problem: [_number(own[name]) for name in METRICS] for problem, own in values.items()
                }
            }
            for setting, values in self.values.items()
        ]
        return {
            "metrics": list(METRICS),
            "num_samples": dict(self.num_samples),
            "cells": cells,
            "provenance": json.loads(json.dumps(self.provenance, default=str)),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Measurements":
        """What `as_json` wrote; a metric that this version does not know is left out, one that it lacks is NaN."""
        values = {}
        for cell in data["cells"]:
            setting = Setting(cell["policy"], cell["task"], cell["k"], cell["budget"])
            values[setting] = {
                problem: dict.fromkeys(METRICS, math.nan)
                | {
                    name: math.nan if value is None else value
                    for name, value in zip(data["metrics"], own, strict=True)
                    if name in METRICS
                }
                for problem, own in cell["values"].items()
            }
        return cls(values, data["num_samples"], data["provenance"])

    @classmethod
    def read(cls, path: Path) -> "Measurements":
        """Read what a run left. Raises `ScalingError` naming the file where it is none of ours."""
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ScalingError(
                f"cannot read '{path}': {error.strerror}; name the --out folder of a finished navtoken scale"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ScalingError(
                f"'{path}' holds no measurements ({type(error).__name__}: {error}); run navtoken scale there again"
            ) from error


def measure_cells(
    folder: Path,
    cells: Sequence[Cell],
    pair: ModelPair,
    ks: Sequence[int],
    budgets: Sequence[Budget],
    seed: int,
) -> Measurements:
    """Every cell at every k and budget, from the traces of a folder."""
    values: dict[Setting, ByProblem] = {}
    found = drawn_responses(folder, cells, pair, budgets)
    for cell, problems in zip(cells, found, strict=True):
        for budget in budgets:
            for k in ks:
                values[Setting(cell.asked, cell.task.name, k, budget)] = {
                    problem: measure(drawn.responses[budget], k, drawn.prompt, seed)
                    for problem, drawn in problems.items()
                }
    samples = {cell.asked: 1 + max(request.sample for request in cell.requests) for cell in cells}
    return Measurements(values, samples)


def _array(problems: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """(problems, metrics)."""
    return np.array([[own[name] for name in METRICS] for own in problems], dtype=np.float64)


def _difference(own: ByProblem, theirs: ByProblem, setting: Setting, other: str) -> NDArray[np.float64]:
    if own.keys() != theirs.keys():
        raise PairingError(
            f"'{setting.policy}' and '{other}' did not answer the same problems of {setting.task}; run both with the same "
            "num, seed and split"
        )
    return _array(list(own.values())) - _array([theirs[problem] for problem in own])


def _flat(intervals: Mapping[str, Interval]) -> Row:
    return {
        f"{name}{end}": value
        for name, each in intervals.items()
        for end, value in (("", each.value), ("_low", each.low), ("_high", each.high))
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
