"""What exact entropies cost beyond the LM-head product that they need, beside the naive way and TRL's, in one run.

    python benchmarks/scoring.py --json

All go from the same hidden states and LM head to one entropy per position; ours also gives log-probability, argmax and margin. Time: a
round takes one slice of the positions through every candidate, so that a machine that slows down does so for all. The floor
is the faster of two bare products: of the whole slice at once, and in chunks as ours makes it. Memory: each candidate with
all positions in a process of its own, its high-water mark above what inputs and libraries took before; one whose whole tensors do
not fit here is measured with as many positions as do, and scaled. What is extra depends on positions and vocabulary, so
the LM head may be narrower there.

TRL's `entropy_from_logits` is left out where TRL is not installed (`pip install --no-deps trl` suffices).

Shapes: N positions, V vocabulary, D hidden size.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil
import torch
import tyro
from torch import Tensor

from measuring import (
    Bar,
    BenchmarkError,
    bars_table,
    console_for,
    finish,
    interleaved,
    paired_ratio,
    peak_memory_bytes,
    run_script,
    set_threads,
    synchronize,
    table,
)
from navtoken.entropy import LMHead, chunk_rows, scores_from_hidden

MOST_OF_MEMORY = 0.6
"""Part of the free memory that whole tensors may take."""
WARM_UP = 16
"""Positions that every candidate sees before it is measured."""


@dataclass(frozen=True)
class Options:
    """What do exact entropies cost over the LM-head product alone?"""

    positions: int = 8192
    """Positions scored."""
    vocabulary: int = 151_936
    """Rows of the LM head."""
    hidden: int = 4096
    """Columns of the LM head."""
    slice: int = 2048
    """Positions of a round."""
    rounds: int = 0
    """Slices that are timed; 0 takes all, fewer are scaled to all positions."""
    memory_hidden: int = 512
    """Columns of the LM head where memory is measured."""
    device: str = "cpu"
    """Torch device."""
    dtype: str = "float32"
    """Type of hidden states and LM head."""
    threads: int = 0
    """Of torch; 0 leaves its own choice."""
    seed: int = 0
    """Of hidden states and LM head."""
    memory_of: str = ""
    """Measure this candidate's memory in this process and stop: how the benchmark calls itself."""
    json: bool = False
    """Only the JSON line goes to standard output; tables go to standard error."""
    out: Path | None = None
    """Also write the result to this file."""

    def __post_init__(self) -> None:
        if self.slice < 1 or self.positions % self.slice:
            raise BenchmarkError(
                f"slice is {self.slice}; give one that divides {self.positions}, the positions"
            )


class Inputs(NamedTuple):
    """What every candidate is given."""

    hidden_ND: Tensor
    ids_N: Tensor
    head: LMHead


class Took(NamedTuple):
    """Time of one slice."""

    seconds: float
    cpu_seconds: float
    """Of all threads together: what a busy machine disturbs less than the clock on the wall."""


Run = Callable[[Tensor, Tensor, LMHead], Tensor | None]
"""(N, D) hidden states, (N,) ids and the head -> (N,) entropies, or None from a bare product."""


@dataclass(frozen=True)
class Candidate:
    """A way to entropies, or a part of one."""

    run: Run
    whole_tensors: int
    """Of positions x vocabulary, alive at once."""


def _head_whole(hidden_ND: Tensor, _: Tensor, head: LMHead) -> None:
    head.logits(hidden_ND)


def _head_in_chunks(hidden_ND: Tensor, _: Tensor, head: LMHead) -> None:
    for chunk in hidden_ND.split(chunk_rows(len(hidden_ND), head.vocabulary)):
        head.logits(chunk)


def _ours(hidden_ND: Tensor, ids_N: Tensor, head: LMHead) -> Tensor:
    return scores_from_hidden(hidden_ND, head, ids_N).entropy_N


def _trl(hidden_ND: Tensor, _: Tensor, head: LMHead) -> Tensor:
    from trl.trainer.utils import entropy_from_logits

    return entropy_from_logits(head.logits(hidden_ND))


def _naive(hidden_ND: Tensor, _: Tensor, head: LMHead) -> Tensor:
    logprobs_NV = torch.log_softmax(head.logits(hidden_ND), dim=-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)


