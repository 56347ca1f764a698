"""Both definitions of a navigation token on the same tokens of the embedded pair, and what training does to forking tokens.

    .venv/bin/python experiments/definitions.py

writes `experiments/definitions/`: `compare.json` (`navtoken label`, then `navtoken compare` over all families, and per family; responses that ran
into the length limit are left out), `drift.json` (`navtoken drift` from the embedded base to the embedded LLM), each with provenance,
`labels.json` (what `navtoken label` said), `definitions.md` (the table) and three pictures. Run again, it goes on where it stopped.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from navtoken.commands.compare import Compared, CompareOptions, as_json, compare_responses
from navtoken.commands.compare_page import SETS, SIGNALS, curves_section, rates_section
from navtoken.commands.drift import DriftOptions, follow
from navtoken.commands.drift import as_json as drift_as_json
from navtoken.commands.drift_page import change_section
from navtoken.commands.frozen_responses import ResponseOptions
from navtoken.commands.label import LabelOptions
from navtoken.commands.label import run as label
from navtoken.commands.rarity_words import rarity_section
from navtoken.generation.options import FAMILIES
from navtoken.report import write_svg
from navtoken.report.markup import write_whole


@dataclass(frozen=True)
class Options:
    """The experiment's size."""

    num: int = 500
    """Test problems per family."""
    seed: int = 11
    """Fixes problems, noise and resamples."""
    resamples: int = 1000
    """Bootstrap resamples of the problems."""
    out: Path = Path("experiments/definitions")
    """Folder of the results."""
    work: Path = Path("build/definitions")
    """Folder of responses and scores."""


def main(options: Options) -> None:
    console = Console()
    label(labelling(options), console)
    write_whole(options.out / "labels.json", (labelling(options).out / "labels.json").read_text())
    pooled = compared(options, FAMILIES, options.work / "all")
    families = {task: compared(options, (task,), options.work / task) for task in FAMILIES}
    result = as_json(pooled) | {"families": {task: as_json(found) for task, found in families.items()}}
    write(options.out / "compare.json", result)
    write_whole(options.out / "definitions.md", markdown({"all": pooled} | families))
    write_svg(rates_section(pooled.comparison), options.out / "rates.svg")
    write_svg(curves_section(pooled.comparison), options.out / "curves.svg", columns=2)
    write_svg(rarity_section(pooled.comparison.rarity, "differ", "SLM ≠ LLM"), options.out / "rarity.svg")
    followed = follow(drift_options(options), console)
    write(options.out / "drift.json", drift_as_json(followed))
    write_svg(change_section(followed.drift), options.out / "drift.svg")
    console.print(markdown({"all": pooled} | families))
    console.print(*result["findings"], *drift_as_json(followed)["findings"], sep="\n")


def labelling(options: Options) -> LabelOptions:
    """`navtoken label` on the embedded LLM's greedy responses to test problems."""
    return LabelOptions(
        num=options.num, split="test", seed=options.seed, labels_only=True, out=options.work / "labels"
    )


def compared(options: Options, tasks: tuple[str, ...], folder: Path) -> Compared:
    """`navtoken compare` on the labelled responses."""
    responses = ResponseOptions(traces=labelling(options).out, task=tasks, seed=options.seed)
    return compare_responses(
        CompareOptions(responses=responses, resamples=options.resamples, num_items=15, out=folder), Console()
    )


def drift_options(options: Options) -> DriftOptions:
    """`navtoken drift` from the embedded base to the embedded LLM, on the LLM's responses at T = 1."""
    responses = ResponseOptions(num=options.num, seed=options.seed)
    return DriftOptions(responses=responses, resamples=options.resamples, out=options.work / "drift")


def write(path: Path, result: dict[str, Any]) -> None:
    write_whole(path, json.dumps(result, indent=1, default=str) + "\n")


def markdown(found: dict[str, Compared]) -> str:
    """ROC areas and overlaps, a column per family."""
    lines = ["| | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found)]

    def row(name: str, cells: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    sets = [each.comparison for each in found.values()]
    row("tokens", [f"{each.num_tokens:,}" for each in sets])
    row("SLM ≠ LLM", [f"{100 * each.shares['differs'].value:.1f} %" for each in sets])
    for index, agreement in enumerate(sets[0].agreements):
        name = f"Jaccard: {SETS[agreement.found]}, {SETS[agreement.wanted]}"
        overlaps = [each.agreements[index].overlap for each in sets]
        row(name, [f"{each.jaccard.value:.2f} (chance {each.expected:.2f})" for each in overlaps])
    for index, prediction in enumerate(sets[0].predictions):
        name = f"ROC area: {SIGNALS[prediction.signal]} finds {SETS[prediction.target]}"
        areas = [each.predictions[index].areas.roc for each in sets]
        row(name, [f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})" for each in areas])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
