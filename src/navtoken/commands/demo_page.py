"""The demo's page: what is said about the numbers is worded from the numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from navtoken.evaluation import Table
from navtoken.report import (
    Column,
    HistogramSection,
    Page,
    ScatterPoint,
    ScatterSection,
    TableSection,
    TracesSection,
    build_page,
    decode_of,
)
from navtoken.trace import Trace

Row = Mapping[str, Any]

_INTRO = (
    "In a chain of thought few tokens decide where the reasoning goes; the rest nearly follow from what came before. Here a "
    "small model (SLM) writes, and a rule hands some of its tokens to a large one (LLM). The question is "
    "which ones: compare entropy, which picks where the SLM is uncertain, with random, at the same share of tokens.\n\n"
    "llm-prob looks at the LLM's own view of every token, so it saves nothing; it shows what a perfect choice would reach."
)

_COLUMNS = (
    Column("policy", "policy", "code"),
    Column("accuracy", "accuracy (%)", "percent", error="accuracy_se", bar=True, help="Right answers, ± one standard error over problems."),
    Column("llm_share", "LLM share (%)", "percent", help="Tokens written by the LLM."),
    Column("average_activated_parameters", "activated parameters", "count", help="Mean over tokens of the parameters of the model that wrote each."),
    Column("flops_per_token", "FLOPs per token", "count", help="All that was computed, prompts and catch-up included, per token of the response."),
    Column("bytes_per_token", "bytes per token", "count", help="Weights and KV cache read for a response decoded alone, per token of it."),
    Column("tokens_per_second", "tokens/s", "count", help="On this machine, many responses at once."),
    Column("mean_length", "tokens per response", "number"),
)  # fmt: skip


def write_page(
    path: Path,
    table: Table,
    traces: Sequence[Trace],
    entropies: Mapping[str, Sequence[float]],
    tokenizer: Any,
) -> Path:
    """Write the page: table, accuracy against LLM share, entropies of the LLM's responses, responses side by side."""
    rows = sorted(table.rows, key=lambda row: row["task"] == "mean")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    grouped = [row for task in tasks for row in rows if row["task"] == task]
    by_policy = {row["policy"]: row for row in rows if row["task"] == tasks[-1]}
    sections = (
        TableSection(_table_title(by_policy), _COLUMNS, grouped, group_by="task"),
        ScatterSection(routing_title(by_policy), _panels(grouped)),
        HistogramSection.of(_entropy_title(entropies), entropies),
        TracesSection("The same problems under every policy", _named(traces), decode_of(tokenizer)),
    )
    title = "Navigation tokens: who should write which token"
    return build_page(Page(title, _INTRO, sections, table.provenance), path)


def _table_title(rows: Mapping[str, Row]) -> str:
    shown = (f"{policy.split(',')[0]} {100 * row['accuracy']:.0f} %" for policy, row in rows.items())
    return f"Right answers: {', '.join(shown)}"


def routing_title(rows: Mapping[str, Row]) -> str:
    """What entropy does against random at equal LLM share: a gap only where it is beyond two standard errors."""
    entropy, random = (
        next(row for policy, row in rows.items() if policy.startswith(name)) for name in ("entropy", "random")
    )
    gap = entropy["accuracy"] - random["accuracy"]
    # The problems are the same ones, so this overstates the error.
    if not abs(gap) > 2 * math.hypot(entropy["accuracy_se"], random["accuracy_se"]):
        return "At the same LLM share, entropy and random do not clearly differ here"
    more = "more" if gap > 0 else "fewer"
    return f"At the same LLM share, entropy gets {100 * abs(gap):.0f} points {more} right than random"


def _entropy_title(entropies: Mapping[str, Sequence[float]]) -> str:
    values = [value for own in entropies.values() for value in own]
    certain = sum(value < 0.01 for value in values) / len(values)
    return f"{100 * certain:.0f} % of the LLM's tokens are all but certain (under 0.01 nats)"


def _panels(rows: Sequence[Row]) -> dict[str, list[ScatterPoint]]:
    panels: dict[str, list[ScatterPoint]] = {}
    for row in rows:
        point = ScatterPoint(
            row["policy"].split(",")[0], row["llm_share"], row["accuracy"], row["accuracy_se"]
        )
        panels.setdefault(row["task"], []).append(point)
    return panels


def _named(traces: Sequence[Trace]) -> list[Trace]:
    """One name per policy: thresholds differ from task to task, and the page filters by policy."""
    order = ("slm", "random", "entropy", "llm-prob", "llm")
    named = [replace(trace, policy=trace.policy.split(":")[0]) for trace in traces]
    tasks = list(dict.fromkeys(trace.task for trace in traces))
    return sorted(named, key=lambda trace: (tasks.index(trace.task), order.index(trace.policy)))