CANDIDATES = {
    "head": Candidate(_head_whole, 1),
    "head in chunks": Candidate(_head_in_chunks, 0),
    "ours": Candidate(_ours, 0),
    "trl": Candidate(_trl, 1),
    "naive": Candidate(_naive, 3),
}
FLOORS = ("head", "head in chunks")


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse, measure, print; returns what the JSON line says."""
    options = tyro.cli(Options, description=__doc__, args=args)
    set_threads(options.threads)
    if options.memory_of:
        found = extra_memory(options.memory_of, options)
        print(json.dumps(found), flush=True)
        return found
    names = [name for name in CANDIDATES if name != "trl" or find_spec("trl")]
    # First, while this process is small: a child's high-water mark may begin at its parent's.
    memory = {name: memory_in_own_process(name, options) for name in names}
    inputs = make_inputs(options, options.hidden)
    errors = {name: error(name, inputs) for name in names if name not in FLOORS}
    took = time_in_rounds(names, inputs, options)
    rows = [row(name, took, memory, errors, options) for name in names]
    bars = [
        Bar("time of the bare LM-head product, of ours", 1 / 1.3, 1 / by_name(rows, "ours")["over_floor"]["median"]),
        Bar("the same in CPU time", 1 / 1.3, 1 / by_name(rows, "ours")["cpu_over_floor"]["median"]),
        Bar("naive's extra memory, over ours", 10.0, memory_ratio(memory, "naive")),
    ]  # fmt: skip
    console = console_for(options.json)
    console.print(_table(rows, options))
    console.print(bars_table(bars))
    if not torch.cuda.is_available():
        console.print("no accelerator here: measured on the CPU only")
    result = {
        "trl": version("trl") if "trl" in names else None,
        "rows": rows,
        "bars": [bar.as_json() for bar in bars],
    }
    return finish("scoring", options, result, options.out)


def make_inputs(options: Options, hidden: int) -> Inputs:
    """Random, with logits that differ by about 3 nats in standard deviation."""
    generator = torch.Generator(options.device).manual_seed(options.seed)
    kind = {"device": options.device, "dtype": getattr(torch, options.dtype), "generator": generator}
    hidden_ND = torch.randn(options.positions, hidden, **kind)
    weight_VD = torch.randn(options.vocabulary, hidden, **kind).mul_(3.0 / hidden**0.5)
    ids_N = torch.randint(
        options.vocabulary, (options.positions,), device=options.device, generator=generator
    )
    return Inputs(hidden_ND, ids_N, LMHead(weight_VD))


# ---- time ------------------------------------------------------------------------------------------------------


def time_in_rounds(names: Sequence[str], inputs: Inputs, options: Options) -> dict[str, list[Took]]:
    """What every slice took, by candidate."""
    for name in names:
        _call(name, inputs, slice(0, WARM_UP))
    rounds = options.rounds or options.positions // options.slice
    return interleaved(
        {name: partial(_took, name, inputs, options) for name in names},
        rounds,
        lambda text: print(text, file=sys.stderr, flush=True),
    )


def _took(name: str, inputs: Inputs, options: Options, number: int) -> Took:
    synchronize(options.device)
    start, cpu_start = time.perf_counter(), time.process_time()
    _call(name, inputs, slice(number * options.slice, (number + 1) * options.slice))
    synchronize(options.device)
    return Took(time.perf_counter() - start, time.process_time() - cpu_start)


@torch.inference_mode()
def _call(name: str, inputs: Inputs, where: slice) -> Tensor | None:
    return CANDIDATES[name].run(inputs.hidden_ND[where], inputs.ids_N[where], inputs.head)


# ---- memory ----------------------------------------------------------------------------------------------------


def memory_in_own_process(name: str, options: Options) -> dict[str, Any]:
    """`extra_memory` of a process that does nothing else."""
    given = ("positions", "vocabulary", "memory_hidden", "slice", "device", "dtype", "threads", "seed")
    flags = [part for each in given for part in (f"--{each.replace('_', '-')}", str(getattr(options, each)))]
    command = [sys.executable, __file__, "--memory-of", name, *flags]
    print(f"memory of {name}", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(
            f"measuring the memory of {name} failed: {done.stderr.strip().splitlines()[-1:]}"
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def extra_memory(name: str, options: Options) -> dict[str, Any]:
    """Bytes that a candidate took at its peak beyond inputs and libraries, and how many positions it was given."""
    if name not in CANDIDATES:
        raise BenchmarkError(f"there is no candidate '{name}'; there are {', '.join(CANDIDATES)}")
    inputs = make_inputs(options, options.memory_hidden)
    # Libraries, and what they keep for themselves.
    _call(name, inputs, slice(0, WARM_UP))
    positions = _fitting(CANDIDATES[name], inputs, options)
    before = _resident_bytes(options.device)
    _call(name, inputs, slice(0, positions))
    extra = max(0, _peak_bytes(options.device) - before)
    return {"bytes": extra * options.positions // positions if positions < options.positions else extra,
            "measured_positions": positions}  # fmt: skip


def _fitting(candidate: Candidate, inputs: Inputs, options: Options) -> int:
    """As many positions as the free memory has room for."""
    on_cpu = options.device == "cpu"
    free = psutil.virtual_memory().available if on_cpu else torch.cuda.mem_get_info()[0]
    position = max(1, candidate.whole_tensors) * options.vocabulary * inputs.hidden_ND.element_size()
    fitting = int(MOST_OF_MEMORY * free / position)
    if not fitting:
        raise BenchmarkError(
            f"{free / 1e9:.1f} GB of free memory hold not one position; give a smaller --vocabulary"
        )
    return min(options.positions, fitting) if candidate.whole_tensors else options.positions


def _resident_bytes(device: str) -> int:
    if device == "cpu":
        return int(psutil.Process().memory_info().rss)
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def _peak_bytes(device: str) -> int:
    return peak_memory_bytes() if device == "cpu" else int(torch.cuda.max_memory_allocated())


# ---- what is told ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def error(name: str, inputs: Inputs) -> float:
    """Largest difference in nats from entropies in float64 of the same logits, over a few positions."""
    found = _call(name, inputs, slice(0, WARM_UP))
    assert found is not None
    logits_NV = inputs.head.logits(inputs.hidden_ND[:WARM_UP]).double()
    logprobs_NV = torch.log_softmax(logits_NV, -1)
    return float((found.double() + (logprobs_NV.exp() * logprobs_NV).sum(-1)).abs().max())


def row(
    name: str,
    took: dict[str, list[Took]],
    memory: dict[str, dict[str, Any]],
    errors: dict[str, float],
    options: Options,
) -> dict[str, Any]:
    """All that is known of one candidate."""
    slices = len(took[name])
    scale = options.positions / (slices * options.slice)
    return {
        "candidate": name,
        "seconds": sum(each.seconds for each in took[name]) * scale,
        "rounds": slices,
        "over_floor": _over_floor(took, name, 0),
        "cpu_over_floor": _over_floor(took, name, 1),
        "extra_bytes": memory[name]["bytes"],
        "memory_positions": memory[name]["measured_positions"],
        "times_our_memory": memory_ratio(memory, name),
        "error_nats": errors.get(name),
    }


def _over_floor(took: dict[str, list[Took]], name: str, clock: int) -> dict[str, float]:
    """Median, smallest and largest ratio of a round to the same round of the faster bare product."""
    times = {each: [slice_took[clock] for slice_took in took[each]] for each in (name, *FLOORS)}
    return paired_ratio(times[name], min((times[each] for each in FLOORS), key=median))._asdict()


def memory_ratio(memory: dict[str, dict[str, Any]], name: str) -> float | None:
    """A candidate's extra memory over ours; None where ours is too little to be seen."""
    ours = memory["ours"]["bytes"]
    return memory[name]["bytes"] / ours if ours else None


def by_name(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in rows if row["candidate"] == name)


def _table(rows: Sequence[dict[str, Any]], options: Options) -> Any:
    title = f"{options.positions} positions, vocabulary {options.vocabulary}, hidden {options.hidden}, {options.dtype}"
    columns = (
        "",
        "seconds",
        "over the floor",
        "lowest",
        "highest",
        "extra memory (MB)",
        "of ours",
        "error (nats)",
    )
    cells = [
        (
            row["candidate"],
            row["seconds"],
            *row["over_floor"].values(),
            row["cpu_over_floor"]["median"],
            row["extra_bytes"] / 1e6,
            row["times_our_memory"],
            None if row["error_nats"] is None else f"{row['error_nats']:.1e}",
        )
        for row in rows
    ]
    return table(title, columns, cells)


if __name__ == "__main__":
    run_script(main)
