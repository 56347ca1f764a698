"""The entropy pattern of the embedded models on their three families, as the 80/20 paper describes that of Qwen3-8B.

    .venv/bin/python experiments/entropy_pattern.py

writes `experiments/entropy_pattern/`: `table.json` (patterns with token lists and provenance), `table.md` (what the README quotes),
`entropy_histogram.svg` and `entropy_along_response.svg`. Run again, it goes on where it stopped. Beside the responses lies the
page of each model, which `navtoken analyze --model embedded:llm --num 500` writes too.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from navtoken.analysis.analyze import Analysis, PatternOptions, analyze_traces
from navtoken.commands import analyze
from navtoken.commands.analyze_page import along_response, histogram
from navtoken.commands.frozen_responses import ResponseOptions
from navtoken.generation.options import FAMILIES
from navtoken.provenance import provenance
from navtoken.report import write_svg
from navtoken.report.markup import write_whole

MODELS = ("slm", "llm")
NUM_QUOTED = 12
"""Tokens of each list in `table.md`."""
PAPER = {"percentile": 0.672, "certain_share": 0.5064}
"""Qwen3-8B on AIME'24 and '25 at T = 1, over a million tokens."""


@dataclass(frozen=True)
class Options:
    """The experiment's size."""

    num: int = 500
    """Test problems per family."""
    seed: int = 11
    """Fixes the problems and the noise."""
    out: Path = Path("experiments/entropy_pattern")
    """Folder of the results."""
    traces: Path = Path("build/entropy_pattern")
    """Folder of the responses and of the pages."""


def main(options: Options) -> None:
    console = Console()
    patterns: dict[str, dict[str, Any]] = {}
    for model in MODELS:
        folder = options.traces / model
        patterns[model] = {task: found(model, (task,), folder, options, console) for task in FAMILIES}
        patterns[model]["all"] = found(model, FAMILIES, folder, options, console)
    record = provenance(patterns["llm"]["all"]["fingerprints"], **vars(options))
    result = {"paper": PAPER, "patterns": patterns, "provenance": record}
    write_whole(options.out / "table.json", json.dumps(result, indent=1, default=str) + "\n")
    write_whole(options.out / "table.md", markdown(patterns))
    pooled = pattern_of(options.traces / "llm")
    write_svg(histogram(pooled), options.out / "entropy_histogram.svg", columns=2)
    write_svg(along_response(pooled), options.out / "entropy_along_response.svg")
    console.print(markdown(patterns))


def found(
    model: str, tasks: Sequence[str], folder: Path, options: Options, console: Console
) -> dict[str, Any]:
    """The pattern of a model on some families, without what only the page needs."""
    responses = ResponseOptions(task=tuple(tasks), num=options.num, seed=options.seed)
    asked = analyze.AnalyzeOptions(responses, f"embedded:{model}", out=folder)
    result = analyze.run(asked, console)
    kept = {
        name: result[name]
        for name in ("num_responses", "num_tokens", "findings", "notes", "groups", "outcomes")
    }
    lists = {
        end: [
            {name: row[name] for name in ("token", "count", "mean_entropy", "standard_deviation")}
            for row in result["tables"][end]
        ]
        for end in ("highest", "lowest")
    }
    return kept | {
        "min_frequency": result["tables"]["min_frequency"],
        **lists,
        "fingerprints": result["provenance"]["fingerprints"],
    }


def pattern_of(folder: Path) -> Analysis:
    """Of all responses, for the pictures."""
    return analyze_traces(folder / "traces", PatternOptions(examples=0))


def markdown(patterns: dict[str, dict[str, Any]]) -> str:
    """One row per model and family, the paper's figures first; then the LLM's tokens."""
    lines = [
        "| model, family | tokens | under 0.01 nats | 80th percentile (nats) | mean, right responses | mean, wrong responses |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| Qwen3-8B, AIME (the paper) | 1,000,000 | {PAPER['certain_share']:.1%} | {PAPER['percentile']:.3f} |  |  |",
    ]
    for model, by_task in patterns.items():
        for task, pattern in by_task.items():
            whole = pattern["groups"]["all"]
            lines.append(
                f"| {model}, {task} | {whole['num_tokens']:,} | {whole['certain_share']:.1%} | {whole['percentile']:.3f} | "
                f"{outcome(pattern, 'right')} | {outcome(pattern, 'wrong')} |"
            )
    lines += ["", "| family | highest mean entropy | lowest mean entropy |", "| --- | --- | --- |"]
    for task, pattern in patterns["llm"].items():
        lines.append(f"| {task} | {quoted(pattern['highest'])} | {quoted(pattern['lowest'])} |")
    return "\n".join(lines) + "\n"


def outcome(pattern: dict[str, Any], name: str) -> str:
    """Mean entropy of responses with that outcome, ± one standard error; empty where there are none."""
    if name not in pattern["outcomes"]:
        return ""
    mean, error = pattern["outcomes"][name]["mean"], pattern["outcomes"][name]["error"]
    return f"{mean:.3f}" + ("" if error is None or math.isnan(error) else f" ± {error:.3f}")


def quoted(rows: Sequence[dict[str, Any]]) -> str:
    """The first tokens as code."""
    return " ".join(
        f"`{row['token'].replace('|', chr(92) + '|').strip() or '␣'}`" for row in rows[:NUM_QUOTED]
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
