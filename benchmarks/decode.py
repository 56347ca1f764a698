"""Decoding speed: SLM, LLM, routed, speculative and peers in one run, each beside its ceiling.

    python benchmarks/decode.py --pair bandwidth --json

Two ceilings stand beside every row of ours. The roofline: the same forward passes, with the same numbers of new tokens,
timed outside the engine (`bare.py`); and the bytes that these passes must move at the memory's measured bandwidth. A
third figure, the planner's, is what these step times should give for such a load at the LLM share that the coins gave (`planned.py`). Peers run the same requests on unpacked
weights, at the best of the settings that they document, which the result lists.
"""

from collections.abc import Sequence
from typing import Any

import tyro

from decode_point import Bench, Options, Point, point_of, run_rounds
from decode_report import check_bars, rows_table
from decode_rows import describe, ratios
from measuring import bars_table, finish, run_script, set_threads
from navtoken.planner import StepTimes
from navtoken.policies import Writer
from pairs import PairSource, source_named


def main(args: Sequence[str] | None = None, source: PairSource | None = None) -> dict[str, Any]:
    """Parse, measure, print; returns what the JSON line says."""
    options = tyro.cli(Options, description=__doc__, args=args)
    set_threads(options.threads)
    return run(options, source or source_named(options.pair))


def run(options: Options, source: PairSource) -> dict[str, Any]:
    """All concurrencies of one pair."""
    for rows in options.concurrencies:
        options.rows_at(rows)
    bench = Bench.of(source, options)
    points = [measure(bench, rows) for rows in options.concurrencies]
    bars = check_bars(source.name, points)
    for point in points:
        bench.console.print(rows_table(source.name, point))
    bench.console.print(f"memory bandwidth, measured: {bench.bandwidth / 1e9:.1f} GB/s")
    bench.console.print(bars_table(bars))
    result = {
        "pair": _pair_card(bench),
        "bandwidth_bytes_per_second": bench.bandwidth,
        "points": points,
        "bars": [bar.as_json() for bar in bars],
    }
    return finish("decode", options, result, options.out)


def measure(bench: Bench, rows: int) -> dict[str, Any]:
    """One concurrency: bare forwards, the planner's word, then all candidates in interleaved rounds."""
    point = point_of(bench, rows)
    for _ in range(bench.options.repeats):
        point.time_bare()
    prediction = predict_gain(point)
    point.tell(f"predicted before the run: {prediction}")
    run_rounds(point)
    described = [describe(point, name) for name in point.candidates]
    for candidate in point.candidates.values():
        candidate.close()
    return {
        "concurrency": rows,
        "load": vars(point.load),
        "predicted_before": prediction,
        "bare_ms": {model.name.lower(): _milliseconds(point.times[model]) for model in Writer},
        "bare_context": point.load.prompt_tokens[0],
        "rows": described,
        "ratios": ratios(point),
    }


def predict_gain(point: Point) -> dict[str, Any]:
    """What the planner expects of the batching rule `auto` over lockstep, from bare step times alone."""
    planner, requests = point.planner, point.requests(0)
    seconds = {
        name: planner.seconds(requests, point.rows, planner.routed(0.13, min_rows), tuple(Writer))
        for name, min_rows in (("auto", None), ("lockstep", 1))
    }
    return {
        "min_rows": planner.best_min_rows(0.13, point.rows),
        "gain": seconds["lockstep"] / seconds["auto"],
        "routing_pays": planner.routed(0.13)(point.rows) >= planner.alone(Writer.LLM)(point.rows),
    }


def _pair_card(bench: Bench) -> dict[str, Any]:
    """Which models these are."""
    return {
        "name": bench.source.name,
        "device": str(bench.pair.llm.model.device),
        "dtype": str(bench.pair.llm.model.dtype).removeprefix("torch."),
        **{model.name.lower(): vars(bench.pair[model].card) for model in Writer},
    }


def _milliseconds(times: StepTimes) -> dict[str, float]:
    """Bare step times by number of new tokens."""
    return {f"{num:g}": 1e3 * seconds for num, seconds in zip(times.num_tokens, times.seconds, strict=True)}


if __name__ == "__main__":
    run_script(main)
