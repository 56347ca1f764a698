"""One concurrency of `decode.py`: which rows it has, who decodes them, and their rounds."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from bare import GRID, BareModel
from candidates import Assisted, Candidate, Continuous, EngineCandidate, Generate, Run, cache_gib
from measuring import BenchmarkError, console_for, interleaved, memory_bandwidth
from navtoken.checkpoints import ModelPair
from navtoken.engine import EngineOptions
from navtoken.planner import StepTimes
from navtoken.policies import Writer
from pairs import Load, PairSource, Request, device_of, packed_and_plain
from planned import Planner

SPECULATIVE = {"speculative:4": 4, "speculative:auto": None}
PEERS = ("generate", "assisted", "continuous")
ROUTED = {
    "random:0.13": 0.13,
    "random:0.35": 0.35,
    "lockstep:0.13": 0.13,
    "fallback:0.13": 0.13,
    "fallback:0.35": 0.35,
}
"""Rows of forced share. `random` parks rows by the batching rule asked for, `lockstep` never lets one wait, and `fallback`
lets the LLM write everything where the engine finds that routing does not pay."""
NOT_AT = {
    1: ("lockstep:0.13", "fallback:0.35"),
    4: ("lockstep:0.13", "fallback:0.35"),
    64: ("lockstep:0.13", "fallback:0.35", "speculative:auto"),
}
"""Rows left out unless they are asked for: with one row there is nothing to wait for, with 64 every run takes long."""
ROWS = ("slm", "llm", *ROUTED, *SPECULATIVE, *PEERS)


@dataclass(frozen=True)
class Options:
    """How fast does a pair decode, and how near its ceilings?"""

    pair: str = "bandwidth"
    """`embedded`, `bandwidth`, and on an accelerator `r1` and `qwen3`."""
    concurrency: str = "1,4,16,64"
    """Rows decoded together, comma-separated; each may be run on its own."""
    only: str = ""
    """Rows to run, comma-separated; by default those that this concurrency is about. See ROWS and NOT_AT."""
    tokens: int = 0
    """Longest response in tokens, the others in proportion; 0 takes the pair's own lengths."""
    repeats: int = 3
    """Interleaved rounds."""
    llm_min_rows: str = "auto"
    """The batching rule of all rows but lockstep: `auto`, or how many rows must wait for the LLM."""
    torch_compile: bool = False
    """Run the engine's models through `torch.compile`, on a CPU."""
    threads: int = 0
    """Of torch; 0 leaves its own choice."""
    json: bool = False
    """Only the JSON line goes to standard output; tables go to standard error."""
    out: Path | None = None
    """Also write the result to this file."""

    @property
    def concurrencies(self) -> list[int]:
        return [int(each) for each in self.concurrency.split(",")]

    def rows_at(self, concurrency: int) -> list[str]:
        """Raises `BenchmarkError` for a row that there is not."""
        asked = [row for row in self.only.split(",") if row]
        if unknown := [row for row in asked if row not in ROWS]:
            raise BenchmarkError(f"there is no row '{unknown[0]}'; there are {', '.join(ROWS)}")
        return [row for row in asked or ROWS if row not in NOT_AT.get(concurrency, ()) or row in asked]

    @property
    def min_rows(self) -> int | Literal["auto"]:
        return "auto" if self.llm_min_rows == "auto" else int(self.llm_min_rows)


@dataclass
class Bench:
    """What all concurrencies share."""

    source: PairSource
    options: Options
    pair: ModelPair
    peers: dict[Writer, Any]
    bandwidth: float
    """Bytes per second that the memory was measured to give."""
    console: Console
    bare: dict[int, list[BareModel]] = field(default_factory=dict)
    """By context, SLM and LLM."""

    @classmethod
    def of(cls, source: PairSource, options: Options) -> "Bench":
        pair, peers = packed_and_plain(source)
        return cls(
            source, options, pair, peers, memory_bandwidth(device_of(source)), console_for(options.json)
        )

    def bare_at(self, context: int) -> list[BareModel]:
        """Both models' bare forwards, without samples."""
        if context not in self.bare:
            self.bare[context] = [BareModel(self.pair[model], GRID, context) for model in Writer]
        for each in self.bare[context]:
            each.forget()
        return self.bare[context]


