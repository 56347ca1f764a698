"""`navtoken demo`: the whole idea in two minutes, as a table in the terminal and one page to open.

At equal LLM share, tokens picked by entropy against tokens picked at random; beside them what knowing the LLM's view
would reach (`llm-prob`), and both models alone.
"""

import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from navtoken.checkpoints import ModelPair
from navtoken.commands.demo_page import write_page
from navtoken.commands.show import print_rows
from navtoken.commands.surroundings import progress_console
from navtoken.engine import EngineOptions
from navtoken.evaluation import EvaluateOptions, Table, evaluate_into
from navtoken.generation import GenerationOptions, ModelOptions
from navtoken.generation.options import FAMILIES
from navtoken.report.markup import write_whole
from navtoken.trace import Trace, read_traces


@dataclass(frozen=True)
class DemoOptions:
    """See it work: compare ways to pick the LLM's tokens on three tasks, and write one HTML page."""

    out: Path = Path("out/demo")
    """Folder of the page (index.html) and the table (table.json)."""
    share: float = 0.15
    """LLM share of random and entropy routing."""
    num: int = 100
    """Problems per task."""
    seed: int = 0
    """Fixes the problems and all noise."""
    max_tokens: int = 400
    """Longest response in tokens."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair."""

    @property
    def policies(self) -> tuple[str, ...]:
        return "slm", f"random,share={self.share:g}", f"entropy,share={self.share:g}", "llm-prob:0.1", "llm"


def run(options: DemoOptions, console: Console, pair: ModelPair | None = None) -> dict[str, Any]:
    """Evaluate, print the table, write the page; returns the table."""
    progress = progress_console()
    loaded = pair or options.models.load()
    with tempfile.TemporaryDirectory(prefix="navtoken-") as folder:
        table = evaluate_into(Path(folder), _evaluation(options), loaded, progress)
        shown, entropies = _gather(Path(folder))
    print_rows(console, table.rows)
    path = write_page(options.out / "index.html", table, shown, entropies, loaded.tokenizer)
    result = table.as_json() | {"page": str(path)}
    write_whole(options.out / "table.json", _indented(table))
    console.print(f"page: {path.resolve()}", soft_wrap=True)
    return result


def _evaluation(options: DemoOptions) -> EvaluateOptions:
    engine = EngineOptions(max_rows=64, llm_min_rows=8, num_alternatives=5)
    generation = GenerationOptions(
        task=FAMILIES,
        policy=options.policies,
        num=options.num,
        seed=options.seed,
        max_tokens=options.max_tokens,
        calibration_num=min(64, options.num),
        engine=engine,
    )
    return EvaluateOptions(options.models, generation)


def _gather(folder: Path) -> tuple[list[Trace], dict[str, list[float]]]:
    """Responses for the page, and the entropies of all of the LLM's own responses by task."""
    entropies: dict[str, list[float]] = defaultdict(list)
    by_problem: dict[tuple[str, str], list[Trace]] = defaultdict(list)
    for trace in read_traces(folder):
        by_problem[trace.task, trace.problem_id].append(trace)
        if trace.policy == "llm":
            entropies[trace.task] += trace.columns["entropy_llm"].tolist()
    shown = [
        trace
        for task in FAMILIES
        for trace in max((group for key, group in by_problem.items() if key[0] == task), key=_telling)
    ]
    return shown, dict(entropies)


def _telling(group: list[Trace]) -> tuple[bool, bool, int, int]:
    """Problems worth reading first: the SLM fails, the LLM doesn't, the others differ, and it is short."""
    right = {trace.policy: bool(trace.correct) for trace in group}
    others = len(set(right.values()))
    return not right["slm"], right["llm"], others, -sum(len(trace.response_ids) for trace in group)


def _indented(table: Table) -> str:

    return json.dumps(table.as_json(), indent=1) + "\n"
