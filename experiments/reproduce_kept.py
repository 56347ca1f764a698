"""The small run's own figures, committed: another small run has the same problems and noise, so that it agrees with them to the tolerance.

The committed full figures can only say that a small run is not far off: its few problems are easier or harder than all.
"""

import json
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import torch
from reproduce_compare import Compared

import navtoken
from navtoken.provenance import git_revision
from navtoken.report.markup import write_whole

Kept = Mapping[tuple[str, str], float]
"""Experiment and name of a figure -> its value."""


def kept_figures(path: Path) -> dict[tuple[str, str], float]:
    """Those of a file that `keep` wrote; none where there is none."""
    return {
        (experiment, name): value
        for experiment, each in _read(path).items()
        for name, value in each["figures"].items()
    }


def keep(path: Path, rows: Sequence[Compared], unfinished: AbstractSet[str] = frozenset()) -> list[str]:
    """Write a small run's figures beside those of experiments that it did not make. Says which experiments are left as they were: unfinished, or lacking a figure."""
    made: dict[str, dict[str, float | None]] = defaultdict(dict)
    for row in rows:
        made[row.figure.experiment][row.figure.name] = row.again
    whole = {name: own for name, own in made.items() if None not in own.values() and name not in unfinished}
    new = {name: {**_source(), "figures": own} for name, own in whole.items()}
    write_whole(path, json.dumps(_read(path) | new, indent=1) + "\n")
    return sorted(made.keys() - whole.keys())


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _source() -> dict[str, str | None]:
    return {
        "revision": git_revision(Path(navtoken.__file__).parent),
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}, torch {torch.__version__}",
    }


def _processor() -> str:
    """Its model, which the platform module says on some systems only."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown processor")
