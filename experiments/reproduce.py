"""Makes every committed experiment again, beside the committed files, and says which figures agree.

    .venv/bin/python experiments/reproduce.py                # everything: hours; `make reproduce`
    .venv/bin/python experiments/reproduce.py --size quick   # fewer problems and steps: minutes; `make reproduce-quick`

Results, logs and traces go to `build/reproduce/` or `build/reproduce-quick/`, and the table to `table.md` there. A step that ended is not run again; one that was interrupted
goes on where it stopped; one that fails stops only those that need it. Estimates are of `reproduce/times.json`, which says where they were measured. The
exit status is 1 where a step failed, a figure is missing, one that chance cannot move has moved or any is far off, where more figures of an experiment are outside of their
intervals than chance explains, and where a small run is not what the committed small run was (`reproduce/quick.json`, which `--keep-figures` writes). `--no-run` makes the
table of what is there. How figures are compared is said in `reproduce_compare.py`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from reproduce_compare import Compared, all_is_well, compare, lacking, markdown
from reproduce_declared import declared
from reproduce_figures import Figure
from reproduce_kept import keep, kept_figures
from reproduce_run import OTHER_CODE, Outcome, Runner, minutes, whole_time
from reproduce_steps import HERE, KEPT, SKIPPED, Size, Step, estimates, steps_of
from rich.console import Console

from navtoken.report.markup import write_whole


@dataclass(frozen=True)
class Options:
    """What is made again, and where."""

    size: Size = "full"
    """Everything, or a small version."""
    jobs: int = 2
    """Steps at a time, each on one core."""
    only: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Names of experiments (folders of `experiments/`) in place of all, with the steps that they need; may be repeated."""
    run: bool = True
    """Whether steps are run at all; without, the table is of what is there."""
    keep_figures: bool = False
    """Whether a small run's figures become the committed ones, `reproduce/quick.json`, and where all are made its table, `quick.md`."""
    out: Path | None = None
    """Folder of all that is made; `build/reproduce` or `build/reproduce-quick` by default."""

    @property
    def folder(self) -> Path:
        name = "reproduce" if self.size == "full" else "reproduce-quick"
        return (self.out or HERE.parent / "build" / name).resolve()


def main(options: Options) -> int:
    console = Console(soft_wrap=True)
    if options.keep_figures and options.size != "quick":
        raise SystemExit("--keep-figures is for --size quick: a full run's results are committed as they are")
    steps, estimated = chosen(options), estimates(options.size)
    check_declared(options, steps)
    runner = Runner(options.folder, sys.executable, options.jobs)
    if options.run:
        plan(console, steps, estimated, runner)
        outcomes = runner.run(steps, estimated, lambda line: console.print(line, markup=False))
    else:
        ended = runner.ended_before(steps)
        outcomes = {step.name: ended.get(step.name) or not_run(step, runner) for step in steps}
    rows = comparisons(options, steps)
    if options.keep_figures:
        unfinished = {step.experiment for step in steps if not outcomes[step.name].has_results}
        for experiment in keep(KEPT, rows, unfinished):
            console.print(f"{experiment}: it did not end or lacks a figure, so none is kept", markup=False)
        rows = comparisons(options, steps)
    skipped = {} if options.only else SKIPPED[options.size]
    table = markdown(rows, steps, outcomes, skipped)
    write_whole(options.folder / "table.md", table)
    if options.keep_figures and not options.only:
        write_whole(KEPT.with_suffix(".md"), table)
    console.print(table, markup=False)
    return 0 if all_is_well(rows, outcomes) else 1


def chosen(options: Options) -> tuple[Step, ...]:
    steps = steps_of(options.size)
    known = {step.experiment for step in steps}
    if unknown := set(options.only) - known:
        raise SystemExit(
            f"no experiment {', '.join(sorted(unknown))} at this size; there are {', '.join(sorted(known))}"
        )
    wanted = {step.name for step in steps if not options.only or step.experiment in options.only}
    for step in reversed(steps):  # Needs come before what needs them.
        wanted |= set(step.needs) if step.name in wanted else set()
    return tuple(step for step in steps if step.name in wanted)


def plan(console: Console, steps: tuple[Step, ...], estimated: dict[str, float], runner: Runner) -> None:
    """Every step with its estimate, before the first begins."""
    done = set(runner.ended_before(steps))
    for step in steps:
        state = "done" if step.name in done else minutes(estimated[step.name])
        if runner.is_stale(step):
            state += f" ({OTHER_CODE})"
        console.print(f"{step.name:<24} {state}", markup=False)
    left = whole_time(steps, estimated, done, runner.jobs)
    console.print(
        f"about {minutes(left)} on {runner.jobs} free cores; results in {runner.folder}", markup=False
    )


def not_run(step: Step, runner: Runner) -> Outcome:
    return Outcome("not run", why=OTHER_CODE if runner.is_stale(step) else "")


def comparisons(options: Options, steps: tuple[Step, ...]) -> list[Compared]:
    """Of the declared figures of the steps' experiments."""
    parts = {step.experiment: step.part for step in steps}
    kept = kept_figures(KEPT) if options.size == "quick" else {}
    return [
        compare(
            figure,
            HERE,
            options.folder,
            options.size,
            parts[figure.experiment],
            kept.get((figure.experiment, figure.name)),
        )
        for figure in figures_of(options, steps)
    ]


def figures_of(options: Options, steps: tuple[Step, ...]) -> list[Figure]:
    experiments = {step.experiment for step in steps}
    return [each for each in declared() if each.experiment in experiments and options.size in each.sizes]


def check_declared(options: Options, steps: tuple[Step, ...]) -> None:
    """Before hours are spent on what has nothing to be compared with."""
    if missing := lacking(figures_of(options, steps), HERE):
        told = "\n".join(missing)
        raise SystemExit(
            f"the committed results lack figures that are declared; leave their experiments out with --only:\n{told}"
        )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
