"""`navtoken generate` in a shell: says what lies where."""

from typing import Any

from rich.console import Console

from navtoken.commands.surroundings import progress_console
from navtoken.generation import GenerateOptions, generate

__all__ = ["GenerateOptions", "run"]


def run(options: GenerateOptions, console: Console) -> dict[str, Any]:
    """Generate, and list what the folder now holds of what was asked for."""
    cells = generate(options, console=progress_console())
    rows = [
        {
            "policy": cell.asked,
            "reference": cell.policy.reference,
            "task": cell.task.name,
            "num_responses": len(cell.requests),
        }
        for cell in cells
    ]
    for row in rows:
        console.print(
            f"{row['num_responses']} responses of {row['reference']} to {row['task']} in {options.out}"
        )
    return {"rows": rows, "out": str(options.out)}
