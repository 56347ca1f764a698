"""What all benchmarks share: interleaved rounds, medians, the memory's bandwidth, and one JSON line at the end.

Candidates run one after the other within a round, and rounds repeat: a machine that slows down does so for all of them. A
ratio is the median of the rounds' own ratios, shown with the smallest and the largest.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from navtoken.provenance import provenance
from navtoken.report.markup import write_whole


class BenchmarkError(ValueError):
    """A benchmark that cannot be run here, or whose own books don't balance."""


Measured = TypeVar("Measured")

LINE_WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""


class Spread(NamedTuple):
    """A median, and how far single rounds were off it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """Something that a result must reach."""

    name: str
    wanted: float
    """At least."""
    got: float | None
    """None where the run left out what it is about."""

    @property
    def met(self) -> bool | None:
        return None if self.got is None else self.got >= self.wanted

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


def interleaved(
    candidates: Mapping[str, Callable[[int], Measured]],
    num_rounds: int,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, list[Measured]]:
    """Run every candidate once a round, in the given order: A B C A B C ...; each is told the round's number."""
    runs: dict[str, list[Measured]] = {name: [] for name in candidates}
    for number in range(num_rounds):
        for name, run in candidates.items():
            tell(f"round {number + 1}/{num_rounds}: {name}")
            runs[name].append(run(number))
    return runs


def spread(values: Sequence[float]) -> Spread:
    """Median, smallest and largest."""
    return Spread(median(values), min(values), max(values))


def paired_ratio(tops: Sequence[float], bottoms: Sequence[float]) -> Spread:
    """Of the ratios within each round."""
    return spread([top / bottom for top, bottom in zip(tops, bottoms, strict=True)])


def median_seconds(run: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Of one call; the first calls warm up and do not count."""
    for _ in range(2):
        run()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def memory_bandwidth(device: str, num_bytes: int = 1 << 30, repeats: int = 9) -> float:
    """Bytes per second at which a buffer far larger than any cache is read, with all threads.

    The better of two ways to read it, so that "of the bandwidth" is never flattered by a slow reader.
    """
    buffer_N = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    ways = (buffer_N.sum, buffer_N.max)
    return num_bytes / min(median_seconds(way, repeats, device) for way in ways)


def peak_memory_bytes() -> int:
    """The most resident memory that this program ever had; `ru_maxrss` counts the process that started it too."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def set_threads(threads: int) -> None:
    """0 leaves torch's choice."""
    if threads:
        torch.set_num_threads(threads)


def console_for(json_only: bool) -> Console:
    """Where tables go: standard error if only JSON may go to standard output."""
    console = Console(stderr=json_only)
    return console if console.is_terminal else Console(stderr=json_only, width=LINE_WIDTH)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """The first column is text, the others are numbers."""
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        made.add_row(*(_shown(cell) for cell in row))
    return made


def bars_table(bars: Sequence[Bar]) -> Table:
    """What had to be reached, and what was."""
    words = {True: "met", False: "MISSED", None: "not run"}
    return table(
        "Bars", ("", "at least", "got", ""), [(bar.name, bar.wanted, bar.got, words[bar.met]) for bar in bars]
    )


def finish(benchmark: str, options: Any, result: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Print the JSON line with provenance, and write it where asked; returns what was printed."""
    whole = {
        "benchmark": benchmark,
        **result,
        "provenance": provenance(options=_plain(options)) | {"processor": processor()},
    }
    if out is not None:
        write_whole(out, json.dumps(whole, indent=1, allow_nan=False, default=str) + "\n")
    print(json.dumps(whole, allow_nan=False, default=str), flush=True)
    return whole


def run_script(main: Callable[[], object]) -> None:
    """What cannot be run here ends in one line."""
    try:
        main()
    except BenchmarkError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")


def processor() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _plain(options: Any) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def _shown(cell: object) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:.0f}"
    return str(cell)
