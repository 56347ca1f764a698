"""Tables and pictures of what `test_time_scaling.py` drew."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from navtoken.analysis.plain import plain
from navtoken.commands.scale import MEASUREMENTS
from navtoken.commands.scale_page import Scaled, budget_sections, costs_section, samples_section
from navtoken.evaluation.measurements import ByProblem, Measurements, Setting
from navtoken.evaluation.metrics import Row
from navtoken.evaluation.scaling import Resampling
from navtoken.report import Curve, CurvesSection, PanelsSection, write_svg
from navtoken.report.figure import Drawn
from navtoken.report.markup import write_whole
from navtoken.trace import read_traces

RESAMPLING = Resampling(2000, 0)
ROUTERS = ("router 10%", "router 15%", "router 20%")
SEEDS = (0, 1, 2)

LLMS = {
    "base": "base on all",
    "base on all tokens": "all 0 on all",
    "base on forks": "top20 0 on all",
    "base on a random 20 %": "random20 0 on all",
}
"""LLMs that the router that ships routes to, and the arm of each alone."""
SLMS = ("slm", "slm on forks", "slm on all tokens")
"""SLMs with routers of their own."""

GROUPS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "policies": {name: [name] for name in ("slm", *ROUTERS, "hindsight", "speculative", "llm")},
    "training": {
        "base": ["base on countdown"],
        "all tokens": [f"all {seed} on countdown" for seed in SEEDS],
        "top 20 %": [f"top20 {seed} on countdown" for seed in SEEDS],
        "random 20 %": [f"random20 {seed} on countdown" for seed in SEEDS],
    },
    "families": {
        "base": ["base on all"],
        "all tokens": ["all 0 on all"],
        "top 20 %": ["top20 0 on all"],
        "random 20 %": ["random20 0 on all"],
    },
    "halves": {
        **{
            name: [arm]
            for llm, alone in LLMS.items()
            for name, arm in (
                (llm, alone),
                *((f"{router}, {llm}", f"{router} with {llm}") for router in ROUTERS),
            )
        },
        **{
            name: [arm]
            for slm in SLMS
            for name, arm in (
                (slm, slm),
                *((f"own {router}, {slm}", f"own {router} of {slm}") for router in ROUTERS),
            )
        },
    },
}
"""By question: name in the tables -> arms, over which each problem's figures are averaged (seeds of one training)."""
COMPARED = {
    "policies": [
        *((router, "llm") for router in ROUTERS),
        ("hindsight", "llm"),
        ("speculative", "llm"),
        ("slm", "llm"),
    ],
    "training": [
        *((arm, "base") for arm in ("all tokens", "top 20 %", "random 20 %")),
        ("top 20 %", "all tokens"),
        ("random 20 %", "all tokens"),
    ],
    "families": [(arm, "base") for arm in ("all tokens", "top 20 %", "random 20 %")],
    "halves": [
        *((f"{router}, base", "base") for router in ROUTERS),
        *((f"{router}, {llm}", f"{router}, base") for llm in LLMS if llm != "base" for router in ROUTERS),
        *((f"{router}, base on forks", f"{router}, base on all tokens") for router in ROUTERS),
        *((slm, "slm") for slm in SLMS[1:]),
        *((f"own {router}, {slm}", f"own {router}, slm") for slm in SLMS[1:] for router in ROUTERS),
    ],
}
"""By question: (one, another), whose differences are told."""
ACROSS = {
    "policies": [
        *((policy, 4 * k, "llm", k) for k in (1, 4) for policy in ("router 20%", "speculative", "hindsight")),
    ],
}
"""By question: (one, its k, another, its k), which read about as many bytes; chosen when these were known."""
TITLES = {
    "policies": "Policies of the pair, mean of three families",
    "training": "Training from the base, on countdown, mean of three seeds",
    "families": "The same, one training each (seed 0), mean of three families",
    "halves": "Routing with trained models (one training each), mean of three families",
}


class Named(Protocol):
    """An arm as the study names it."""

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> str: ...


