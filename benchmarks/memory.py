"""Cache bytes that the engine holds against the fewest that it could: the tokens held, times a token's bytes, of both models.

    python benchmarks/memory.py --pair embedded --json

Requests of mixed lengths come and go, and after every step both numbers are read. Beside them: what one slot of the longest
length per row would take, which is what a static cache allocates before the first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import tyro

from measuring import console_for, finish, peak_memory_bytes, run_script, set_threads, table
from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.policies import Writer, make_policy
from pairs import PairSource, Request, packed_pair, source_named


@dataclass(frozen=True)
class Options:
    """How much memory do the caches take, and how much must they?"""

    pair: str = "embedded"
    """`embedded`, `bandwidth`, and on an accelerator `r1` and `qwen3`."""
    concurrency: str = "4,16,64"
    """Rows decoded together, comma-separated."""
    policy: str = "random:0.13"
    """Who writes: one under which both models hold a cache."""
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
    rows = [measure(pair, source, int(num), options) for num in options.concurrency.split(",")]
    columns = (
        "",
        "held, peak (MB)",
        "least (MB)",
        "held / least",
        "on average",
        "static (MB)",
        "peak of process (MB)",
    )
    cells = [
        (
            f"{row['concurrency']} rows",
            *(row[name] / 1e6 for name in ("held_bytes", "least_bytes")),
            row["held_over_least"],
            row["mean_held_over_least"],
            row["static_bytes"] / 1e6,
            row["peak_process_bytes"] / 1e6,
        )
        for row in rows
    ]
    console_for(options.json).print(table(f"{source.name}: both models' caches", columns, cells))
    return finish("memory", options, {"pair": source.name, "rows": rows}, options.out)


def measure(pair: ModelPair, source: PairSource, rows: int, options: Options) -> dict[str, Any]:
    """One load of mixed lengths, read after every step."""
    load = source.load(rows)
    engine = Engine(pair, make_policy(options.policy), EngineOptions(max_rows=rows))
    requests = load.requests(source.text(pair), seed=0)
    readings = [reading for reading in watch(engine, requests) if reading[1]]
    held, least = max(readings)
    return {
        "concurrency": rows,
        "steps": len(readings),
        "held_bytes": held,
        "least_bytes": max(each for _, each in readings),
        "least_bytes_at_peak": least,
        "held_over_least": held / max(each for _, each in readings),
        "mean_held_over_least": mean(held / least for held, least in readings),
        "static_bytes": rows * load.context * sum(pair[model].card.kv_bytes for model in Writer),
        "reserved_bytes": reserved_bytes(engine),
        "peak_process_bytes": peak_memory_bytes(),
    }


def watch(engine: Engine, requests: Sequence[Request]) -> list[tuple[int, int]]:
    """After each step, bytes held by both caches and the fewest that their tokens take."""
    for request in requests:
        engine.add(request.prompt_ids, SamplingParams(ignore_eos=True), request.num_tokens, seed=request.seed)
    readings = []
    while engine.has_work:
        engine.step()
        readings.append((sum(engine.cache_bytes()), least_bytes(engine)))
    return readings


def reserved_bytes(engine: Engine) -> int:
    """What both caches may grow to; on a CPU memory is only taken as far as it is written."""
    return sum(
        pool.num_blocks * pool.block_size * engine.pair[model].card.kv_bytes
        for model, pool in zip(Writer, engine.memory.pools, strict=True)
    )


def least_bytes(engine: Engine) -> int:
    """Tokens that the running rows have in each model's cache, times what a token takes there."""
    return sum(
        row.cached_len[model] * engine.pair[model].card.kv_bytes
        for row in engine.scheduler.running
        for model in Writer
    )


if __name__ == "__main__":
    run_script(main)
