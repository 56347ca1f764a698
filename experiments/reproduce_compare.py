"""Whether a figure made again agrees with the committed one, and the table that says so.

Three cases, since a plain interval of two independent figures would be too wide for some and wrong for others:

* whole run, `varies` is `no`: both come from the same problems and noise, so nothing is left to chance; they agree if they differ by no more
  than the declared tolerance.
* `varies` is `training`: the two are independent draws on the same problems; they agree if |a - b| <= q * sqrt(se_a² + se_b²), q being 1.96,
  or Student's 2.78 (4 degrees of freedom) where both errors are of three seeds or steps. Errors over problems count though the problems are the same, so this is rather too wide.
* small run: its problems are the first of the committed ones, with the same noise. With the same answers to them, the variance of the difference is se_small² - se_committed²
  (a part against its whole), where se_small is se_committed * sqrt(N/n): the better-known error of the two, and never 0 by luck. Figures whose file
  has no error take it from the small run's responses. The tolerance is added. Where files hold the answers problem by problem, the committed figure is taken
  on the small run's problems, and the tolerance alone counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Literal

from reproduce_figures import Figure, Measured, MissingFigure, measured, on_shared_problems
from reproduce_run import Outcome, minutes
from reproduce_steps import Size, Step

NORMAL, STUDENT_4 = 1.96, 2.78
CHANCE = 0.05
Verdict = Literal["yes", "no", "missing"]


@dataclass(frozen=True)
class Compared:
    """A committed figure against the same one made again."""

    figure: Figure
    committed: float
    again: float | None
    allowed: float | None
    """Largest difference that counts as agreement."""
    by_chance: bool = False
    """Whether one in twenty may be outside though nothing has changed."""
    why: str = ""

    @property
    def verdict(self) -> Verdict:
        if self.again is None or self.allowed is None:
            return "missing"
        # Files hold few digits: what differs by the tolerance to the last of them is within it.
        return "yes" if abs(self.again - self.committed) <= self.allowed * (1 + 1e-9) else "no"


def compare(figure: Figure, committed: Path, made: Path, size: Size, part: float = 1.0) -> Compared:
    """`part` is the share of the committed run's problems that the small run has."""
    was = measured(figure, committed)
    try:
        now = measured(figure, made)
        if size == "quick" and figure.problems:
            was, now = on_shared_problems(figure, committed, made)
        allowed, by_chance = _allowed(figure, was, now, size, part, made / "work")
    except (LookupError, OSError) as problem:
        return Compared(figure, was.value, None, None, why=str(problem.args[0] if problem.args else problem))
    return Compared(figure, was.value, now.value, allowed, by_chance)


def _allowed(
    figure: Figure, was: Measured, now: Measured, size: Size, part: float, work: Path
) -> tuple[float, bool]:
    if figure.varies == "training":
        if was.error is None or now.error is None:
            raise MissingFigure(f"{figure.name} has no standard error")
        of_three = figure.error == figure.place
        return (STUDENT_4 if of_three else NORMAL) * sqrt(was.error**2 + now.error**2), True
    if size == "full" or figure.paired or figure.problems:
        return figure.tolerance, False
    if was.error is not None:
        error = was.error * sqrt(1 / part - 1)
    elif figure.spread is not None:
        error = figure.spread(work) * sqrt(1 - part)
    else:
        raise MissingFigure(f"{figure.name} has no standard error")
    return NORMAL * error + figure.tolerance, True


# ---- the table ------------------------------------------------------------------------------------------------


def markdown(
    rows: Sequence[Compared],
    steps: Sequence[Step],
    outcomes: Mapping[str, Outcome],
    skipped: Mapping[str, str],
) -> str:
    """Steps, figures, and how many of them were expected to be outside."""
    lines = ["| step | what became of it | time | processor time |", "| --- | --- | ---: | ---: |"]
    for step in steps:
        outcome = outcomes[step.name]
        state = outcome.state + (f": {outcome.why}" if outcome.why else "")
        times = f"{minutes(outcome.seconds)} | {minutes(outcome.cpu_seconds)}"
        lines.append(f"| {step.name} | {state} | {times} |")
    lines += [f"| {name} | skipped: {why} |  |  |" for name, why in skipped.items()]
    lines += [
        "",
        "| experiment | figure | committed | made again | difference | allowed | within |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [_line(row) for row in rows]
    return "\n".join([*lines, "", verdict_line(rows)]) + "\n"


def _line(row: Compared) -> str:
    scale, name = row.figure.scale, f"{row.figure.experiment} | {row.figure.name}"
    if row.again is None or row.allowed is None:
        return f"| {name} | {number(scale * row.committed)} | – | – | – | {row.verdict}: {row.why} |"
    cells = [number(scale * value) for value in (row.committed, row.again)]
    difference = f"{scale * (row.again - row.committed):+.2g}"
    kind = "±" if row.by_chance else "exact, ±"
    return (
        f"| {name} | {' | '.join(cells)} | {difference} | {kind} {scale * row.allowed:.2g} | {row.verdict} |"
    )


def number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4g}"


def verdict_line(rows: Sequence[Compared]) -> str:
    compared = [row for row in rows if row.verdict != "missing"]
    chance = [row for row in compared if row.by_chance]
    outside = [row for row in compared if row.verdict == "no"]
    exact = sum(not row.by_chance for row in outside)
    return (
        f"{len(compared)} of {len(rows)} figures compared, {len(outside)} not within. Of the {len(chance)} with an interval of 95 %, "
        f"{len(outside) - exact} are outside, and about {CHANCE * len(chance):.1f} were expected to be by chance alone; of the "
        f"{len(compared) - len(chance)} that chance cannot move, {exact}, and none was expected to be."
    )


def all_is_well(rows: Sequence[Compared], outcomes: Mapping[str, Outcome]) -> bool:
    """No step failed, nothing is missing, nothing exact moved, and no more is outside than chance takes out twice as often as not at all."""
    chance = [row for row in rows if row.by_chance]
    outside = sum(row.verdict == "no" for row in chance)
    expected = CHANCE * len(chance)
    return (
        all(outcome.has_results for outcome in outcomes.values())
        and all(row.verdict == "yes" for row in rows if not row.by_chance)
        and outside <= ceil(expected + 2 * sqrt(expected))
    )
