"""`navtoken perturb` in a shell: the table for people, the page, and everything as JSON."""

import json
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from navtoken.analysis.perturbation import Outcome, Perturbation, PerturbOptions, Study, perturb
from navtoken.checkpoints import ModelPair
from navtoken.commands.perturb_page import finding, write_page
from navtoken.commands.show import percent
from navtoken.commands.surroundings import progress_console
from navtoken.evaluation import Table
from navtoken.report.markup import write_whole

__all__ = ["PerturbOptions", "run"]

HEADINGS = (
    "forking\nat T",
    "others\nat T",
    "accuracy\n(%)",
    "change\n(points)",
    "forking\n(%)",
    "tokens\neach",
    "cut off\n(%)",
)


def run(options: PerturbOptions, console: Console, pair: ModelPair | None = None) -> dict[str, Any]:
    """Run the experiment, print its table, write page and JSON; returns the rows with provenance."""
    progress = progress_console()
    loaded = pair or options.load()
    perturbation = perturb(options, loaded, progress)
    print_studies(console, perturbation)
    result = as_json(perturbation)
    write_whole(options.out / "perturb.json", json.dumps(result, indent=1) + "\n")
    page = write_page(options.out / "index.html", perturbation, loaded.tokenizer)
    console.print(f"page: {page.resolve()}", soft_wrap=True)
    return result | {"page": str(page)}


def as_json(perturbation: Perturbation) -> dict[str, Any]:
    """Rows, thresholds, findings and provenance; JSON-serialisable, a number that was not computed is None."""
    findings = {f"{study.policy} · {study.task}": finding(study) for study in perturbation.studies}
    return Table(perturbation.rows(), perturbation.provenance).as_json() | {"findings": findings}


def print_studies(console: Console, perturbation: Perturbation) -> None:
    """One block per policy and task. Fits into 80 columns."""
    for study in perturbation.studies:
        title = Text(
            f"{study.policy} · {study.task}: a token forks above {study.threshold:.3f} nats", style="bold"
        )
        table = TerminalTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for swept in ("forking", "others"):
            for outcome in study.curve(swept):
                table.add_row(*_cells(study, outcome))
            table.add_section()
        console.print(table)
        console.print(finding(study))


def _cells(study: Study, outcome: Outcome) -> list[str]:
    change, error = study.gap(outcome.point)
    metrics = outcome.metrics
    known = "" if outcome.point.swept == "both" else f"{100 * change:+.1f} ± {percent(error)}"
    return [
        f"{outcome.point.fork:g}",
        f"{outcome.point.other:g}",
        f"{percent(metrics['accuracy'])} ± {percent(metrics['accuracy_se'])}",
        known,
        percent(outcome.fork_share),
        f"{metrics['mean_length']:.1f}",
        percent(metrics["cut_share"]),
    ]
