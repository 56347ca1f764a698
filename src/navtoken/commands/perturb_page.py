"""The page of the decoding experiment: both sweeps on one picture, the table, and the same problems at telling points."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from navtoken.analysis.perturbation import BASE, Outcome, Perturbation, Point, Study, traces_of
from navtoken.analysis.ranking import REACH
from navtoken.report import (
    Column,
    Curve,
    CurvesSection,
    Page,
    Section,
    TableSection,
    TracesSection,
    build_page,
    decode_of,
)
from navtoken.trace import Trace

SHOWN_PROBLEMS = 4
"""Problems of each study whose responses are on the page."""
NAMES = {"forking": "forking tokens", "others": "all others"}

_INTRO = (
    "A few tokens of a chain of thought are forks: the model could go on in several ways, and its entropy is high. The rest "
    "nearly follow from what came before. Here both kinds are drawn at temperatures of their own. If forks decide where the "
    "reasoning goes and the rest only carry it out, heat at the forks should do little harm, and heat at the rest much."
)

_COLUMNS = (
    Column("fork_temperature", "T of forking tokens", "number", digits=2),
    Column("other_temperature", "T of all others", "number", digits=2),
    Column("accuracy", "accuracy (%)", "percent", error="accuracy_se", bar=True, help="Right answers, ± one standard error over problems."),
    Column("change", "change (points)", "percent", error="change_se", help="Against both at 1, problem by problem, ± one standard error."),
    Column("fork_share", "forking tokens (%)", "percent", help="Tokens written whose entropy was above the threshold."),
    Column("mean_length", "tokens per response", "number"),
    Column("cut_share", "cut off (%)", "percent", help="Responses that reached the longest length."),
)  # fmt: skip


def write_page(path: Path, perturbation: Perturbation, tokenizer: Any) -> Path:
    """Write the page: for each policy and task the curves, then one table, then responses."""
    several = len(perturbation.studies) > 1
    sections: list[Section] = [curves(study, named=several) for study in perturbation.studies]
    rows = [row for study in perturbation.studies for row in _rows(study)]
    sections.append(TableSection("All points", _COLUMNS, rows, group_by="group"))
    shown = [trace for study in perturbation.studies for trace in telling_traces(study)]
    sections.append(
        TracesSection(
            "The same problems, heated at one kind of token or the other", shown, decode_of(tokenizer)
        )
    )
    title = "Which tokens bear heat: forking tokens, or the others?"
    return build_page(Page(title, _INTRO, sections, perturbation.provenance), path)


def curves(study: Study, named: bool = False) -> CurvesSection:
    """Both sweeps on one picture, with 95 % intervals over problems; `named` says in the title whose they are."""
    drawn = [_curve(NAMES[swept], swept, study.curve(swept)) for swept in NAMES]
    ticks = sorted({x for curve in drawn for x in curve.x})
    samples = study.outcomes[BASE].metrics
    return CurvesSection(
        (f"{_group(study.policy, study.task)}: " if named else "") + finding(study),
        drawn,
        x_label="temperature of one kind of token, the other kind at 1",
        y_label="accuracy",
        text=(
            f"{study.task} under {study.policy}: {samples['num_problems']} problems, {samples['num_responses']} responses a "
            f"point; a token forks above {study.threshold:.3f} nats. Bars are 95 % intervals over problems. At temperature 0 "
            "the most probable token is taken."
        ),
        x_ticks=ticks,
        x_log=True,
        y_percent=True,
    )


def finding(study: Study) -> str:
    """What the two sweeps say, at 2 where that was run; a difference is claimed only beyond two standard errors."""
    at = telling_temperature(study)
    if at is None:
        return "Only temperature 1 was tried"
    forking, others = Point(at, 1.0), Point(1.0, at)
    gap, error = study.gap(forking, others)
    if not abs(gap) > 2 * error:
        return f"Drawn at T = {at:g}, forking tokens and all others do not clearly differ"
    changes = [_points(*study.gap(point)) for point in (forking, others)]
    return f"Drawn at T = {at:g}, forking tokens {changes[0]}, all others {changes[1]}"


def telling_temperature(study: Study) -> float | None:
    """2, else the lowest above 1, else the lowest of all but 1; None where only 1 was run."""
    swept = [each.point.fork for each in study.curve("forking") if each.point != BASE]
    hot = [t for t in swept if t > 1]
    if 2.0 in hot:
        return 2.0
    return min(hot or swept, default=None)


def telling_traces(study: Study) -> list[Trace]:
    """The first sample of a few problems at (1, 1) and at both telling points, named by the point and not by the policy."""
    at = telling_temperature(study)
    pair = [] if at is None else [Point(at, 1.0), Point(1.0, at)]
    shown: list[Trace] = []
    wanted: list[str] = []
    for point in (BASE, *pair):
        outcome = study.outcomes[point]
        wanted = wanted or [
            request.problem.problem_id
            for request in islice((r for r in outcome.cell.requests if r.sample == 0), SHOWN_PROBLEMS)
        ]
        first = {trace.problem_id: trace for trace in traces_of(outcome) if trace.sample == 0}
        shown += [replace(first[problem], policy=_name(study, point)) for problem in wanted]
    return shown


def _name(study: Study, point: Point) -> str:
    which = "both at 1" if point == BASE else f"{NAMES[point.swept]} at {max(point, key=_off):g}"
    return f"{study.policy}, {which}"


def _off(temperature: float) -> float:
    return abs(temperature - 1)


def _curve(name: str, swept: str, outcomes: Sequence[Outcome]) -> Curve:
    means = [each.metrics["accuracy"] for each in outcomes]
    # A single problem has no error: no bar is drawn.
    errors = [REACH * each.metrics["accuracy_se"] for each in outcomes]
    return Curve(
        name,
        [each.point.fork if swept == "forking" else each.point.other for each in outcomes],
        means,
        [_clipped(mean - error) for mean, error in zip(means, errors, strict=True)],
        [_clipped(mean + error) for mean, error in zip(means, errors, strict=True)],
    )


def _clipped(value: float) -> float:
    """An end of an interval of fractions; NaN stays."""
    return value if math.isnan(value) else min(1.0, max(0.0, value))


def _points(change: float, error: float) -> str:
    if not abs(change) > 2 * error:
        return "make no clear difference"
    rounded = f"{100 * abs(change):.0f}"
    return f"{'gain' if change > 0 else 'lose'} {rounded} point{'' if rounded == '1' else 's'}"


def _rows(study: Study) -> list[dict[str, Any]]:
    """Both sweeps one after the other, each by its temperature; (1, 1) is in both."""
    return [
        study.row(outcome) | {"group": f"{_group(study.policy, study.task)}, {name} swept"}
        for swept, name in NAMES.items()
        for outcome in study.curve(swept)
    ]


def _group(policy: str, task: str) -> str:
    return f"{policy} · {task}"
