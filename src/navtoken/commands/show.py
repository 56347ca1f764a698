"""The comparison table for people, in the terminal."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]


def print_rows(console: Console, rows: Sequence[Row], title: str = "") -> None:
    """Rows of an evaluation as a table, one block per task, the mean last. Fits into 80 columns."""
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("policy", no_wrap=True)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for task in dict.fromkeys(row["task"] for row in rows):
        table.add_row(Text(task, style="bold"))
        for row in rows:
            if row["task"] == task:
                table.add_row(Text(f" {row['policy']}"), *(show(row) for show in _COLUMNS.values()))
        table.add_section()
    console.print(table)


def metric(value: float | None) -> str:
    """Three digits and an SI prefix: 1.17M."""
    if value is None or not math.isfinite(value):
        return "–"
    power = min(4, int(math.log10(abs(value)) // 3)) if abs(value) >= 1 else 0
    return f"{value / 1000**power:.3g}{('', 'k', 'M', 'G', 'T')[power]}"


def percent(value: float | None) -> str:
    """A fraction in percent, one decimal."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def _accuracy(row: Row) -> str:
    error = percent(row["accuracy_se"])
    return percent(row["accuracy"]) + ("" if error == "–" else f" ± {error}")


def _field(name: str, show: Callable[[Any], str]) -> Callable[[Row], str]:
    return lambda row: show(row[name])


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "accuracy\n(%)": _accuracy,
    "LLM\n(%)": _field("llm_share", percent),
    "active\nparams": _field("average_activated_parameters", metric),
    "FLOPs\n/token": _field("flops_per_token", metric),
    "bytes\n/token": _field("bytes_per_token", metric),
    "tokens\n/s": _field("tokens_per_second", metric),
    "tokens\neach": _field("mean_length", metric),
}
