"""`navtoken score`: what any checkpoint makes of responses that are there already, written beside them.

The responses stay as they are; the traces that come out have, at every one of their tokens, entropy, log-probability, likeliest
token and margin under the checkpoint. The folder is the only state: run again, it goes on where it stopped.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from navtoken.analysis.columns import KEY_FIELDS, num_responses, stream_columns
from navtoken.analysis.scoring import (
    BATCH_TOKENS,
    ScoringError,
    Whose,
    scored_columns,
    scored_traces,
    tokenizer_fingerprint,
)
from navtoken.checkpoints import LoadedModel
from navtoken.commands.surroundings import progress_bars, progress_console
from navtoken.generation import ModelOptions
from navtoken.provenance import provenance
from navtoken.trace import Key, Trace, TraceWriter, read_provenance, read_traces

FIXED = ("whose", "dtype")
"""Arguments that all traces of a folder share, besides the fingerprints."""
FLUSH_SECONDS = 60.0
"""A crash loses at most so much work; an interruption loses none."""


@dataclass(frozen=True)
class ScoreOptions:
    """Add what a checkpoint makes of every token to given responses: entropy, log-probability, likeliest token, margin. Run
    again, it goes on where it stopped."""

    traces: tyro.conf.Positional[Path]
    """The responses: a folder of traces (Parquet), or one shard."""
    model: str = "embedded:llm"
    """The checkpoint that reads them: embedded:slm, embedded:llm, a local folder, or org/name@revision of the hub."""
    whose: Annotated[Whose | None, tyro.conf.arg(aliases=("--as",))] = None
    """Fill the columns of the SLM (entropy_slm, logprob_slm, argmax_slm, margin_slm) or those of the LLM; None is the
    SLM's where the checkpoint is the SLM that wrote these traces, else the LLM's."""
    out: Path = Path("out/scored")
    """Folder of the traces with their scores."""
    device: str = "cpu"
    """Torch device of the checkpoint."""
    device_map: str | None = None
    """For a checkpoint larger than one device: auto, balanced, balanced_low_0, sequential, or a JSON object of parts and
    devices. Needs accelerate."""
    dtype: str = "float32"
    """Floating-point type of the checkpoint; auto takes its own."""
    batch_tokens: int = BATCH_TOKENS
    """Tokens of a forward pass, padding counted; memory grows with it."""
    threads: int | None = None
    """Torch threads on the CPU; None is one for a checkpoint as small as the embedded ones, else torch's choice."""

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "threads"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ScoringError(f"{name} is {value}; give at least 1")

    def load(self) -> LoadedModel:
        """Load the checkpoint; sets the process's torch threads. Raises `CheckpointError`s."""
        models = ModelOptions(
            llm=self.model,
            device=self.device,
            llm_device_map=self.device_map,
            dtype=self.dtype,
            threads=self.threads,
        )
        return models.load_alone(self.model).llm


@dataclass
class _Tally:
    """Sums over the tokens that were scored now."""

    whose: Whose
    num_responses: int = 0
    num_tokens: int = 0
    entropy: float = 0.0
    logprob: float = 0.0

    def add(self, trace: Trace) -> None:
        self.num_responses += 1
        self.num_tokens += len(trace.response_ids)
        self.entropy += float(np.sum(trace.columns[f"entropy_{self.whose}"], dtype=np.float64))
        self.logprob += float(np.sum(trace.columns[f"logprob_{self.whose}"], dtype=np.float64))

    def as_json(self) -> dict[str, Any]:
        def mean(total: float) -> float | None:
            value = total / self.num_tokens if self.num_tokens else math.nan
            return value if math.isfinite(value) else None

        return {
            "num_scored": self.num_responses,
            "num_tokens": self.num_tokens,
            "mean_entropy": mean(self.entropy),
            "mean_logprob": mean(self.logprob),
        }


