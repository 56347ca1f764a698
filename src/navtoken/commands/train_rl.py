"""`navtoken train-rl` in a shell: what was learnt, in words; everything as JSON."""

from typing import Any

from rich.console import Console

from navtoken.commands.surroundings import progress_console
from navtoken.rlvr.options import TrainRLOptions
from navtoken.tasks.loading import require

__all__ = ["TrainRLOptions", "run"]


def run(options: TrainRLOptions, console: Console) -> dict[str, Any]:
    """Train, and print accuracy on held-out problems before and after; returns the result."""
    require("trl", "rl", "training by reinforcement learning")
    from navtoken.rlvr.train import train_rl

    result = train_rl(options, progress_console())
    for line in findings(result):
        console.print(line, soft_wrap=True)
    console.print(f"model: {result['model']}", soft_wrap=True)
    return result


def findings(result: dict[str, Any]) -> list[str]:
    """What a run changed, one line each."""
    before, after = result["before"], result["after"]
    if before is None or after is None:
        return []
    changed = f"{_percent(before)} before, {_percent(after)} after {result['steps']} steps"
    lengths = f"{before['mean_length']:.0f} before, {after['mean_length']:.0f} after"
    return [
        f"held-out problems ({after['num_problems']}): {changed}",
        f"tokens of a response: {lengths}; entropy {before['entropy']:.3f} and {after['entropy']:.3f} nats",
    ]


def _percent(score: dict[str, Any]) -> str:
    error = score["accuracy_se"]
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return f"{100 * score['accuracy']:.1f}{spread} %"