@dataclass(frozen=True)
class Found:
    """Figures of one question."""

    rows: list[Row]
    differences: list[Row]
    shares: dict[str, Row]
    """LLM shares, by name, and those of one less another."""
    across: list[Row]
    """One less another at another k, and what one costs in parts of the other."""
    by_seed: list[Row]
    """Rows of arms that are averaged, one by one."""

    def scaled(self, names: Sequence[str] | None = None) -> Scaled:
        rows = [row for row in self.rows if names is None or row["policy"] in names]
        return Scaled(rows, [], {}, {})


def report(arms: Sequence[Named], work: Path, out: Path, console: Console) -> None:
    """Write `scale.json`, `table.md`, `readme.md` and the pictures into `out`."""
    folders = {arm.name: work / "arms" / arm.folder for arm in arms}
    found = {question: of_question(question, folders) for question in GROUPS if _drawn(question, folders)}
    if not found:
        raise SystemExit(
            f"no question's arms are all under '{work}'; run `experiments/test_time_scaling.py draw` first"
        )
    labelled = work / "labels.json"
    labels = json.loads(labelled.read_text()) if labelled.exists() else {}
    kept = {
        question: {
            "rows": [
                _figures(row, question == "policies")
                for row in each.rows
                if row["budget"] is None or question == "policies"
            ],
            "differences": [_figures(row, question == "policies") for row in each.differences],
            "shares": {name: _figures(row) for name, row in each.shares.items()},
            "across": [_figures(row) for row in each.across],
            "by_seed": [_figures(row) for row in each.by_seed],
        }
        for question, each in found.items()
    }
    asked = {arm for question in found for arms in GROUPS[question].values() for arm in arms}
    provenance = {name: _provenance(folders[name]) for name in folders if name in asked}
    result = plain({**kept, "labels": labels, "provenance": provenance})
    write_whole(out / "scale.json", json.dumps(result) + "\n")
    text = markdown(found, labels)
    write_whole(out / "table.md", text)
    if "policies" in found:
        write_whole(out / "readme.md", _table(found["policies"], short=True) + "\n")
    for name, (section, columns) in pictures(found).items():
        write_svg(section, out / f"{name}.svg", columns=columns)
    console.print(text, markup=False)


def _drawn(question: str, folders: Mapping[str, Path]) -> bool:
    """Whether all of its arms are there."""
    arms = [arm for own in GROUPS[question].values() for arm in own]
    return all(arm in folders and (folders[arm] / "table.json").exists() for arm in arms)


def of_question(question: str, folders: Mapping[str, Path]) -> Found:
    names = GROUPS[question]
    asked = dict.fromkeys(arm for arms in names.values() for arm in arms)
    read = {arm: Measurements.read(folders[arm] / MEASUREMENTS) for arm in asked}
    together = averaged(names, read)
    differences = [
        row
        for one, other in COMPARED[question]
        for row in averaged({each: names[each] for each in (other, one)}, read).differences(RESAMPLING)
        if row["budget"] is None
    ]
    rows = together.rows(RESAMPLING)
    across = [
        _across(together, rows, *pair) for pair in ACROSS.get(question, ()) if _measured(pair, together)
    ]
    seeds = {arm: [arm] for arms in names.values() for arm in arms if len(arms) > 1}
    by_seed = [row for row in averaged(seeds, read).rows(RESAMPLING) if row["budget"] is None]
    return Found(rows, differences, llm_shares(question, folders), across, by_seed)


def _measured(pair: tuple[str, int, str, int], together: Measurements) -> bool:
    """Whether both of a pair were drawn at these k."""
    drawn = {(setting.policy, setting.k) for setting in together.values}
    return drawn >= {pair[:2], pair[2:]}


def _across(together: Measurements, rows: Sequence[Row], one: str, k: int, other: str, other_k: int) -> Row:
    """One at k less another at its k, problem by problem, and its costs over the other's."""
    chosen = {one: k, other: other_k}
    values = {
        setting._replace(k=1): own
        for setting, own in sorted(together.values.items(), key=lambda item: item[0].policy == one)
        if setting.budget is None and chosen.get(setting.policy) == setting.k
    }
    found = Scaled.over_tasks(Measurements(values, {}).differences(RESAMPLING))[-1]
    assert (found["policy"], found["less"]) == (one, other)
    whole = {(row["policy"], row["k"]): row for row in Scaled(list(rows), [], {}, {}).whole}
    costs = {
        f"{name}_ratio": whole[one, k][name] / whole[other, other_k][name] for name in ("bytes", "flops")
    }
    return found | {"k": k, "less_k": other_k} | costs


