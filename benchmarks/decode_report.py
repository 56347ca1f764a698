"""What `decode.py` shows: the bars that its results must reach, and a table of each concurrency."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from measuring import Bar, Spread, table


def check_bars(pair: str, points: Sequence[dict[str, Any]]) -> list[Bar]:
    """What the results must reach; a bar whose rows were left out has no result."""
    by_rows = {point["concurrency"]: point for point in points}
    bars: list[Bar] = []

    def row(rows: int, name: str, field_name: str) -> float | None:
        described = [each for each in by_rows.get(rows, {}).get("rows", ()) if each["row"] == name]
        return described[0].get(field_name) if described else None

    def ratio(rows: int, name: str, other: str) -> float | None:
        found = by_rows.get(rows, {}).get("ratios", {}).get(name, {}).get(other)
        return found["median"] if found else None

    if pair == "embedded":
        bars.append(Bar("64 rows: LLM alone / generate", 3.0, ratio(64, "llm", "generate")))
    elif pair == "r1":
        bars.append(Bar("1 row: routed at 0.13 / LLM alone", 4.4, ratio(1, "random:0.13", "llm")))
        bars.append(Bar("1 row: LLM alone, of the bandwidth", 0.8, row(1, "llm", "bytes_fraction")))
    if pair != "bandwidth":
        return bars
    bars.append(
        Bar("1 row: routed at 0.13, of the roofline", 0.85, row(1, "random:0.13", "roofline_fraction"))
    )
    for rows in (4, 16, 64):
        bars.append(
            Bar(
                f"{rows} rows: routed at 0.13, of the planner's bound",
                0.85,
                row(rows, "random:0.13", "planned_fraction"),
            )
        )
    gain = ratio(16, "random:0.13", "lockstep:0.13")
    predicted = by_rows.get(16, {}).get("predicted_before", {}).get("gain")
    bars.append(
        Bar(
            "16 rows: gain of auto over lockstep, of the predicted",
            0.95,
            gain and predicted and gain / predicted,
        )
    )
    for rows in (1, 4, 16, 64):
        bars.append(Bar(f"{rows} rows: fallback:0.13 / LLM alone", 0.97, ratio(rows, "fallback:0.13", "llm")))
    bars.append(Bar("16 rows: fallback:0.35 / LLM alone", 0.97, ratio(16, "fallback:0.35", "llm")))
    bars.append(Bar("1 row: LLM alone / generate", 1.1, ratio(1, "llm", "generate")))
    bars.append(Bar("16 rows: LLM alone / generate", 2.0, ratio(16, "llm", "generate")))
    bars.append(Bar("16 rows: LLM alone / continuous batching", 1.2, ratio(16, "llm", "continuous")))
    return bars


def rows_table(pair: str, point: dict[str, Any]) -> Table:
    """All rows of one concurrency, each beside its ceilings."""
    load = point["load"]
    title = (
        f"{pair}, {point['concurrency']} rows: {load['num_requests']} requests, prompts of "
        f"{_range(load['prompt_tokens'])}, responses of {_range(load['response_tokens'])} tokens"
    )
    rows = [
        (row["row"], row["error"])
        if "error" in row
        else (row["row"], *_cells(row, point["ratios"].get(row["row"], {})))
        for row in point["rows"]
    ]
    return table(title, _COLUMNS, rows)


_COLUMNS = (
    "", "tokens/s", "(low-high)", "/ LLM", "/ generate", "/ contin.", "roofline\ntokens/s", "of it", "of\nbytes",
    "planned\ntokens/s", "of it", "LLM\nshare", "SLM, LLM\npasses", "rows a\npass", "B",
)  # fmt: skip


def _cells(row: dict[str, Any], ratios: dict[str, Any]) -> list[object]:
    speed, passes = Spread(**row["tokens_per_second"]), row.get("passes")
    return [
        speed.median,
        f"{speed.low:.3g}-{speed.high:.3g}",
        *(ratios[name]["median"] if name in ratios else None for name in ("llm", "generate", "continuous")),
        row.get("roofline_tokens_per_second"),
        row.get("roofline_fraction"),
        row.get("bytes_fraction"),
        row.get("planned_tokens_per_second"),
        row.get("planned_fraction"),
        row.get("llm_share"),
        passes and f"{passes['slm']}, {passes['llm']}",
        row.get("rows_per_llm_pass"),
        row.get("min_rows"),
    ]


def _range(quantiles: tuple[int, ...]) -> str:
    low, high = quantiles[0], quantiles[-1]
    return str(low) if low == high else f"{low}-{high}"
