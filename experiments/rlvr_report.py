"""Tables and pictures of the runs of `rlvr.py` that have ended."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from navtoken.evaluation.metrics import mean_and_error
from navtoken.report import Curve, CurvesSection, write_svg
from navtoken.report.markup import write_whole

Run = dict[str, Any]

ARMS = {
    "all": "all tokens",
    "top20": "top 20 %",
    "bottom80": "bottom 80 %",
    "random20": "random 20 %",
    "top10": "top 10 %",
    "top50": "top 50 %",
}
FOUR = ("all", "top20", "bottom80", "random20")
RHO = ("top10", "top20", "top50", "all")
TESTS = ("countdown", "countdown, greedy", "knights", "arithmetic")
AGAIN, LIMIT, MORE, LONGER = "_again", "_limit", "_more", "_longer"
SUFFIXES = {
    "": "",
    AGAIN: ", run again",
    LIMIT: ", tested with the larger limit",
    MORE: ", 10 more steps with the smaller one",
    LONGER: ", 10 more steps with it",
}
"""Of names of runs: the same training on another machine, and of those, or else of the first ones: tested with a larger length limit, trained on."""


@dataclass(frozen=True)
class Difference:
    """An arm less another, on the same problems and seeds."""

    value: float
    error_problems: float
    """Over problems, seeds taken as they are."""
    by_seed: list[float]

    @property
    def error(self) -> float:
        """Problems and seeds together; of few seeds the second part is a guess."""
        if len(self.by_seed) < 2:
            return nan
        return sqrt(self.error_problems**2 + stdev(self.by_seed) ** 2 / len(self.by_seed))


def report(runs_folder: Path, out: Path, console: Console) -> None:
    """Write `table.md`, `readme.md`, `summary.json` and the pictures into `out`."""
    runs = [json.loads(path.read_text()) for path in sorted(runs_folder.glob("*.json"))]
    base = next((run for run in runs if run["name"] == "base"), None)
    arms = by_arm([run for run in runs if not run["name"].startswith("tune") and run is not base])
    text = markdown(arms, base, [run for run in runs if run["name"].startswith("tune")])
    write_whole(out / "table.md", text)
    write_whole(out / "readme.md", readme_markdown(arms, base))
    write_whole(out / "summary.json", json.dumps(summary(arms, base), indent=1) + "\n")
    for name, section in pictures(arms).items():
        write_svg(section, out / f"{name}.svg")
    console.print(text, markup=False)


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by arm, those run again and those with a larger length limit as arms of their own; by seed."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run["seed"]):
        name, suffix = _parted(run["name"])
        found[name.rpartition("_")[0] + suffix].append(run)
    return dict(found)


def _parted(name: str) -> tuple[str, str]:
    """A run's or an arm's name without its suffix, and that."""
    suffix = next((each for each in SUFFIXES if each and name.endswith(each)), "")
    return name.removesuffix(suffix), suffix


# ---- figures --------------------------------------------------------------------------------------------------


def accuracy(run: Run, test: str) -> float:
    return float(run["test"][test]["accuracy"])


def problems_of(run: Run, test: str) -> dict[str, float]:
    """Share of right responses by problem."""
    (correct,) = run["test"][test]["correct"].values()
    return dict(correct)


def mean_over_seeds(runs: Sequence[Run], test: str) -> dict[str, float]:
    each = [problems_of(run, test) for run in runs]
    return {problem: fmean(own[problem] for own in each) for problem in each[0]}


def difference(one: Sequence[Run], other: Sequence[Run], test: str) -> Difference:
    """Of the seeds that both have."""
    seeds = {run["seed"] for run in one} & {run["seed"] for run in other}
    one, other = ([run for run in runs if run["seed"] in seeds] for runs in (one, other))
    ours, theirs = mean_over_seeds(one, test), mean_over_seeds(other, test)
    value, error = mean_and_error([ours[problem] - theirs[problem] for problem in ours])
    by_seed = [accuracy(a, test) - accuracy(b, test) for a, b in zip(one, other, strict=True)]
    return Difference(value, error, by_seed)


def summary(arms: Mapping[str, Sequence[Run]], base: Run | None) -> dict[str, Any]:
    """All that the table says, as numbers."""
    found: dict[str, Any] = {"arms": {}, "differences": {}}
    for arm, runs in arms.items():
        found["arms"][arm] = {
            "seeds": [run["seed"] for run in runs],
            **{test: [accuracy(run, test) for run in runs] for test in TESTS},
            "overlap": [run["drift"][-1]["overlap"]["value"] for run in runs if run["drift"]],
            "revisions": sorted({str(run["provenance"]["git_revision"]) for run in runs}),
        }
        for control in _controls(arm, arms):
            own = {test: difference(runs, arms[control], test) for test in TESTS}
            found["differences"][f"{arm} - {control}"] = {
                test: vars(each) | {"error": each.error} for test, each in own.items()
            }
    if base is not None:
        found["base"] = {test: accuracy(base, test) for test in TESTS}
    return found


# ---- the table ------------------------------------------------------------------------------------------------


def markdown(arms: Mapping[str, Sequence[Run]], base: Run | None, tuning: Sequence[Run]) -> str:
    head = ("arm", "seeds", *TESTS, "countdown less `all`", "tokens", "top 20 % as base's (%)")
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    if base is not None:
        cells = [_percent(base["test"][test]["accuracy"]) for test in TESTS]
        lines.append(_line("base", "–", *cells, "–", f"{base['test']['countdown']['mean_length']:.0f}", "–"))
    for arm in (name for name in _ordered(arms)):
        runs = arms[arm]
        control = _all_tokens(arm)
        compared = control != arm and control in arms
        versus = _versus(difference(runs, arms[control], "countdown")) if compared else "–"
        overlaps = [run["drift"][-1]["overlap"]["value"] for run in runs if run["drift"]]
        lengths = fmean(run["test"]["countdown"]["mean_length"] for run in runs)
        cells = [_percent(*(accuracy(run, test) for run in runs)) for test in TESTS]
        overlap = f"{100 * fmean(overlaps):.1f}" if overlaps else "–"
        lines.append(_line(_named(arm), str(len(runs)), *cells, versus, f"{lengths:.0f}", overlap))
    tuned = [
        f"{run['provenance']['arguments']['update']['learning_rate']:g}: {100 * each['accuracy']:.1f} ± {100 * each['accuracy_se']:.1f} %"
        for run in tuning
        for each in run["held_out"]
        if each["step"] == run["provenance"]["arguments"]["steps"]
    ]
    return (
        "Accuracy in percent on test problems after training on countdown, mean over seeds (smallest to largest); `less all` with the "
        "standard error over problems and seeds, of arms with something added to their name less `all` with the same.\n\n"
        + "\n".join(lines)
        + _longer_markdown(arms)
        + f"\n\nTuning of the learning rate on arm `all`, held-out accuracy at T = 1: {'; '.join(tuned)}.\n"
    )


def _longer_markdown(arms: Mapping[str, Sequence[Run]]) -> str:
    """What a larger length limit in testing, more steps, and both changed, by arm."""
    told = []
    for arm in (each for each in _ordered(arms) if _parted(each)[1] in (LIMIT, MORE, LONGER)):
        before = next((each for each in _before(arm) if each in arms), None)
        if before is not None:
            gained = [_versus(difference(arms[arm], arms[before], test)) for test in TESTS[:2]]
            told.append(f"{_named(arm)} less {_named(before)} {gained[0]}, greedy {gained[1]}")
    return f"\n\nOn countdown, points: {'; '.join(told)}." if told else ""


def readme_markdown(arms: Mapping[str, Sequence[Run]], base: Run | None) -> str:
    """The four arms on what they were trained on."""
    head = ("gradient from", "seeds", "accuracy (%)", "less all tokens (points)")
    lines = [_line(*head), "| --- |" + " ---: |" * (len(head) - 1)]
    if base is not None:
        lines.append(_line("none (the base)", "–", _percent(accuracy(base, "countdown")), "–"))
    for arm in (name for name in FOUR if name in arms):
        versus = "–" if arm == "all" else _versus(difference(arms[arm], arms["all"], "countdown"))
        found = _percent(*(accuracy(run, "countdown") for run in arms[arm]))
        lines.append(_line(ARMS[arm], str(len(arms[arm])), found, versus))
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(*values: float) -> str:
    spread = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


def _versus(found: Difference) -> str:
    return f"{100 * found.value:+.1f}" + (
        f" ± {100 * found.error:.1f}" if isfinite(found.error) else " (one seed)"
    )


def _all_tokens(arm: str) -> str:
    """All tokens, with the arm's own suffix."""
    return "all" + _parted(arm)[1]


