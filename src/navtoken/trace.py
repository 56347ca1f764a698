"""Trace: one response with its per-token columns, the record that every stage reads or writes.

Stages hand traces on through Parquet files. A run of hours must survive a crash, so a writer replaces whole shards
and knows on opening what is already there; a result must say where it came from, so every shard carries its
provenance; and a reader that does not know a file's schema refuses it rather than guess.
"""

import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from navtoken.provenance import provenance

__all__ = [
    "COLUMNS",
    "SCHEMA_VERSION",
    "Column",
    "Key",
    "Trace",
    "TraceError",
    "TraceSchemaError",
    "TraceWriter",
    "open_shard",
    "provenance",
    "read_provenance",
    "read_traces",
    "shard_paths",
]

SCHEMA_VERSION = 1
"""Raised by every change that would make an old reader misread a new file, or the reverse."""

SHARD_BYTES = 2**28
"""Optional columns of one shard: hidden states of a few hundred long responses would fill the memory of writers and readers."""

Key = tuple[str, str, str, int]
"""(policy, task, problem_id, sample): what makes a response one of its kind in a folder."""


class TraceError(ValueError):
    """A trace that does not hold together, or a folder that must not take it."""


class TraceSchemaError(TraceError):
    """A file that this version of navtoken cannot read."""


@dataclass(frozen=True)
class Column:
    """An optional column with one value, or one row of values, per response token."""

    arrow: pa.DataType
    """Type of one token's value."""
    whose: str
    """The model or part that the value belongs to."""
    meaning: str
    unit: str

    @property
    def is_row(self) -> bool:
        """Does a token have a row of values, such as its k likeliest alternatives?"""
        return pa.types.is_list(self.arrow)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype((self.arrow.value_type if self.is_row else self.arrow).to_pandas_dtype())

    @property
    def missing(self) -> float:
        """Stands where a value was not computed."""
        return float("nan") if self.dtype.kind == "f" else -1


_FLOAT, _HALF, _ID = pa.float32(), pa.float16(), pa.int32()

COLUMNS: dict[str, Column] = {
    "entropy_slm": Column(_FLOAT, "SLM", "entropy of the next-token distribution at T = 1", "nats"),
    "entropy_llm": Column(_FLOAT, "LLM", "entropy of the next-token distribution at T = 1", "nats"),
    "logprob_slm": Column(_FLOAT, "SLM", "log-probability of the committed token at T = 1", "nats"),
    "logprob_llm": Column(_FLOAT, "LLM", "log-probability of the committed token at T = 1", "nats"),
    "margin_slm": Column(
        _FLOAT, "SLM", "probability of the likeliest token less the second's, T = 1", "probability"
    ),
    "margin_llm": Column(
        _FLOAT, "LLM", "probability of the likeliest token less the second's, T = 1", "probability"
    ),
    "argmax_slm": Column(_ID, "SLM", "the likeliest token", "token id"),
    "argmax_llm": Column(_ID, "LLM", "the likeliest token", "token id"),
    "p_divergent": Column(_FLOAT, "router", "probability that the draft is divergent", "probability"),
    "draft_ids": Column(_ID, "SLM", "the draft", "token id"),
    "top_ids": Column(pa.list_(_ID), "writer", "likeliest tokens, best first", "token id"),
    "top_logprobs": Column(pa.list_(_FLOAT), "writer", "their log-probabilities at T = 1", "nats"),
    "label": Column(
        pa.int8(), "labeling", "0 identical, 1 neutral, 2 divergent, 3 invalid: a stage failed", "class"
    ),
    "slm_top_ids": Column(pa.list_(_ID), "SLM", "likeliest tokens, best first", "token id"),
    "slm_top_logits": Column(pa.list_(_HALF), "SLM", "their logits, before any sampling parameter", "logit"),
    "slm_hidden": Column(
        pa.list_(_HALF), "SLM", "what its LM head is fed where it predicts the token", "activation"
    ),
    "continuation_ids": Column(
        pa.list_(_ID), "labeling", "the draft and how the LLM goes on from it, where they differ", "token id"
    ),
}
"""Registry of optional columns. Where a value was not computed, and behind the end of a shorter row, it is NaN (floats) or -1
(integers)."""