@dataclass
class Point:
    """One concurrency."""

    bench: Bench
    rows: int
    load: Load
    bare: list[BareModel] = field(default_factory=list)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def planner(self) -> Planner:
        """With what bare forwards take by all rounds so far."""
        slm, llm = self.times
        return Planner(slm, llm)

    @property
    def times(self) -> list[StepTimes]:
        return [each.times() for each in self.bare]

    def requests(self, number: int) -> list[Request]:
        return self.load.requests(self.bench.source.text(self.bench.pair), seed=number)

    def time_bare(self) -> None:
        """One round of bare forwards of both models."""
        for each in self.bare:
            each.round()

    def tell(self, what: str) -> None:
        """Progress, where nobody parses it."""
        print(f"concurrency {self.rows}: {what}", file=sys.stderr, flush=True)


def point_of(bench: Bench, rows: int) -> Point:
    """One concurrency, with bare forwards ready to be timed."""
    load = _scaled(bench.source.load(rows), bench.options.tokens)
    return Point(bench, rows, load, bench.bare_at(load.prompt_tokens[0]))


def run_rounds(point: Point) -> None:
    """Make the candidates, and run all of them and the bare forwards in interleaved rounds."""
    _make_candidates(point, point.bench.options.rows_at(point.rows))
    runs: dict[str, Callable[[int], object]] = {
        name: partial(_attempt, point, name) for name in point.candidates
    }
    runs["bare forwards"] = lambda _: point.time_bare()
    interleaved(runs, point.bench.options.repeats, point.tell)


def _make_candidates(point: Point, wanted: Sequence[str]) -> None:
    """Those asked for, warmed up. A peer that cannot run here keeps its place with its error."""
    for name in wanted:
        if name == "assisted" and point.rows > 1:
            continue
        point.tell(f"warming up {name}")
        point.candidates[name] = _candidate(point, name)
        point.runs[name] = []
        warm_up = point.candidates[name].warm_up
        _guarded(point, name, partial(warm_up, point.load, point.bench.source.text(point.bench.pair)))


def _candidate(point: Point, name: str) -> Candidate:
    peers, options, temperature = (
        point.bench.peers,
        point.bench.options,
        point.bench.source.speculative_temperature,
    )
    if name == "generate":
        return Generate(peers[Writer.LLM], point.rows)
    if name == "assisted":
        return Assisted(peers[Writer.LLM], peers[Writer.SLM], temperature)
    if name == "continuous":
        return Continuous(peers[Writer.LLM], point.rows)
    kind = name.split(":")[0]
    engine = EngineOptions(
        max_rows=point.rows,
        llm_min_rows=1 if kind == "lockstep" else options.min_rows,
        when_unprofitable="llm" if kind == "fallback" else "route",
        cache_gib=cache_gib(point.bench.pair, point.load, point.rows),
        torch_compile=options.torch_compile,
    )
    policy = f"random:{ROUTED[name]}" if name in ROUTED else name
    return EngineCandidate(point.bench.pair, policy, engine, temperature if name in SPECULATIVE else 0.0)


def _attempt(point: Point, name: str, number: int) -> Run | None:
    """One round of one candidate, unless it failed before."""
    if name in point.errors:
        return None
    made = _guarded(point, name, lambda: point.candidates[name].run(point.requests(number)))
    if made is not None:
        point.runs[name].append(made)
    return made


def _guarded(point: Point, name: str, do: Callable[[], Any]) -> Any:
    """A peer's failure is a result; ours is a failure."""
    if name not in PEERS:
        return do()
    try:
        return do()
    # Whatever a peer fails with is its result, in its own words.
    except Exception as error:  # noqa: BLE001
        point.errors[name] = f"{type(error).__name__}: {error}"
        point.tell(f"{name} cannot run here: {point.errors[name]}")
        return None


def _scaled(load: Load, longest: int) -> Load:
    """The load with responses of at most so many tokens; 0 leaves it."""
    if not longest:
        return load
    usual = load.response_tokens[-1]
    lengths = tuple(max(1, length * longest // usual) for length in load.response_tokens)
    return Load(load.num_requests, load.prompt_tokens, lengths)