def averaged(names: Mapping[str, Sequence[str]], read: Mapping[str, Measurements]) -> Measurements:
    """Under each name the problem-by-problem mean of its arms."""
    values: dict[Setting, ByProblem] = {}
    for name, arms in names.items():
        for setting in read[arms[0]].values:
            runs = [read[arm].values[setting._replace(policy=_policy(read[arm]))] for arm in arms]
            values[setting._replace(policy=name)] = _mean(runs)
    samples = {name: min(min(read[arm].num_samples.values()) for arm in arms) for name, arms in names.items()}
    return Measurements(values, samples)


def _policy(measured: Measurements) -> str:
    (policy,) = measured.policies
    return policy


def _mean(runs: Sequence[ByProblem]) -> ByProblem:
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError("runs of one arm answered different problems; draw them again with one seed and num")
    return {
        problem: {name: fmean(run[problem][name] for run in runs) for name in own}
        for problem, own in runs[0].items()
    }


# ---- LLM shares -----------------------------------------------------------------------------------------------


def llm_shares(question: str, folders: Mapping[str, Path]) -> dict[str, Row]:
    """Share of the tokens that the LLM wrote, mean of the tasks, with an interval over problems; and of one less another."""
    counted = {
        name: _written(folders[arms[0]])
        for name, arms in GROUPS[question].items()
        if len(arms) == 1 and ("router" in name or name == "hindsight")
    }
    shares: dict[str, Row] = {name: _interval([tasks]) for name, tasks in counted.items()}
    for one, other in COMPARED[question]:
        if one in counted and other in counted:
            shares[f"{one} less {other}"] = _interval([counted[one], counted[other]])
    return shares


Written = dict[str, dict[str, list[int]]]
"""Task -> problem -> tokens of its responses that the LLM wrote, and all."""


def _written(folder: Path) -> Written:
    tasks: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for trace in read_traces(folder, columns=()):
        own = tasks[trace.task][trace.problem_id]
        own[0] += int(np.sum(np.asarray(trace.writer) == 1))
        own[1] += len(trace.response_ids)
    return {task: dict(own) for task, own in tasks.items()}


def _interval(written: Sequence[Written]) -> Row:
    """Of one arm's share, or of a first one's less a second one's on the same problems."""
    rng = np.random.default_rng(RESAMPLING.seed)
    values, resampled = [], []
    for task in written[0]:
        problems = sorted(written[0][task])
        if any(arm[task].keys() != set(problems) for arm in written):
            raise ValueError(
                f"two arms answered different problems of {task}; draw them again with one seed and num"
            )
        size = len(problems)
        weights_RP = rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLING.num)
        own = [np.array([arm[task][problem] for problem in problems], dtype=np.float64) for arm in written]
        values.append(_less([counts.sum(0) for counts in own]))
        resampled.append(_less([weights_RP @ counts for counts in own]))
    low, high = np.quantile(np.mean(resampled, 0), [0.025, 0.975])
    return {"share": float(np.mean(values)), "share_low": float(low), "share_high": float(high)}


