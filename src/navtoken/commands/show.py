"""The comparison table for people, in the terminal."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]
Show = Callable[[Row], str]


def print_rows(console: Console, rows: Sequence[Row], title: str = "") -> None:
    """Rows of an evaluation as a table, one block per task, the mean last. Fits into 80 columns."""
    _print(console, rows, _COLUMNS, title)


def print_costs(console: Console, rows: Sequence[Row], title: str = "") -> None:
    """What the same rows took: the gap that they recover, both total costs, passes, drafts. Fits into 80 columns."""
    _print(console, rows, _COSTS, title)
    console.print(_COST_WORDS)


def metric(value: float | None) -> str:
    """Three digits and an SI prefix: 1.17M."""
    if value is None or not math.isfinite(value):
        return "–"
    power = min(4, int(math.log10(abs(value)) // 3)) if abs(value) >= 1 else 0
    return f"{value / 1000**power:.3g}{('', 'k', 'M', 'G', 'T')[power]}"


def percent(value: float | None) -> str:
    """A fraction in percent, one decimal."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def decimals(value: float | None) -> str:
    """A number of a few units, two decimals."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _print(console: Console, rows: Sequence[Row], columns: Mapping[str, Show], title: str) -> None:
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, padding=0)
    # A long name takes two lines rather than a number's place.
    table.add_column("policy", overflow="fold", min_width=12)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for task in dict.fromkeys(row["task"] for row in rows):
        table.add_row(Text(task, style="bold"))
        for row in rows:
            if row["task"] == task:
                table.add_row(Text(f" {row['policy']}"), *(show(row) for show in columns.values()))
        table.add_section()
    console.print(table)


def _with_error(name: str) -> Show:
    def show(row: Row) -> str:
        error = percent(row[f"{name}_se"])
        return percent(row[name]) + ("" if error == "–" else f" ± {error}")

    return show


def _field(name: str, show: Callable[[Any], str]) -> Show:
    return lambda row: show(row[name])


_COLUMNS: dict[str, Show] = {
    "accuracy\n(%)": _with_error("accuracy"),
    "LLM\n(%)": _field("llm_share", percent),
    "active\nparams": _field("average_activated_parameters", metric),
    "FLOPs\n/token": _field("flops_per_token", metric),
    "bytes\n/token": _field("bytes_per_token", metric),
    "tokens\n/s": _field("tokens_per_second", metric),
    "tokens\neach": _field("mean_length", metric),
}
_COST_WORDS = (
    "recovered: part of the gap from SLM to LLM. cost: parameters x tokens of a\n"
    "response, those written and all that was computed. passes, discarded: per token."
)
_COSTS: dict[str, Show] = {
    "recovered\n(%)": _with_error("recovered"),
    "written\ncost": _field("total_cost", metric),
    "whole\ncost": _field("computed_cost", metric),
    "LLM\npasses": _field("llm_passes_per_token", decimals),
    "dis-\ncarded": _field("discarded_per_token", decimals),
    "accepted\n(%)": _field("acceptance", percent),
}
