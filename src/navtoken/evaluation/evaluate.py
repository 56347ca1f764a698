"""`navtoken evaluate`: a table of policies x tasks. It generates what is missing, then reads traces; nothing else."""

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from navtoken.checkpoints import ModelPair
from navtoken.engine import Costs
from navtoken.evaluation.metrics import Row, Tally, average
from navtoken.evaluation.paired import Paired
from navtoken.generation import Cell, GenerateOptions, GenerationOptions, ModelOptions, generate
from navtoken.policies import ThresholdPolicy
from navtoken.trace import Key, read_provenance, read_traces

MEAN = "mean"
"""Task name of the row over all tasks of a policy."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Compare policies on tasks: accuracy, LLM share, cost, speed, length."""

    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair."""
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    """Problems, policies and sampling."""
    out: Path | None = None
    """Folder that keeps the traces, where a later run with the same options goes on, and gets the page (index.html) and the
    table (table.json); None keeps nothing and makes no page."""


@dataclass(frozen=True)
class Table:
    """Rows of plain numbers, and where they come from."""

    rows: list[Row]
    """One per policy and task, and one per policy with task `mean` where there are several tasks."""
    provenance: dict[str, Any]
    paired: Paired = field(default_factory=Paired)
    """The same answers problem by problem, for differences between policies."""
    keys: Mapping[Key, str] = field(default_factory=dict)
    """Traces of the table, and the policy as it was asked for."""
    verifying: frozenset[str] = frozenset()
    """Policies, as they were asked for, under which the LLM judges every token, whoever wrote it."""

    def as_json(self) -> dict[str, Any]:
        """JSON-serialisable: a number that was not computed is None."""
        rows = [{name: _number(value) for name, value in row.items()} for row in self.rows]
        return {"rows": rows, "provenance": json.loads(json.dumps(self.provenance, default=str))}


def evaluate(
    options: EvaluateOptions, pair: ModelPair | None = None, console: Console | None = None
) -> Table:
    """Generate what `options.out` lacks and return the table. Progress goes to `console`."""
    if options.out is not None:
        return evaluate_into(options.out, options, pair, console)
    with tempfile.TemporaryDirectory(prefix="navtoken-") as folder:
        return evaluate_into(Path(folder), options, pair, console)


def evaluate_into(
    folder: Path, options: EvaluateOptions, pair: ModelPair | None = None, console: Console | None = None
) -> Table:
    """`evaluate` with its traces in `folder`."""
    loaded = pair or options.models.load()
    cells = generate(GenerateOptions(options.models, options.generation, folder), loaded, console)
    tallies = _tallies(folder, cells, loaded)
    paired = _paired(cells, tallies)
    rows = [_names(cell) | tally.row() for cell, tally in zip(cells, tallies, strict=True)]
    keys = {key: cell.asked for cell in cells for key in cell.keys}
    verifying = frozenset(cell.asked for cell in cells if cell.policy.verifies)
    return Table(_with_recovery(_with_means(rows), paired), read_provenance(folder), paired, keys, verifying)


def _tallies(folder: Path, cells: Sequence[Cell], pair: ModelPair) -> list[Tally]:
    """One tally per cell, in one pass over the folder, whatever else is in it."""
    tallies = [Tally(Costs(pair.slm.card, pair.llm.card, cell.policy.router_parameters)) for cell in cells]
    counted_in: dict[Key, list[Tally]] = defaultdict(list)
    for cell, tally in zip(cells, tallies, strict=True):
        for key in cell.keys:
            counted_in[key].append(tally)
    for trace in read_traces(folder, columns=()):
        for tally in counted_in.get(trace.key, ()):
            tally.add(trace)
    return tallies


def _paired(cells: Sequence[Cell], tallies: Sequence[Tally]) -> Paired:
    scores: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    shares: dict[str, list[float]] = defaultdict(list)
    passes: dict[str, list[float]] = defaultdict(list)
    for cell, tally in zip(cells, tallies, strict=True):
        scores[cell.asked][cell.task.name] = tally.scores
        shares[cell.asked].append(tally.ledger.llm_share)
        passes[cell.asked].append(tally.ledger.llm_passes_per_token)
    return Paired(dict(scores), _means(shares), _means(passes))


def _means(by_policy: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {policy: fmean(own) for policy, own in by_policy.items()}


def _names(cell: Cell) -> Row:
    threshold = cell.policy.threshold if isinstance(cell.policy, ThresholdPolicy) else None
    return {"policy": cell.asked, "task": cell.task.name, "threshold": threshold}


def _with_means(rows: list[Row]) -> list[Row]:
    """Each policy's rows, and after them their mean where there are several."""
    by_policy: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_policy[row["policy"]].append(row)
    out: list[Row] = []
    for policy, own in by_policy.items():
        out += own
        if len(own) > 1:
            numbers = [
                {k: v for k, v in row.items() if k not in ("policy", "task", "threshold")} for row in own
            ]
            out.append({"policy": policy, "task": MEAN, "threshold": None} | average(numbers))
    return out


def _with_recovery(rows: list[Row], paired: Paired) -> list[Row]:
    """The rows with the part of the gap between SLM and LLM that each policy makes up for, where it is a clear one."""
    found = [paired.recovered(row["policy"], None if row["task"] == MEAN else row["task"]) for row in rows]
    return [
        row | {"recovered": part.value, "recovered_se": part.error}
        for row, part in zip(rows, found, strict=True)
    ]


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