def _before(arm: str) -> list[str]:
    """What an arm was before it was run again, or went on: what it went on from is tested with its own limit."""
    name, suffix = _parted(arm)
    return {
        AGAIN: [name],
        LIMIT: [name + AGAIN, name],
        MORE: [name + LIMIT],
        LONGER: [name + MORE, name + LIMIT],
    }.get(suffix, [])


def _controls(arm: str, arms: Mapping[str, Any]) -> list[str]:
    """Arms that one is held against."""
    before = [each for each in _before(arm) if each in arms]
    all_tokens = [_all_tokens(arm)] if _all_tokens(arm) != arm else []
    return [each for each in (*all_tokens, *before[:1]) if each in arms]


def _ordered(arms: Mapping[str, Any]) -> list[str]:
    known = [name + suffix for suffix in SUFFIXES for name in ARMS]
    return [name for name in known if name in arms]


def _named(arm: str) -> str:
    name, suffix = _parted(arm)
    return ARMS[name] + SUFFIXES[suffix]


# ---- pictures -------------------------------------------------------------------------------------------------

Series = Callable[[Run], list[tuple[float, float]]]
"""(step, value) of a run."""


def pictures(arms: Mapping[str, Sequence[Run]]) -> dict[str, CurvesSection]:
    """Those for which there are runs."""
    four = {arm: arms[arm] for arm in FOUR if arm in arms}
    rho = {arm: arms[arm] for arm in RHO if arm in arms}
    made = {
        "accuracy": _curves(
            four, "Held-out accuracy at T = 1", held_out("accuracy"), "accuracy", percent=True
        ),
        "length": _curves(four, "Tokens of a response", held_out("mean_length"), "tokens"),
        "entropy": _curves(four, "Entropy of the policy", held_out("entropy"), "nats a token"),
        "overlap": _curves(
            four, "Top 20 % that are the base's too", overlap, "share of positions", percent=True
        ),
        "change": _bins(four),
    }
    if len(rho) > 2:
        made["fractions"] = _curves(
            rho, "Held-out accuracy at T = 1", held_out("accuracy"), "accuracy", percent=True
        )
    return made


