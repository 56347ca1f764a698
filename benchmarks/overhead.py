"""What a decode step costs besides its model forwards: sampling, policy, bookkeeping, copies.

    python benchmarks/overhead.py --pair bandwidth --json

Two figures for each load. `outside_share`: the part of `engine.step()` in which no model's forward runs. `above_bare_share`: the
part of it that bare forwards of the same numbers of new tokens (`bare.py`) would not have needed, which also holds what the
engine's own attention costs within the forward. The ceiling of both is 0. Steps that read a prompt are left out: their long
forwards would make any overhead look small.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from bare import GRID, BareModel, Passes, bare_seconds, recorded_passes
from candidates import cache_gib
from measuring import console_for, finish, interleaved, run_script, set_threads, table
from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.planner import StepTimes
from navtoken.policies import Writer, make_policy
from pairs import Load, PairSource, Request, packed_pair, source_named

POLICIES = ("slm", "llm", "random:0.13")


@dataclass(frozen=True)
class Options:
    """How much of a step is not model forward?"""

    pair: str = "bandwidth"
    """`embedded`, `bandwidth`, and on an accelerator `r1` and `qwen3`."""
    concurrency: str = "1,4,16,64"
    """Rows decoded together, comma-separated."""
    tokens: int = 32
    """Response tokens of each request; there are as many requests as rows."""
    repeats: int = 3
    """Interleaved rounds."""
    threads: int = 0
    """Of torch; 0 leaves its own choice."""
    json: bool = False
    """Only the JSON line goes to standard output; tables go to standard error."""
    out: Path | None = None
    """Also write the result to this file."""


@dataclass
class Steps:
    """The decode steps of one run."""

    seconds: list[float] = field(default_factory=list)
    """Of each step."""
    forward_seconds: list[float] = field(default_factory=list)
    """Of the model forwards within it."""
    passes: list[Passes] = field(default_factory=list)

    @property
    def outside_share(self) -> float:
        return 1 - sum(self.forward_seconds) / sum(self.seconds)

    def above_bare_share(self, times: Sequence[StepTimes]) -> float:
        return 1 - bare_seconds(self.passes, times) / sum(self.seconds)


def main(args: Sequence[str] | None = None, source: PairSource | None = None) -> dict[str, Any]:
    """Parse, measure, print; returns what the JSON line says."""
    options = tyro.cli(Options, description=__doc__, args=args)
    set_threads(options.threads)
    source = source or source_named(options.pair)
    pair = packed_pair(source)
    rows = [row for num in options.concurrency.split(",") for row in measure(pair, source, int(num), options)]
    columns = (
        "",
        "rows",
        "step (ms)",
        "outside (ms)",
        "outside\nforwards",
        "above bare\nforwards",
        "ceiling",
    )
    cells = [
        (row["policy"], row["concurrency"], row["step_ms"], row["outside_ms"], row["outside_share"], row["above_bare_share"], 0)
        for row in rows
    ]  # fmt: skip
    console_for(options.json).print(table(f"{source.name}: share of a decode step", columns, cells))
    return finish("overhead", options, {"pair": source.name, "rows": rows}, options.out)


def measure(pair: ModelPair, source: PairSource, rows: int, options: Options) -> list[dict[str, Any]]:
    """All policies at one concurrency, and bare forwards in the same rounds."""
    prompts = source.load(rows).prompt_tokens
    load = Load(rows, prompts, (options.tokens, options.tokens))
    engine_options = EngineOptions(max_rows=rows, cache_gib=cache_gib(pair, load, rows))
    engines = {policy: Engine(pair, make_policy(policy), engine_options) for policy in POLICIES}
    bare = [BareModel(pair[model], GRID, prompts[0]) for model in Writer]
    done: dict[str, list[Steps]] = {policy: [] for policy in POLICIES}

    def run(policy: str, number: int) -> None:
        steps = decode_steps(engines[policy], load.requests(source.text(pair), number))
        # The first round warms up.
        done[policy] += [steps] if number else []

    def time_bare(number: int) -> None:
        for each in bare:
            each.round()

    rounds = {policy: partial(run, policy) for policy in POLICIES} | {"bare": time_bare}
    interleaved(rounds, options.repeats + 1)
    return [_row(policy, rows, done[policy], [each.times() for each in bare]) for policy in POLICIES]


def decode_steps(engine: Engine, requests: Sequence[Request]) -> Steps:
    """Decode a load step by step with a clock around each step and each forward."""
    sampling = SamplingParams(ignore_eos=True)
    for request in requests:
        engine.add(request.prompt_ids, sampling, request.num_tokens, seed=request.seed)
    steps = Steps()
    with timed_forwards(engine.pair) as forwards, recorded_passes(engine) as passes:
        while engine.has_work:
            read = _num_prompt_tokens(engine)
            forwards.clear()
            passes.clear()
            start = time.perf_counter()
            engine.step()
            seconds = time.perf_counter() - start
            if passes and _num_prompt_tokens(engine) == read:
                steps.seconds.append(seconds)
                steps.forward_seconds.append(sum(forwards))
                steps.passes += passes
    return steps


@contextmanager
def timed_forwards(pair: ModelPair) -> Iterator[list[float]]:
    """Collect the seconds of both models' forwards. On an accelerator that is their launch: graphs replay without it."""
    seconds: list[float] = []
    for model in Writer:
        _time_forward(pair[model].model, seconds)
    try:
        yield seconds
    finally:
        for model in Writer:
            del pair[model].model.forward


def _time_forward(model: Any, seconds: list[float]) -> None:
    forward = model.forward

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        output = forward(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return output

    model.forward = timed


def _row(policy: str, rows: int, runs: Sequence[Steps], times: Sequence[StepTimes]) -> dict[str, Any]:
    return {
        "policy": policy,
        "concurrency": rows,
        "steps": sum(len(run.seconds) for run in runs),
        "step_ms": 1e3 * median(median(run.seconds) for run in runs),
        "outside_ms": 1e3
        * median(
            median(a - b for a, b in zip(run.seconds, run.forward_seconds, strict=True)) for run in runs
        ),
        "outside_share": median(run.outside_share for run in runs),
        "above_bare_share": median(run.above_bare_share(times) for run in runs),
        "ceiling": 0.0,
    }


def _num_prompt_tokens(engine: Engine) -> int:
    return sum(model.prefill_tokens for model in engine.ledger.models)


if __name__ == "__main__":
    run_script(main)