def run(
    options: ScoreOptions,
    console: Console,
    loaded: LoadedModel | None = None,
    keys: frozenset[Key] | None = None,
) -> dict[str, Any]:
    """Score what `options.out` lacks and say what lies there; returns that as plain data. `keys` None is all traces."""
    progress = progress_console()
    total = _checked_total(options, keys)
    source = read_provenance(options.traces)
    loaded = loaded or options.load()
    whose = options.whose or _whose(source, loaded)
    record = _provenance(options, source, loaded, whose)
    same_tokenizer = _fingerprints(source).get("tokenizer") == record["fingerprints"]["tokenizer"]
    tally, started = _Tally(whose), perf_counter()
    with TraceWriter(options.out, record, fixed=FIXED) as writer, progress_bars(progress) as bars:
        bar = bars.add_task(f"scoring with {options.model}", total=total)
        missing = _missing(options, keys, _written(writer), lambda: bars.advance(bar))
        flushed = monotonic()
        for trace in scored_traces(missing, loaded, whose, options.batch_tokens, same_tokenizer):
            writer.write(trace)
            tally.add(trace)
            bars.advance(bar)
            if monotonic() - flushed > FLUSH_SECONDS:
                writer.flush()
                flushed = monotonic()
    result = {
        "out": str(options.out),
        "model": options.model,
        "whose": whose,
        "columns": list(scored_columns(whose).values()),
        "num_responses": total,
        **tally.as_json(),
        "seconds": perf_counter() - started,
        "provenance": record,
    }
    _print(console, result)
    return result


def _checked_total(options: ScoreOptions, keys: frozenset[Key] | None) -> int:
    """Responses to score. Raises `ScoringError` where there is none, or where they lie in the folder to be written."""
    folder = options.traces if options.traces.is_dir() else options.traces.parent
    if folder.resolve() == options.out.resolve():
        raise ScoringError(
            f"the responses lie in {options.out}, where their scored copies would go; name another folder with --out"
        )
    total = num_responses(options.traces) if keys is None else len(keys)
    if not total:
        raise ScoringError(
            f"the traces at {options.traces} hold no response; write some with `navtoken generate`"
        )
    return total


def _written(writer: TraceWriter) -> dict[Key, int]:
    """What lies in the writer's folder: hashes of the responses' tokens."""
    if not writer.done():
        return {}
    known: dict[Key, int] = {}
    for batch in stream_columns(writer.folder, (*KEY_FIELDS, "response_ids")):
        for key, start, length in zip(batch.keys, batch.starts, batch.lengths, strict=True):
            known[key] = _hash(batch["response_ids"][start : start + length])
    return known


def _hash(ids: Sequence[int]) -> int:
    return hash(np.asarray(ids, dtype=np.int32).tobytes())


def _missing(
    options: ScoreOptions,
    keys: frozenset[Key] | None,
    written: dict[Key, int],
    skipped: Callable[[], object],
) -> Iterator[Trace]:
    """The traces without scores. Raises `ScoringError` where another response has scores under a trace's key."""
    keep = None if keys is None else keys.__contains__
    for trace in read_traces(options.traces, keep=keep):
        if trace.key not in written:
            yield trace
        elif written[trace.key] == _hash(trace.response_ids):
            skipped()
        else:
            raise ScoringError(
                f"{options.out} has the scores of another response as {trace.key} than {options.traces}; name another "
                "folder with --out"
            )


def _whose(source: dict[str, Any], loaded: LoadedModel) -> Whose:
    """The SLM's columns only for the very weights that wrote as the SLM."""
    wrote = _fingerprints(source)
    return "slm" if wrote.get("slm") == loaded.fingerprint != wrote.get("llm") else "llm"


def _provenance(
    options: ScoreOptions, source: dict[str, Any], loaded: LoadedModel, whose: Whose
) -> dict[str, Any]:
    """Who wrote and who read: the traces' own fingerprints stay beside the reader's."""
    reader = {f"scores_{whose}": loaded.fingerprint, "tokenizer": tokenizer_fingerprint(loaded)}
    arguments = {**vars(options), "whose": whose}
    return provenance(_fingerprints(source) | reader, **arguments) | {"source": source}


def _fingerprints(source: dict[str, Any]) -> dict[str, str]:
    return source.get("fingerprints") or {}


def _print(console: Console, result: dict[str, Any]) -> None:
    done = result["num_responses"] - result["num_scored"]
    console.print(
        f"{result['num_scored']} responses ({result['num_tokens']} tokens) scored by {result['model']}"
        + (f", {done} were there already" if done else "")
    )
    if result["mean_entropy"] is not None:
        console.print(
            f"mean entropy {result['mean_entropy']:.4f} nats, mean log-probability {result['mean_logprob']:.4f} nats"
        )
    console.print(f"{', '.join(result['columns'])} in {result['out']}", soft_wrap=True)
