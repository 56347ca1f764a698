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

One in twenty is outside of such an interval of 95 % though nothing has changed. What fails is more of them in one experiment than chance explains, and any difference beyond the
limit for all: the quantile at which any of the figures of the table is outside with a chance of 5 % at most (Bonferroni).

A small run has been made before: its own figures are committed (`reproduce_kept.py`), and what is made again must be those to the tolerance.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Literal

from reproduce_figures import Figure, Measured, MissingFigure, measured, on_shared_problems
from reproduce_limits import CHANCE, Limits
from reproduce_run import Outcome, minutes
from reproduce_steps import Size, Step

Verdict = Literal["yes", "no", "missing"]
# Files hold few digits: what differs by the tolerance to the last of them is within it.
DIGITS = 1 + 1e-9


@dataclass(frozen=True)
class Compared:
    """A committed figure against the same one made again."""

    figure: Figure
    committed: float | None
    again: float | None
    limits: Limits | None
    """Of the difference of the two."""
    why: str = ""
    """What is missing."""
    kept: float | None = None
    """The committed figure of the small run, where one is committed."""

    @property
    def by_chance(self) -> bool:
        """Whether one in twenty may be outside though nothing has changed."""
        return self.limits is not None and self.limits.error is not None

    @property
    def verdict(self) -> Verdict:
        """Of the interval of 95 %, or of the tolerance."""
        if self.again is None or self.committed is None or self.limits is None:
            return "missing"
        return "no" if self.beyond(CHANCE) else "yes"

    def beyond(self, chance: float) -> bool:
        """Whether it differs by more than is left to this chance."""
        if self.again is None or self.committed is None or self.limits is None:
            return False
        return abs(self.again - self.committed) > self.limits.at(chance) * DIGITS

    @property
    def as_kept(self) -> bool | None:
        """Whether it is what the small run had; None where that is not known."""
        if self.again is None or self.kept is None:
            return None
        return abs(self.again - self.kept) <= self.figure.tolerance * DIGITS


def compare(
    figure: Figure, committed: Path, made: Path, size: Size, part: float = 1.0, kept: float | None = None
) -> Compared:
    """`part` is the share of the committed run's problems that the small run has, `kept` the small run's committed figure."""
    was: Measured | None = None
    try:
        was = measured(figure, committed)
        now = measured(figure, made)
        if size == "quick" and figure.problems:
            was, now = on_shared_problems(figure, committed, made, part)
        limits = _limits(figure, was, now, size, part, made / "work")
    except (LookupError, OSError, ValueError) as problem:
        return Compared(figure, None if was is None else was.value, None, None, why=str(problem), kept=kept)
    return Compared(figure, was.value, now.value, limits, kept=kept)


def _limits(figure: Figure, was: Measured, now: Measured, size: Size, part: float, work: Path) -> Limits:
    if figure.varies == "training":
        if was.error is None or now.error is None:
            raise MissingFigure(f"{figure.name} has no standard error")
        return Limits(0.0, sqrt(was.error**2 + now.error**2), of_three=figure.error == figure.place)
    if size == "full" or figure.paired or figure.problems:
        return Limits(figure.tolerance)
    if was.error is not None:
        error = was.error * sqrt(1 / part - 1)
    elif figure.spread is not None:
        error = figure.spread(work) * sqrt(1 - part)
    else:
        raise MissingFigure(f"{figure.name} has no standard error")
    return Limits(figure.tolerance, error)


def lacking(figures: Sequence[Figure], committed: Path) -> list[str]:
    """What is declared but not in the committed files: better known before the first step than after the last."""
    found = []
    for figure in figures:
        try:
            measured(figure, committed)
        except (LookupError, OSError, ValueError) as problem:
            found.append(f"{figure.experiment}, {figure.name}: {problem}")
    return found


# ---- what fails -----------------------------------------------------------------------------------------------


def failures(rows: Sequence[Compared], outcomes: Mapping[str, Outcome]) -> list[str]:
    """Each in a line: steps, figures and experiments that are not as they should be."""
    told = [f"step {name}: {each.state}" for name, each in outcomes.items() if not each.has_results]
    for row in rows:
        kept = "not the small run's" if row.as_kept is False else ""
        if broken := ", ".join(filter(None, (limit_broken(row, rows), kept))):
            told.append(f"{row.figure.experiment}, {row.figure.name}: {broken}")
    return [*told, *_too_many(rows)]


def limit_broken(row: Compared, rows: Sequence[Compared]) -> str:
    """Which limit makes a single figure fail; none where it is within, or outside as one in twenty is."""
    if row.verdict == "missing":
        return "missing"
    if not row.by_chance and row.verdict == "no":
        return "beyond the tolerance"
    return "beyond the limit for all" if row.by_chance and row.beyond(each_of_all(rows)) else ""


