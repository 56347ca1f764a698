"""The page of `navtoken scale`: accuracy against samples, tokens and cost, each with its band over problems."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from navtoken.commands.evaluate_page import short_unit
from navtoken.commands.show import Row
from navtoken.evaluation.evaluate import MEAN
from navtoken.report import (
    Column,
    Curve,
    CurvesSection,
    Page,
    PanelsSection,
    Section,
    TableSection,
    TextSection,
    build_page,
)

WORDS = {
    "avg": "avg@k",
    "pass": "pass@k",
    "maj": "maj@k",
    "best_logprob": "best of k by log-probability",
    "best_entropy": "best of k by entropy",
    "best_length": "best of k by length",
}
"""Metrics as people read them."""
CHOOSERS = ("maj", "best_logprob", "best_entropy", "best_length")
"""Metrics of one answer out of k, which need no verifier."""
COSTS = {
    "tokens": "tokens per problem",
    "flops": "FLOPs per problem",
    "bytes": "bytes per problem",
    "seconds": "seconds per problem",
}

_INTRO = (
    "More samples of a problem raise the chance that one is right (pass@k), and a vote among them is right more often than one alone "
    "(maj@k). But k samples cost k times as much, less a shared prompt. At equal cost, is it better to let the large model write a few "
    "samples, or to let a policy that calls it less often write many?"
)
_BANDS = "Bands are 95 % intervals over problems."
_COSTS_TEXT = (
    "From left to right the number of samples grows. A curve that lies higher buys more for the same. Bytes are those of samples decoded "
    "one by one, seconds the clock of this run, many responses at once. "
)

_COLUMNS = (
    Column("policy", "policy", "code"),
    Column("k", "k", "count"),
    Column("avg", "avg@k (%)", "percent", error="avg_se", bar=True, help="Right answers, ± one standard error over problems; all samples count at every k."),
    Column("pass", "pass@k (%)", "percent", help="Problems of which one of k samples is right."),
    Column("pass_range", "95 %", "text"),
    Column("maj", "maj@k (%)", "percent", help="Problems of which the commonest answer of k samples is right; ties count in parts, and no answer is no vote."),
    Column("maj_range", "95 %", "text"),
    Column("best_logprob", "best by log-probability (%)", "percent", help="The sample with the highest mean log-probability of its tokens, each under who wrote it."),
    Column("best_entropy", "by entropy (%)", "percent", help="The sample with the least mean entropy, likewise."),
    Column("best_length", "by length (%)", "percent", help="The shortest sample."),
    Column("distinct", "answers", "number", digits=2, help="Different answers among k samples, right or wrong."),
    Column("tokens", "tokens", "metric", help="Tokens of k responses to a problem."),
    Column("flops", "FLOPs", "metric", help="All that was computed for them, the prompt once."),
    Column("bytes", "bytes", "metric", help="Weights and KV cache read for them, decoded one by one."),
    Column("seconds", "seconds", "number", digits=3, help="Their part of this run's time, many responses at once."),
)  # fmt: skip


@dataclass(frozen=True)
class Scaled:
    """All figures, as plain rows."""

    rows: list[Row]
    """One per policy, task, k and budget."""
    differences: list[Row]
    """One policy less another, at the same task, k and budget."""
    num_samples: dict[str, int]
    """Responses per problem, by policy, from which every k was estimated."""
    provenance: dict[str, Any]

    @property
    def whole(self) -> list[Row]:
        """Rows over all tasks, responses whole."""
        return [row for row in self.over_tasks(self.rows) if row["budget"] is None]

    @staticmethod
    def over_tasks(rows: Sequence[Row]) -> list[Row]:
        """Rows of the mean, or of the one task there is."""
        several = any(row["task"] == MEAN for row in rows)
        return [row for row in rows if not several or row["task"] == MEAN]

    def blocks(self) -> dict[str, list[Row]]:
        """Rows of one task and budget under a title; the mean of the tasks last, whole responses first."""
        keys = dict.fromkeys((row["task"], row["budget"]) for row in self.rows)
        tasks = list(dict.fromkeys(row["task"] for row in self.rows))
        ordered = sorted(
            keys, key=lambda key: (key[0] == MEAN, tasks.index(key[0]), key[1] is not None, key[1] or 0)
        )
        return {
            _block(*key): [row for row in self.rows if (row["task"], row["budget"]) == key] for key in ordered
        }


def _block(task: str, budget: int | None) -> str:
    return task if budget is None else f"{task}, at most {budget} tokens"


def write_page(path: Path, scaled: Scaled) -> Path:
    """Write the page: findings, accuracy against samples, cost and length, all rows."""
    rows = [
        row | {"block": title, **{f"{name}_range": _range(row, name) for name in ("pass", "maj")}}
        for title, block in scaled.blocks().items()
        for row in block
    ]
    sections: list[Section] = [
        TextSection("What it shows", "\n\n".join(findings(scaled))),
        samples_section(scaled),
        *choosers_sections(scaled),
        costs_section(scaled),
        *budget_sections(scaled),
        TableSection("All figures", _COLUMNS, rows, group_by="block"),
    ]
    return build_page(Page("What more samples buy", _INTRO, sections, scaled.provenance), path)


# ---- words ----------------------------------------------------------------------------------------------------


def findings(scaled: Scaled) -> list[str]:
    """What the figures show at the largest k, whole responses; a difference is claimed where its interval leaves out 0."""
    rows = scaled.whole
    found = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        last = max(own, key=lambda row: row["k"])
        k = last["k"]
        sentence = f"{policy} gets {_percent(last['avg'])} right"
        if k > 1:
            sentence += f", a vote of {k} {_percent(last['maj'])}, and one of {k} is right in {_percent(last['pass'])}"
        found.append(f"{sentence}.")
    return found + _gaps(scaled)


def _gaps(scaled: Scaled) -> list[str]:
    whole = [row for row in scaled.over_tasks(scaled.differences) if row["budget"] is None]
    found = []
    for policy, other in dict.fromkeys((row["policy"], row["less"]) for row in whole):
        row = max(
            (row for row in whole if (row["policy"], row["less"]) == (policy, other)),
            key=lambda row: row["k"],
        )
        if math.isfinite(row["maj_low"]):
            parts = [_gap(row, name) for name in (("avg", "maj", "pass") if row["k"] > 1 else ("avg",))]
            found.append(f"{policy} against {other} on the same problems: {', '.join(parts)}.")
    return found


def _gap(row: Row, name: str) -> str:
    words = WORDS[name].replace("@k", f"@{row['k']}")
    low, high = (100 * row[f"{name}_{end}"] for end in ("low", "high"))
    if low <= 0 <= high:
        return f"{words} no clear difference"
    return f"{words} {100 * row[name]:+.1f} points ({low:+.1f} to {high:+.1f})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _range(row: Row, name: str) -> str | None:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{100 * low:.1f} to {100 * high:.1f}" if math.isfinite(low) else None


# ---- figures --------------------------------------------------------------------------------------------------


def samples_section(scaled: Scaled) -> PanelsSection:
    """Accuracy against the number of samples, a panel per metric."""
    panels = [
        _curves(f"{WORDS[name]} against k", scaled.whole, "k", name, "samples k (log scale)")
        for name in ("avg", "pass", "maj")
    ]
    drawn = ", ".join(dict.fromkeys(str(num) for num in scaled.num_samples.values()))
    text = f"Every k from {drawn} samples a problem. {_BANDS}"
    return PanelsSection(f"Accuracy against samples{_of(scaled)}", panels, text)


def choosers_sections(scaled: Scaled) -> list[PanelsSection]:
    """Ways to choose one answer of k against each other, a panel per policy; none where there is but one k."""
    rows = scaled.whole
    if len({row["k"] for row in rows}) < 2:
        return []
    panels = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        curves = [curve for name in CHOOSERS if (curve := _curve(WORDS[name], own, "k", name))]
        panels.append(_panel(policy, curves, "samples k (log scale)", "right"))
    title = f"Choosing one answer of k without a verifier{_of(scaled)}"
    return [PanelsSection(title, panels, _BANDS)]


def costs_section(scaled: Scaled) -> PanelsSection:
    """maj@k, and pass@k, against each cost."""
    panels = []
    for cost, words in COSTS.items():
        places = [row[cost] for row in scaled.whole]
        if not all(math.isfinite(place) and place > 0 for place in places):
            continue
        unit, prefix = short_unit(places)
        rows = [row | {cost: row[cost] / unit} for row in scaled.whole]
        label = f"{prefix}{words} (log scale)"
        panels += [
            _curves(f"{WORDS[name]} against {words}", rows, cost, name, label) for name in ("maj", "pass")
        ]
    return PanelsSection(f"Accuracy against cost{_of(scaled)}", panels, _COSTS_TEXT + _BANDS)


def budget_sections(scaled: Scaled) -> list[PanelsSection]:
    """Accuracy against the longest response allowed, a panel per k; none without budgets."""
    rows = [row for row in scaled.over_tasks(scaled.rows) if row["budget"] is not None]
    if not rows:
        return []
    ks = sorted({row["k"] for row in rows})
    chosen = [("avg", ks[0]), *(("maj", k) for k in ks if k > 1)]
    panels = [
        _curves(
            WORDS[name].replace("@k", "" if name == "avg" else f"@{k}"),
            [row for row in rows if row["k"] == k],
            "budget",
            name,
            "longest response in tokens (log scale)",
        )
        for name, k in chosen
    ]
    text = f"A longer response counts as it stood at the budget. {_BANDS}"
    return [PanelsSection(f"Accuracy against the length of a response{_of(scaled)}", panels, text)]


def _of(scaled: Scaled) -> str:
    tasks = [task for task in dict.fromkeys(row["task"] for row in scaled.rows) if task != MEAN]
    return f" on {tasks[0]}" if len(tasks) == 1 else f", mean of {len(tasks)} tasks"


def _curves(title: str, rows: Sequence[Row], x: str, name: str, x_label: str) -> CurvesSection:
    """A curve per policy."""
    policies = dict.fromkeys(row["policy"] for row in rows)
    own = {policy: [row for row in rows if row["policy"] == policy] for policy in policies}
    curves = [curve for policy in policies if (curve := _curve(policy, own[policy], x, name))]
    return _panel(title, curves, x_label, title.partition(" against ")[0])


def _curve(label: str, rows: Sequence[Mapping[str, Any]], x: str, name: str) -> Curve | None:
    """None where the metric was not computed."""
    known = sorted((row for row in rows if math.isfinite(row[name])), key=lambda row: row[x])
    if not known:
        return None
    columns = [[row[f"{name}{end}"] for row in known] for end in ("", "_low", "_high")]
    return Curve(label, [row[x] for row in known], *columns)


def _panel(title: str, curves: Sequence[Curve], x_label: str, y_label: str) -> CurvesSection:
    places = sorted({at for curve in curves for at in curve.x})
    counted = all(float(at).is_integer() and at < 10_000 for at in places)
    return CurvesSection(
        title,
        curves,
        x_label=x_label,
        y_label=y_label,
        x_ticks=places if counted and len(places) <= 6 else None,
        x_log=True,
        y_percent=True,
        band=True,
    )