_CORE = pa.schema(
    [
        ("task", pa.string()),
        ("problem_id", pa.string()),
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("prompt_ids", pa.list_(_ID)),
        ("response_ids", pa.list_(_ID)),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("correct", pa.bool_()),
        ("reward", pa.float64()),
        ("seed", pa.int64()),
        ("policy", pa.string()),
        ("sampling", pa.string()),
        ("writer", pa.list_(pa.int8())),
        ("ledger", pa.string()),
    ]
)
_KEY = ("policy", "task", "problem_id", "sample")
# Their values are of many types, or names that differ from run to run, which Parquet has no column type for.
_JSON = ("sampling", "ledger")
_FINISH = ("stop", "length", "abort")
_VERSION_KEY, _PROVENANCE_KEY = b"navtoken.schema_version", b"navtoken.provenance"
_PATTERN = "traces-*.parquet"


@dataclass
class Trace:
    """One response. Token lists are ids as sampled, never text tokenised again."""

    task: str
    """Reference of the task."""
    problem_id: str
    sample: int
    """Which of the problem's responses this is, from 0."""
    prompt: str
    """What was sent to the models, after any chat template."""
    prompt_ids: list[int]
    response_ids: list[int]
    """Committed tokens, the end-of-sequence token included where one was sampled."""
    text: str
    finish_reason: str
    """`stop`, `length` or `abort`."""
    seed: int
    policy: str
    """Reference of the policy."""
    writer: list[int]
    """Per response token: 0 the SLM wrote it, 1 the LLM."""
    correct: bool | None = None
    """The verifier's word; None before it was asked."""
    reward: float | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    """Sampling parameters, JSON-serialisable."""
    ledger: dict[str, float] = field(default_factory=dict)
    """Counts of the cost ledger."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Registered optional columns (see `COLUMNS`): arrays [tokens], or [tokens x k] for rows of values."""

    @property
    def key(self) -> Key:
        return self.policy, self.task, self.problem_id, self.sample

    def check(self) -> None:
        """Raise `TraceError` where the parts do not fit together."""
        where, num_tokens = f"trace {self.key}", len(self.response_ids)
        if self.finish_reason not in _FINISH:
            raise TraceError(f"{where}: finish_reason '{self.finish_reason}' is none of {', '.join(_FINISH)}")
        if set(self.writer) - {0, 1}:
            raise TraceError(f"{where}: writer holds {sorted(set(self.writer))}; 0 is the SLM, 1 the LLM")
        for name, values in {"writer": self.writer, **self.columns}.items():
            if name != "writer" and name not in COLUMNS:
                raise TraceError(f"{where}: unknown column '{name}'; add it to navtoken.trace.COLUMNS")
            if len(values) != num_tokens:
                raise TraceError(f"{where}: column '{name}' has {len(values)} values for {num_tokens} tokens")


