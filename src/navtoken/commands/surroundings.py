"""What commands share about the terminal and the libraries around them."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging

from navtoken.commands.ranks import console_for


def progress_console() -> Console:
    """Where progress goes: standard error. Quietens the loading bars of `transformers`."""
    logging.disable_progress_bar()
    return console_for(stderr=True)


def progress_bars(console: Console) -> Progress:
    """Bars on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
