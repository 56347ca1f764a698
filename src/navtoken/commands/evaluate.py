"""`navtoken evaluate` in a shell: the table for people, or as JSON."""

from typing import Any

from rich.console import Console

from navtoken.commands.show import print_rows
from navtoken.commands.surroundings import progress_console
from navtoken.evaluation import EvaluateOptions, evaluate

__all__ = ["EvaluateOptions", "run"]


def run(options: EvaluateOptions, console: Console) -> dict[str, Any]:
    """Evaluate, print the table, return it."""
    table = evaluate(options, console=progress_console())
    print_rows(console, table.rows)
    for row in table.rows:
        if row["threshold"] is not None and "share=" in row["policy"]:
            console.print(f"{row['policy']} on {row['task']}: threshold {row['threshold']:.4g}")
    return table.as_json()
