"""Time and memory of an analysis of traces that would not have to fit in memory, against bare reading of the same columns.

    python benchmarks/analysis.py --json

Each candidate is a process of its own on the same two cores, so that its peak of resident memory is its own. `bare` is the limit: pyarrow
reads once, batch by batch, the columns that the analysis needs, and does nothing with them. `in memory` is the peer: the columns
as one table, numpy's percentile of them. `a tenth` analyses a tenth of the shards: memory must not grow with them.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from measuring import (
    Bar,
    bars_table,
    console_for,
    finish,
    interleaved,
    paired_ratio,
    peak_memory_bytes,
    run_script,
    spread,
    table,
)
from navtoken.analysis.analyze import analyze_traces
from navtoken.analysis.columns import num_responses, paths_of
from navtoken.provenance import provenance
from navtoken.trace import Trace, TraceWriter

COLUMN = "entropy_llm"
COLUMNS = (COLUMN, "response_ids", "correct", "task", "policy")
LIMIT_BYTES = 2 * 10**9
CANDIDATES = ("analysis", "bare", "in memory", "a tenth")
SHARD_ROWS = 256


@dataclass(frozen=True)
class Options:
    """How long does an analysis take, and in how much memory?"""

    tokens: int = 10_000_000
    """Response tokens of the traces that are made."""
    mean_length: int = 2000
    """Tokens of a response on average."""
    vocabulary: int = 151_936
    """Different tokens."""
    cores: int = 2
    """Cores that every candidate may use."""
    repeats: int = 3
    """Interleaved rounds."""
    json: bool = False
    """Only the JSON line goes to standard output; tables go to standard error."""
    out: Path | None = None
    """Also write the result to this file."""


Run = dict[str, float]


def main(
    args: Sequence[str] | None = None, launch: Callable[[str, Path, int], Run] | None = None
) -> dict[str, Any]:
    """Make traces, measure, print; returns what the JSON line says."""
    options = tyro.cli(Options, description=__doc__, args=args)
    launch = launch or in_own_process
    with tempfile.TemporaryDirectory(prefix="navtoken-") as folder:
        path = Path(folder)
        write_traces(path, options)
        rounds = {name: partial(_run, launch, name, path, options.cores) for name in CANDIDATES}
        runs = interleaved(rounds, options.repeats)
        corpus = {
            "tokens": options.tokens,
            "responses": num_responses(path),
            "shards": len(paths_of(path)),
            "bytes": sum(shard.stat().st_size for shard in path.iterdir()),
            "vocabulary": options.vocabulary,
        }
    rows = [_row(name, runs[name], runs["bare"]) for name in CANDIDATES]
    by_name = {row["candidate"]: row for row in rows}
    bars = [
        Bar("2 GB / peak memory of the analysis", 1.0, LIMIT_BYTES / by_name["analysis"]["peak_bytes"]),
        Bar(
            "peak on a tenth / peak on all",
            0.8,
            by_name["a tenth"]["peak_bytes"] / by_name["analysis"]["peak_bytes"],
        ),
    ]
    _check_same_percentile(runs)
    console = console_for(options.json)
    cells = [
        (
            row["candidate"],
            row["seconds"]["median"],
            row["cpu_seconds"]["median"],
            row["times_bare"]["median"],
            row["peak_bytes"] / 1e6,
            row["held_before_bytes"] / 1e6,
        )
        for row in rows
    ]
    columns = ("", "seconds", "of CPU", "times bare", "peak (MB)", "before it began (MB)")
    console.print(table(f"{options.tokens:,} tokens on {options.cores} cores", columns, cells))
    console.print(bars_table(bars))
    result = {"corpus": corpus, "rows": rows, "bars": [bar.as_json() for bar in bars]}
    return finish("analysis", options, result, options.out)


def in_own_process(candidate: str, folder: Path, cores: int) -> Run:
    """Run a candidate in a new process; returns its seconds, peak and result."""
    done = subprocess.run(
        [sys.executable, __file__, "--candidate", candidate, str(folder), str(cores)],
        check=True,
        capture_output=True,
        text=True,
    )
    run: Run = json.loads(done.stdout.splitlines()[-1])
    return run


def run_candidate(candidate: str, folder: Path, cores: int) -> Run:
    """Time a candidate in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    pa.set_cpu_count(cores)
    held = peak_memory_bytes()
    start, cpu_start = time.perf_counter(), time.process_time()
    percentile = WORK[candidate](folder)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_memory_bytes(),
        "held_before_bytes": held,
        "percentile": percentile,
    }


