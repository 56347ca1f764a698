"""`navtoken evaluate` in a shell: the table for people, or as JSON, and the page where there is a folder for it."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from navtoken.checkpoints import ModelPair
from navtoken.commands.evaluate_page import comparisons, findings, fronts, telling_traces, write_page
from navtoken.commands.show import print_costs, print_rows
from navtoken.commands.surroundings import progress_console
from navtoken.evaluation import EvaluateOptions, Table, evaluate
from navtoken.report.markup import write_whole

__all__ = ["EvaluateOptions", "run"]


def run(options: EvaluateOptions, console: Console, pair: ModelPair | None = None) -> dict[str, Any]:
    """Evaluate, print the table, write the page; returns the table and what it shows."""
    progress = progress_console()
    loaded = pair or options.models.load()
    table = evaluate(options, loaded, progress)
    result = as_json(table)
    print_table(console, table)
    if options.out is None:
        return result
    write_whole(options.out / "table.json", json.dumps(result, indent=1) + "\n")
    page = write_page(options.out / "index.html", table, telling_traces(table, options.out), loaded.tokenizer)
    console.print(f"page: {Path(page).resolve()}", soft_wrap=True)
    return result | {"page": str(page)}


def as_json(table: Table) -> dict[str, Any]:
    """What the table shows in words, policies on each Pareto front and against controls, the rows, and where they come from."""
    shown = {"findings": findings(table), "pareto": fronts(table), "comparisons": comparisons(table)}
    return shown | table.as_json()


def print_table(console: Console, table: Table) -> None:
    """Accuracy and costs in two tables, then thresholds that were found, then findings."""
    print_rows(console, table.rows)
    print_costs(console, table.rows)
    for row in table.rows:
        if row["threshold"] is not None and "share=" in row["policy"]:
            console.print(f"{row['policy']} on {row['task']}: threshold {row['threshold']:.4g}")
    for line in findings(table):
        console.print(f"· {line}")
