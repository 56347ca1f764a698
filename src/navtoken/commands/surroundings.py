"""What commands share about the terminal and the libraries around them."""

from rich.console import Console
from transformers.utils import logging

from navtoken.commands.ranks import console_for


def progress_console() -> Console:
    """Where progress goes: standard error. Quietens the loading bars of `transformers`."""
    logging.disable_progress_bar()
    return console_for(stderr=True)