def each_of_all(rows: Sequence[Compared]) -> float:
    """The chance that each of the figures may have to be outside, for that of any of them to be small."""
    return CHANCE / max(1, sum(row.by_chance for row in rows))


def _too_many(rows: Sequence[Compared]) -> Iterator[str]:
    """Experiments of which more figures are outside of their intervals than chance takes out: its expectation and two standard deviations, rounded up."""
    for experiment in dict.fromkeys(row.figure.experiment for row in rows):
        own = [row for row in rows if row.figure.experiment == experiment and row.by_chance]
        outside = sum(row.verdict == "no" for row in own)
        expected = CHANCE * len(own)
        most = ceil(expected + 2 * sqrt(expected))
        if outside > most:
            yield f"{experiment}: {outside} of {len(own)} figures outside of their intervals, {most} at most"


# ---- the table ------------------------------------------------------------------------------------------------


def markdown(
    rows: Sequence[Compared],
    steps: Sequence[Step],
    outcomes: Mapping[str, Outcome],
    skipped: Mapping[str, str],
) -> str:
    """Steps, figures, how many of them were expected to be outside, and what fails."""
    lines = ["| step | what became of it | time | processor time |", "| --- | --- | ---: | ---: |"]
    for step in steps:
        outcome = outcomes[step.name]
        state = outcome.state + (f": {outcome.why}" if outcome.why else "")
        times = f"{minutes(outcome.seconds)} | {minutes(outcome.cpu_seconds)}"
        lines.append(f"| {step.name} | {state} | {times} |")
    lines += [f"| {name} | skipped: {why} |  |  |" for name, why in skipped.items()]
    columns = ["experiment", "figure", "committed", "made again", "difference", "allowed", "within"]
    small = any(row.kept is not None for row in rows)
    if small:
        columns += ["small run", "tolerance", "same"]
    rule = ["---:" if 2 <= index <= 5 or index in (7, 8) else "---" for index in range(len(columns))]
    lines += ["", f"| {' | '.join(columns)} |", f"| {' | '.join(rule)} |"]
    lines += [f"| {' | '.join(_cells(row, rows, small))} |" for row in rows]
    failed = failures(rows, outcomes)
    told = [f"* {each}" for each in failed] if failed else ["Nothing fails."]
    return "\n".join([*lines, "", verdict_line(rows), "", *told]) + "\n"


def _cells(row: Compared, rows: Sequence[Compared], small: bool) -> Iterator[str]:
    scale, broken = row.figure.scale, limit_broken(row, rows)
    yield row.figure.experiment
    yield row.figure.name
    if row.again is None or row.committed is None or row.limits is None:
        yield "–" if row.committed is None else number(scale * row.committed)
        yield from ("–", "–", "–", f"missing: {row.why}")
    else:
        yield number(scale * row.committed)
        yield number(scale * row.again)
        yield f"{scale * (row.again - row.committed):+.2g}"
        yield f"{'±' if row.by_chance else 'exact, ±'} {scale * row.limits.at(CHANCE):.2g}"
        beyond = f"no, {broken or 'outside of 95 %'}"
        if broken == "beyond the limit for all":
            beyond += f", ± {scale * row.limits.at(each_of_all(rows)):.2g}"
        yield "yes" if row.verdict == "yes" else beyond
    if small:
        yield "–" if row.kept is None else number(scale * row.kept)
        yield f"± {scale * row.figure.tolerance:.2g}"
        yield {None: "–", True: "yes", False: "no"}[row.as_kept]


def number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4g}"


def verdict_line(rows: Sequence[Compared]) -> str:
    compared = [row for row in rows if row.verdict != "missing"]
    chance = [row for row in compared if row.by_chance]
    outside = [row for row in compared if row.verdict == "no"]
    exact = sum(not row.by_chance for row in outside)
    kept = [row for row in compared if row.as_kept is not None]
    same = sum(row.as_kept is True for row in kept)
    return (
        f"{len(compared)} of {len(rows)} figures compared, {len(outside)} not within. Of the {len(chance)} with an interval of 95 %, "
        f"{len(outside) - exact} are outside, and about {CHANCE * len(chance):.1f} were expected to be by chance alone; of the "
        f"{len(compared) - len(chance)} that chance cannot move, {exact}, and none was expected to be."
        + (f" {same} of {len(kept)} are the small run's own figures again." if kept else "")
    )


def all_is_well(rows: Sequence[Compared], outcomes: Mapping[str, Outcome]) -> bool:
    return not failures(rows, outcomes)