class TraceWriter:
    """Writes traces to a folder, shard by shard; opened again on the same folder it goes on where it stopped.

    A shard appears whole or not at all. Leaving the `with` block, also by an exception or Ctrl-C, writes what is
    buffered. One writer at a time per folder.
    """

    def __init__(
        self,
        folder: str | Path,
        provenance: dict[str, Any],
        shard_rows: int = 256,
        fixed: Sequence[str] = (),
    ) -> None:
        """`fixed` names arguments (of `provenance["arguments"]`) that must equal those of the shards already there.

        Fingerprints always must. Raises `TraceError` where one differs, `TraceSchemaError` for foreign shards.
        """
        if shard_rows < 1:
            raise ValueError(f"shard_rows {shard_rows} is not positive")
        self.folder = Path(folder)
        self._provenance = provenance
        self._shard_rows = shard_rows
        self._buffer: list[Trace] = []
        self._buffered_bytes = 0
        self._done: set[Key] = set()
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".traces-*.tmp"):
            leftover.unlink()
        shards = sorted(self.folder.glob(_PATTERN))
        for path in shards:
            with open_shard(path) as file:
                self._refuse_other_run(path, _provenance_of(file), fixed)
                self._done.update(_keys(file))
        self._next_shard = 1 + max((int(path.name.split("-")[1]) for path in shards), default=-1)

    def done(self) -> set[Key]:
        """Keys of the traces on disk."""
        return set(self._done)

    def write(self, trace: Trace) -> None:
        """Take a trace; it is on disk once its shard is full, or after `flush`."""
        trace.check()
        if trace.key in self._done or any(trace.key == other.key for other in self._buffer):
            raise TraceError(f"trace {trace.key} is in {self.folder} already; skip the keys in done()")
        self._buffer.append(trace)
        self._buffered_bytes += sum(getattr(values, "nbytes", 0) for values in trace.columns.values())
        if len(self._buffer) >= self._shard_rows or self._buffered_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the buffered traces as one shard."""
        if not self._buffer:
            return
        # The random part keeps a second writer, which ought not to be, from replacing this one's shard.
        name = f"traces-{self._next_shard:05d}-{uuid.uuid4().hex[:8]}.parquet"
        temporary = self.folder / f".{name}.tmp"
        with temporary.open("wb") as file:
            pq.write_table(_table(self._buffer, self._provenance), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / name)
        self._done.update(trace.key for trace in self._buffer)
        self._next_shard += 1
        self._buffer.clear()
        self._buffered_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def _refuse_other_run(self, path: Path, before: dict[str, Any], fixed: Sequence[str]) -> None:
        old, new = _identity(before, fixed), _identity(self._provenance, fixed)
        for name in new:
            if old[name] != new[name]:
                was, now = _difference(old[name], new[name])
                raise TraceError(
                    f"{path} was written with {name} = {was}, now it is {now}; use another folder"
                )


def read_traces(
    path: str | Path, columns: Sequence[str] | None = None, keep: Callable[[Key], bool] | None = None
) -> Iterator[Trace]:
    """Yield the traces of a shard, or of a folder in the order in which they were written, a few in memory at a time.

    `columns` limits the optional columns that are read; `keep` says by its key whether a trace is wanted, and shards without a
    wanted one cost no more than the reading of their keys. Raises `FileNotFoundError` where there is no shard and
    `TraceSchemaError` for a file that this version does not know.
    """
    for shard in shard_paths(path):
        with open_shard(shard) as file:
            kept = None if keep is None else [keep(key) for key in _keys(file)]
            if kept is not None and not any(kept):
                continue
            wanted = [
                name
                for name in file.schema_arrow.names
                if name not in COLUMNS or columns is None or name in columns
            ]
            start = 0
            for batch in file.iter_batches(batch_size=64, columns=wanted):
                for row in range(batch.num_rows):
                    if kept is None or kept[start + row]:
                        yield _trace(batch, row)
                start += batch.num_rows


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Provenance of a shard, or of the shard that was written last in a folder."""
    with open_shard(shard_paths(path)[-1]) as file:
        return _provenance_of(file)


def shard_paths(path: str | Path) -> list[Path]:
    """Files of a folder's traces in the order in which they were written, or the one file named.

    Raises `FileNotFoundError` where there is none.
    """
    path = Path(path)
    shards = sorted(path.glob(_PATTERN)) if path.is_dir() else [path] if path.is_file() else []
    if not shards:
        raise FileNotFoundError(f"no traces at {path}: name a shard, or a folder with {_PATTERN}")
    return shards


def open_shard(path: Path) -> pq.ParquetFile:
    """Open a shard. Raises `TraceSchemaError` for what is no Parquet file, or of a schema that this version does not know."""
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise TraceSchemaError(
            f"{path} is no Parquet file ({' '.join(str(error).split())}); name a shard of traces, or their folder"
        ) from error
    if problem := _unreadable(file.schema_arrow):
        file.close()
        raise TraceSchemaError(
            f"{path} has {problem}; this navtoken reads version {SCHEMA_VERSION}: read it with the version of navtoken that "
            "wrote it, or write it again"
        )
    return file


