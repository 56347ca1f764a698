"""Which tokens bear heat? The decoding experiment of "Beyond the 80/20 Rule" on the embedded LLM.

    .venv/bin/python experiments/perturbation.py

writes `experiments/perturbation/`: `perturb.json` (rows, findings and provenance), `table.md` and `curves.svg`. Its traces lie in
`build/perturbation`; run again, it goes on where it stopped.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from navtoken.analysis.perturbation import PerturbOptions, Study, perturb
from navtoken.commands.perturb import as_json, print_studies
from navtoken.commands.perturb_page import curves, finding, write_page
from navtoken.engine import EngineOptions
from navtoken.generation import GenerationOptions, ModelOptions
from navtoken.report import write_svg
from navtoken.report.markup import write_whole


@dataclass(frozen=True)
class Options:
    """The experiment's size."""

    num: int = 500
    """Test problems."""
    samples: int = 4
    """Responses a problem and point."""
    task: str = "countdown"
    """The family: countdown has the most to decide."""
    percentile: float = 80.0
    """Tokens above this percentile of the pilot run's entropies fork, as in the paper."""
    max_tokens: int = 400
    """Longest response: hot ones do not end by themselves."""
    max_rows: int = 160
    """Responses decoded together."""
    seed: int = 17
    """Fixes the problems and all noise."""
    out: Path = Path("experiments/perturbation")
    """Folder of the results."""
    traces: Path = Path("build/perturbation")
    """Folder of the responses and the page."""


def main(options: Options) -> None:
    console = Console()
    generation = GenerationOptions(
        task=(options.task,),
        policy=("llm",),
        num=options.num,
        samples=options.samples,
        seed=options.seed,
        max_tokens=options.max_tokens,
        engine=EngineOptions(max_rows=options.max_rows),
    )
    asked = PerturbOptions(
        ModelOptions(threads=1), generation, percentile=options.percentile, out=options.traces
    )
    pair = asked.load()
    perturbation = perturb(asked, pair, console)
    (study,) = perturbation.studies
    write_whole(options.out / "perturb.json", json.dumps(as_json(perturbation), indent=1) + "\n")
    write_whole(options.out / "table.md", markdown(study))
    write_svg(curves(study), options.out / "curves.svg")
    write_page(options.traces / "index.html", perturbation, pair.tokenizer)
    print_studies(console, perturbation)


def markdown(study: Study) -> str:
    """Both sweeps side by side, one row per temperature."""
    lines = [
        f"{finding(study)}. A token forks above {study.threshold:.3f} nats.",
        "",
        "| T of the swept tokens | accuracy, forking tokens swept (%) | accuracy, all others swept (%) |",
        "| ---: | ---: | ---: |",
    ]
    for forking, others in zip(study.curve("forking"), study.curve("others"), strict=True):
        cells = [
            f"{100 * each.metrics['accuracy']:.1f} ± {100 * each.metrics['accuracy_se']:.1f}"
            for each in (forking, others)
        ]
        lines.append(f"| {forking.point.fork:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