def _less(counts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    shares = [each[..., 0] / each[..., 1] for each in counts]
    return np.asarray(shares[0] if len(shares) == 1 else shares[0] - shares[1])


# ---- tables ---------------------------------------------------------------------------------------------------


def markdown(found: Mapping[str, Found], labels: Mapping[str, list[Row]]) -> str:
    """Every question's table and differences, and what the router finds of the labels."""
    parts = [
        "Drawn at T = 1; percentages with 95 % bootstrap intervals over problems, of these trained models: other seeds would add to them. "
        + "Of the differences' intervals about one in twenty leaves out 0 by chance. Tokens and FLOPs per problem at that k."
    ]
    for question, each in found.items():
        parts += [
            f"## {TITLES[question]}",
            _table(each),
            _differences(each),
            _across_table(each),
            _seeds(each),
        ]
    if labels:
        parts += [
            "## Labels on test problems: where the SLM parts from each LLM, and what the router that ships finds",
            _labels(labels),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(*columns: str) -> list[str]:
    """A table's first two lines: names to the left, figures to the right."""
    return [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]


def _table(found: Found, short: bool = False) -> str:
    shown = (
        "policy",
        "avg",
        "pass@4",
        "pass@16",
        "pass@64",
        "maj@16",
        "maj@64",
        "answers@16",
        "LLM share",
        "tokens@16",
        "FLOPs@16 (M)",
    )
    lines = _head(*shown)
    whole = {(row["policy"], row["k"]): row for row in found.scaled().whole}
    for name in dict.fromkeys(policy for policy, _ in whole):
        few = whole.get((name, 16), {})
        cells = [
            _spread(whole[name, 1], "avg", short),
            *(_spread(whole.get((name, k)), "pass", short) for k in (4, 16, 64)),
            *(_spread(whole.get((name, k)), "maj", short) for k in (16, 64)),
            f"{few['distinct']:.2f}" if few else "–",
            _spread(found.shares.get(name), "share", short),
            f"{few['tokens']:,.0f}" if few else "–",
            f"{few['flops'] / 1e6:,.0f}" if few else "–",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _differences(found: Found) -> str:
    shown = (
        "difference (points)",
        "avg",
        "pass@16",
        "pass@64",
        "maj@16",
        "maj@64",
        "answers@16",
        "LLM share",
    )
    lines = _head(*shown)
    rows = {(row["policy"], row["less"], row["k"]): row for row in Scaled.over_tasks(found.differences)}
    for one, other in dict.fromkeys((one, other) for one, other, _ in rows):
        at = {k: rows.get((one, other, k)) for k in (1, 16, 64)}
        cells = [
            _spread(at[1], "avg"),
            *(_spread(at[k], "pass") for k in (16, 64)),
            *(_spread(at[k], "maj") for k in (16, 64)),
            _spread(at[16], "distinct", scale=1),
            _spread(found.shares.get(f"{one} less {other}"), "share"),
        ]
        lines.append(f"| {one} less {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _across_table(found: Found) -> str:
    if not found.across:
        return ""
    lines = _head(
        "at other k, chosen when the bytes were known (points)", "maj@k", "pass@k", "bytes", "FLOPs"
    )
    for row in found.across:
        cells = [
            f"{row['policy']}, k = {row['k']}, less {row['less']}, k = {row['less_k']}",
            _spread(row, "maj"),
            _spread(row, "pass"),
            *(f"x {row[f'{name}_ratio']:.2f}" for name in ("bytes", "flops")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seeds(found: Found) -> str:
    """Seeds one by one: arm and seed, then avg@1, pass@64, maj@64."""
    told = [
        f"{row['policy']} {100 * row['avg']:.1f}, {100 * row['pass']:.1f}, {100 * row['maj']:.1f}"
        for row in found.by_seed
        if row["k"] == 64
    ]
    return f"Seed by seed, avg, pass@64 and maj@64: {'; '.join(told)}." if told else ""


def _spread(row: Mapping[str, Any] | None, name: str, short: bool = False, scale: float = 100) -> str:
    """A figure with its interval; an en dash where there is none."""
    if row is None or not isfinite(row[name]):
        return "–"
    value, low, high = (scale * row[f"{name}{end}"] for end in ("", "_low", "_high"))
    digits = 1 if scale == 100 else 2
    return f"{value:.{digits}f}" + ("" if short else f" ({low:.{digits}f} to {high:.{digits}f})")


def _labels(labels: Mapping[str, list[Row]]) -> str:
    lines = _head(
        "LLM",
        "labelled tokens",
        "divergent (%)",
        "ROC area of the router",
        "of entropy",
        "found in the top 20 %",
    )
    for name, qualities in labels.items():
        whole = qualities[0]
        cells = [
            f"{whole['num_tokens']:,}",
            _ends(whole["share"], 100),
            _ends(whole["router"]["roc"]),
            _ends(whole["entropy"]["roc"]),
            _ends(whole["router_recall"][whole["shares"].index(0.2)], 100),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ends(interval: Mapping[str, float], scale: float = 1) -> str:
    digits = 1 if scale == 100 else 3
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(
        *(scale * interval[end] for end in ("value", "low", "high")), d=digits
    )


# ---- pictures -------------------------------------------------------------------------------------------------


def pictures(found: Mapping[str, Found]) -> dict[str, tuple[Drawn, int]]:
    """By file name: one per question, and its columns."""
    made: dict[str, tuple[Drawn, int]] = {}
    if "policies" in found:
        alone = found["policies"].scaled(["slm", *ROUTERS, "llm"])
        costs = costs_section(
            found["policies"].scaled(["slm", *ROUTERS[1:], "hindsight", "speculative", "llm"])
        )
        kept = [panel for panel in costs.panels if "FLOPs" in panel.title or "bytes" in panel.title]
        made |= {
            "samples": (_many(samples_section(alone)), 2),
            "tokens": (budget_sections(alone)[0], 2),
            "cost": (replace(costs, panels=kept), 2),
        }
    if "training" in found:
        made["training"] = (_many(samples_section(found["training"].scaled())), 2)
    if told := [question for question in ("policies", "training") if question in found]:
        made["diversity"] = (diversity({question: found[question] for question in told}), 2)
    if "halves" in found:
        made["halves"] = (halves(found["halves"]), 1)
    return made


def _many(section: PanelsSection) -> PanelsSection:
    """Without avg@k, which is the same at every k and where the others begin."""
    return replace(section, panels=section.panels[1:])


def diversity(found: Mapping[str, Found]) -> PanelsSection:
    """Different answers among k samples; speculative decoding has the LLM's."""
    panels = []
    for question, own in found.items():
        rows = [row for row in own.scaled().whole if row["policy"] != "speculative"]
        curves = [
            _curve(name, [row for row in rows if row["policy"] == name], "k", "distinct", 1)
            for name in dict.fromkeys(row["policy"] for row in rows)
        ]
        panels.append(
            CurvesSection(
                TITLES[question],
                curves,
                "samples k (log scale)",
                f"different answers, {question}",
                x_ticks=(1, 4, 16, 64),
                x_log=True,
                band=True,
            )
        )
    return PanelsSection("Different answers among k samples", panels)


def halves(found: Found) -> CurvesSection:
    """Accuracy against the share that the LLM came to write, a line per pair."""
    lines = {
        **{f"LLM: {llm}": ("slm", tuple(f"{router}, {llm}" for router in ROUTERS)) for llm in list(LLMS)[:3]},
        **{
            slm.replace("slm", "SLM"): (slm, tuple(f"own {router}, {slm}" for router in ROUTERS))
            for slm in SLMS
        },
    }
    rows = {row["policy"]: row for row in found.scaled().whole if row["k"] == 1}
    curves = []
    for name, (alone, routers) in lines.items():
        placed = [rows[each] | found.shares.get(each, {"share": 0.0}) for each in (alone, *routers)]
        curves.append(_curve(name, placed, "share", "avg", 100))
    return CurvesSection(
        "Accuracy of one response against the share that the LLM wrote",
        curves,
        "tokens that the LLM wrote (%)",
        "right",
        y_percent=True,
        band=True,
    )


def _curve(name: str, rows: Sequence[Row], x: str, y: str, scale: float) -> Curve:
    return Curve(
        name,
        [scale * row[x] for row in rows],
        *([row[f"{y}{end}"] for row in rows] for end in ("", "_low", "_high")),
    )


def _figures(row: Mapping[str, Any], scores: bool = False) -> Row:
    """In five digits, as the file is committed; intervals as standard errors, too. Seconds, which are
    those of a machine that others used, are left out, and so is best of k by a score unless it is asked for."""
    errors = {
        f"{name}_se": (value - row[f"{name}_low"]) / (2 * 1.96)
        for end, value in row.items()
        if end.endswith("_high") and (name := end.removesuffix("_high"))
    }
    return {
        name: float(f"{value:.5g}") if isinstance(value, float) else value
        for name, value in (errors | dict(row)).items()
        if not name.startswith("seconds") and (scores or not name.startswith("best_"))
    }


def _provenance(folder: Path) -> Row:
    """What an arm's responses came from; its long lists are the traces'."""
    return dict(Measurements.read(folder / MEASUREMENTS).provenance)