def held_out(name: str) -> Series:
    return lambda run: [(each["step"], float(each[name])) for each in run["held_out"]]


def overlap(run: Run) -> list[tuple[float, float]]:
    return [(each["step"], float(each["overlap"]["value"])) for each in run["drift"]]


def _curves(
    arms: Mapping[str, Sequence[Run]], title: str, series: Series, label: str, percent: bool = False
) -> CurvesSection:
    curves = [_curve(ARMS[arm], [series(run) for run in runs]) for arm, runs in arms.items()]
    return CurvesSection(title, curves, "step", label, y_percent=percent, band=True)


def _curve(name: str, runs: Sequence[list[tuple[float, float]]]) -> Curve:
    """Mean over seeds; the band is from the smallest to the largest."""
    places = [x for x, _ in min(runs, key=len)]
    values = [[dict(run)[x] for run in runs] for x in places]
    return Curve(name, places, [fmean(v) for v in values], [min(v) for v in values], [max(v) for v in values])


def _bins(arms: Mapping[str, Sequence[Run]]) -> CurvesSection:
    """Mean size of the change of entropy by 5 % bin of base entropy, at the end."""
    curves = []
    for arm, runs in arms.items():
        last = [[each["value"] for each in run["drift"][-1]["size_by_bin"]] for run in runs if run["drift"]]
        places = [5.0 * (index + 0.5) for index in range(len(last[0]))]
        curves.append(_curve(ARMS[arm], [list(zip(places, each, strict=True)) for each in last]))
    return CurvesSection(
        "Change of entropy by entropy under the base", curves, "percentile of base entropy", "nats", band=True
    )