def _unreadable(schema: pa.Schema) -> str | None:
    version = (schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if version != str(SCHEMA_VERSION):
        return f"schema version {version}"
    if unknown := [name for name in schema.names if name not in COLUMNS and name not in _CORE.names]:
        return f"unknown columns {unknown}"
    lacking = [name for name in _CORE.names if name not in schema.names]
    return f"no column '{lacking[0]}', which every trace has" if lacking else None


def _provenance_of(file: pq.ParquetFile) -> dict[str, Any]:
    return json.loads(file.schema_arrow.metadata[_PROVENANCE_KEY])


def _identity(record: dict[str, Any], fixed: Sequence[str]) -> dict[str, Any]:
    arguments = record.get("arguments", {})
    # Through JSON, as what is on disk went: tuples become lists there, paths text.
    known = json.loads(
        _json({"fingerprints": record.get("fingerprints"), **{name: arguments.get(name) for name in fixed}})
    )
    # An option that is off is as good as one that did not exist when the folder was written.
    return {name: _without_off(value) if isinstance(value, dict) else value for name, value in known.items()}


def _without_off(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value}


def _difference(old: Any, new: Any) -> tuple[Any, Any]:
    """Two unequal values for an error: of options only those that differ, of fingerprints only the beginning."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return old, new
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    first, second = ({name: _short(each[name]) for name in names if name in each} for each in (old, new))
    return first or "nothing of it", second or "nothing of it"


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value


def _keys(file: pq.ParquetFile) -> Iterator[Key]:
    for row in file.read(columns=list(_KEY)).to_pylist():
        yield row["policy"], row["task"], row["problem_id"], row["sample"]


def _json(value: Any) -> str:
    # Numpy's numbers stay numbers; paths and the like become text.
    return json.dumps(
        value, default=lambda other: other.item() if isinstance(other, np.generic) else str(other)
    )


def _table(traces: list[Trace], record: dict[str, Any]) -> pa.Table:
    arrays = {}
    for name, kind in zip(_CORE.names, _CORE.types, strict=True):
        values = [getattr(trace, name) for trace in traces]
        arrays[name] = pa.array([_json(value) for value in values] if name in _JSON else values, kind)
    for name, column in COLUMNS.items():
        if any(name in trace.columns for trace in traces):
            arrays[name] = _arrow([trace.columns.get(name) for trace in traces], column)
    metadata = {_VERSION_KEY: str(SCHEMA_VERSION).encode(), _PROVENANCE_KEY: _json(record).encode()}
    return pa.table(arrays).replace_schema_metadata(metadata)


def _arrow(columns: Sequence[Any], column: Column) -> pa.Array:
    """A column's values of several traces, None where a trace lacks it."""
    if not column.is_row:
        cells = [None if values is None else np.asarray(values, dtype=column.dtype) for values in columns]
        return pa.array(cells, pa.list_(column.arrow))
    # Built flat: as lists of small arrays, a router's features took most of the time of labelling.
    missing = [values is None for values in columns]
    tables = [
        np.zeros((0, 0), column.dtype) if values is None else _table_of(values, column) for values in columns
    ]
    widths = np.repeat([table.shape[1] for table in tables], [len(table) for table in tables])
    flat = pa.array(np.concatenate([table.ravel() for table in tables]), column.arrow.value_type)
    rows = pa.ListArray.from_arrays(_offsets(widths), flat)
    return pa.ListArray.from_arrays(_offsets([len(table) for table in tables]), rows, mask=pa.array(missing))


def _table_of(values: Any, column: Column) -> np.ndarray:
    """(tokens, widest row). A token whose alternatives were not computed comes with a shorter row, often an empty one."""
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return values.astype(column.dtype, copy=False)
    width = max(map(len, values), default=0)
    table = np.full((len(values), width), column.missing, dtype=column.dtype)
    for row, cells in zip(table, values, strict=True):
        row[: len(cells)] = cells
    return table


def _offsets(sizes: Sequence[int] | np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())


def _trace(batch: pa.RecordBatch, row: int) -> Trace:
    core: dict[str, Any] = {}
    columns: dict[str, np.ndarray] = {}
    for name in batch.schema.names:
        cell = batch.column(name)[row]
        if name not in COLUMNS:
            core[name] = json.loads(cell.as_py()) if name in _JSON else cell.as_py()
        elif cell.is_valid:
            columns[name] = _array(cell.values, COLUMNS[name])
    return Trace(**{f.name: core[f.name] for f in fields(Trace) if f.name in core}, columns=columns)


def _array(values: pa.Array, column: Column) -> np.ndarray:
    if not column.is_row:
        return values.to_numpy(zero_copy_only=False)
    flat = values.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(values), len(flat) // max(1, len(values)))
