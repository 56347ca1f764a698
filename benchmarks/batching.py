"""The batching rule against measurement: how fast decoding is under every B, and whether the planner's B is the best.

    python benchmarks/batching.py --pair bandwidth --json

Per number of rows, one engine for each B in interleaved rounds, and beside each rate what the planner says of it from bare
step times. The planner's pick was made before the first round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from bare import GRID, BareModel
from candidates import EngineCandidate, Run, cache_gib
from measuring import Bar, bars_table, console_for, finish, interleaved, run_script, set_threads, table
from navtoken.checkpoints import ModelPair
from navtoken.engine import EngineOptions
from navtoken.policies import Writer
from pairs import Load, PairSource, Text, packed_pair, random_text, source_named
from planned import Planner

RULES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Values of B that are tried, those up to the number of rows; the planner's pick is added."""


@dataclass(frozen=True)
class Options:
    """Which B is best, and which does the planner pick?"""

    pair: str = "bandwidth"
    """`embedded`, `bandwidth`, and on an accelerator `r1` and `qwen3`."""
    concurrency: str = "2,4,8,16"
    """Rows decoded together, comma-separated."""
    share: float = 0.13
    """Forced LLM share."""
    tokens: int = 64
    """Response tokens of each request; there are as many requests as rows."""
    repeats: int = 3
    """Interleaved rounds, after one that warms up."""
    threads: int = 0
    """Of torch; 0 leaves its own choice."""
    json: bool = False
    """Only the JSON line goes to standard output; tables go to standard error."""
    out: Path | None = None
    """Also write the result to this file."""


def main(args: Sequence[str] | None = None, source: PairSource | None = None) -> dict[str, Any]:
    """Parse, measure, print; returns what the JSON line says."""
    options = tyro.cli(Options, description=__doc__, args=args)
    set_threads(options.threads)
    source = source or source_named(options.pair)
    pair = packed_pair(source)
    points = [measure(pair, source, int(rows), options) for rows in options.concurrency.split(",")]
    bars = [
        Bar(f"{point['concurrency']} rows: the planner's B, of the best B's speed", 0.95, point["pick_over_best"])
        for point in points
    ]  # fmt: skip
    console = console_for(options.json)
    for point in points:
        title = f"{source.name}, {point['concurrency']} rows: the planner picks B = {point['pick']}"
        columns = ("B", "tokens/s", "planned", "of it")
        cells = [
            (str(rule["min_rows"]), rule["tokens_per_second"], rule["planned"], rule["planned_fraction"])
            for rule in point["rules"]
        ]
        console.print(table(title, columns, cells))
    console.print(bars_table(bars))
    result = {"pair": source.name, "points": points, "bars": [bar.as_json() for bar in bars]}
    return finish("batching", options, result, options.out)


def measure(pair: ModelPair, source: PairSource, rows: int, options: Options) -> dict[str, Any]:
    """All B at one number of rows."""
    load = Load(rows, source.load(rows).prompt_tokens, (options.tokens, options.tokens))
    bare = [BareModel(pair[model], GRID, load.prompt_tokens[0]) for model in Writer]
    for _ in range(options.repeats):
        for each in bare:
            each.round()
    planner = Planner(bare[0].times(), bare[1].times())
    pick = planner.best_min_rows(options.share, rows)
    rules = sorted({pick, *(rule for rule in RULES if rule <= rows)})
    engines = {rule: _engine(pair, load, rows, rule, options.share) for rule in rules}
    runs = interleaved(
        {str(rule): partial(_run, engine, load, source.text(pair)) for rule, engine in engines.items()},
        options.repeats + 1,
    )
    speeds = {rule: median(run.tokens_per_second for run in runs[str(rule)][1:]) for rule in rules}
    return {
        "concurrency": rows,
        "pick": pick,
        "best": max(speeds, key=lambda rule: speeds[rule]),
        "pick_over_best": speeds[pick] / max(speeds.values()),
        "rules": [_row(planner, load, rows, rule, speeds[rule], options) for rule in rules],
    }


def _engine(pair: ModelPair, load: Load, rows: int, rule: int, share: float) -> EngineCandidate:
    options = EngineOptions(max_rows=rows, llm_min_rows=rule, cache_gib=cache_gib(pair, load, rows))
    return EngineCandidate(pair, f"random:{share}", options)


def _run(candidate: EngineCandidate, load: Load, text: Text, number: int) -> Run:
    return candidate.run(load.requests(text, seed=number))


def _row(
    planner: Planner, load: Load, rows: int, rule: int, speed: float, options: Options
) -> dict[str, Any]:
    requests = load.requests(random_text(100), 0)
    seconds = planner.seconds(requests, rows, planner.routed(options.share, rule), tuple(Writer))
    planned = sum(request.num_tokens for request in requests) / seconds
    return {
        "min_rows": rule,
        "tokens_per_second": speed,
        "planned": planned,
        "planned_fraction": speed / planned,
    }


if __name__ == "__main__":
    run_script(main)