def analyse(folder: Path) -> float:
    """The analysis of all shards."""
    return analyze_traces(folder).whole.percentile


def analyse_a_tenth(folder: Path) -> float:
    """That of every tenth shard."""
    return analyze_traces(paths_of(folder)[::10]).whole.percentile


def read_bare(folder: Path) -> float:
    """Nothing but one reading."""
    for shard in paths_of(folder):
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(SHARD_ROWS, columns=list(COLUMNS)):
                del batch
    return float("nan")


def hold_in_memory(folder: Path) -> float:
    """The obvious way: everything in one table."""
    read = pa.concat_tables([pq.read_table(shard, columns=list(COLUMNS)) for shard in paths_of(folder)])
    entropy = read.column(COLUMN).combine_chunks().flatten().to_numpy()
    ids = read.column("response_ids").combine_chunks().flatten().to_numpy()
    counts = np.bincount(ids)
    np.bincount(ids, entropy) / np.maximum(counts, 1)
    return float(np.percentile(entropy.astype(np.float64), 80))


WORK: dict[str, Callable[[Path], float]] = {
    "analysis": analyse,
    "bare": read_bare,
    "in memory": hold_in_memory,
    "a tenth": analyse_a_tenth,
}


def write_traces(folder: Path, options: Options) -> None:
    """Traces with tokens as frequent as words are, and entropies as the first paper has them: half under 0.01 nats."""
    with TraceWriter(folder, provenance({}, tokens=options.tokens), SHARD_ROWS) as writer:
        for trace in _traces(options):
            writer.write(trace)


def _traces(options: Options) -> Iterator[Trace]:
    rng = np.random.default_rng(0)
    left, sample = options.tokens, 0
    while left:
        length = min(left, 1 + int(rng.exponential(options.mean_length)))
        ids = ((rng.zipf(1.2, length) - 1) % options.vocabulary).astype(np.int32)
        certain = rng.random(length) < 0.5
        entropy = np.where(certain, rng.exponential(0.002, length), rng.exponential(0.6, length))
        yield Trace(
            task="synthetic",
            problem_id=str(sample),
            sample=0,
            prompt="",
            prompt_ids=[],
            response_ids=ids,  # type: ignore[arg-type]
            text="",
            finish_reason="stop",
            seed=0,
            policy="llm",
            writer=np.ones(length, np.int8),  # type: ignore[arg-type]
            correct=bool(rng.random() < 0.5),
            columns={COLUMN: entropy.astype(np.float32)},
        )
        left -= length
        sample += 1


def _run(launch: Callable[[str, Path, int], Run], name: str, path: Path, cores: int, _: int) -> Run:
    return launch(name, path, cores)


def _row(name: str, runs: Sequence[Run], bare: Sequence[Run]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    return {
        "candidate": name,
        "seconds": spread(seconds)._asdict(),
        # Beside other work on the machine this is what can be compared.
        "cpu_seconds": spread([run["cpu_seconds"] for run in runs])._asdict(),
        "times_bare": paired_ratio(seconds, [run["seconds"] for run in bare])._asdict(),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "held_before_bytes": max(run["held_before_bytes"] for run in runs),
    }


def _check_same_percentile(runs: dict[str, list[Run]]) -> None:
    ours, theirs = runs["analysis"][0]["percentile"], runs["in memory"][0]["percentile"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--candidate"]:
        print(json.dumps(run_candidate(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        run_script(main)
