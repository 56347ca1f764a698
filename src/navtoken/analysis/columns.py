"""Columns of traces as flat arrays, batch by batch: what an analysis of any number of shards stands on.

Making a `Trace` of every response costs many times the arithmetic on its tokens, so nothing here does. One batch of one
shard is in memory at a time, cut so that long responses do not make it larger.

Shapes: R responses of a batch, N their tokens, one response after the other.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from navtoken.trace import COLUMNS, Key, TraceError, open_shard, shard_paths

__all__ = [
    "KEY_FIELDS",
    "EmptyTracesError",
    "MissingColumnError",
    "Paths",
    "TokenBatch",
    "Where",
    "num_responses",
    "optional_columns",
    "paths_of",
    "stream_columns",
]

TOKENS_PER_BATCH = 2**19
"""About so many tokens are in memory at a time: 2 MiB a column."""

Paths = str | Path | Sequence[Path]
"""A shard, a folder of shards, or a list of shards."""

Where = Mapping[str, Collection[Any]]
"""Fields of a response and the values that are wanted of them; an empty collection wants all. `key` stands for the four
fields of `KEY_FIELDS` together, and wants what it has, even if that is nothing."""

KEY_FIELDS = ("policy", "task", "problem_id", "sample")
"""Which response it is: the parts of a `Key`."""

_CORE_TOKENS: dict[str, np.dtype[Any]] = {"response_ids": np.dtype(np.int32), "writer": np.dtype(np.int8)}
"""Per-token columns that every trace has."""
_ROWS = (
    "task", "problem_id", "sample", "prompt", "prompt_ids", "text", "finish_reason", "correct", "reward", "seed", "policy",
    "sampling", "ledger",
)  # fmt: skip
_JSON = ("sampling", "ledger")


class MissingColumnError(TraceError):
    """A column that none of the traces has."""


class EmptyTracesError(TraceError):
    """Traces without a response, or without one that is wanted."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Some responses: `batch["entropy_llm"]` is (N,), `batch["correct"]` a list of R."""

    lengths: NDArray[np.int64]
    """(R,) tokens of each response."""
    tokens: dict[str, NDArray[Any]]
    """(N,) per-token columns by name; NaN or -1 where a value was not computed."""
    rows: dict[str, list[Any]]
    """Fields of the responses by name, R values each; None where there is none."""

    def __getitem__(self, name: str) -> Any:
        return self.tokens[name] if name in self.tokens else self.rows[name]

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def starts(self) -> NDArray[np.int64]:
        """(R,) where each response begins among the N tokens."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def keys(self) -> list[Key]:
        """R keys, where `KEY_FIELDS` were asked for."""
        return list(zip(*(self.rows[name] for name in KEY_FIELDS), strict=True))

    def spread(self, per_response: NDArray[Any]) -> NDArray[Any]:
        """(R,) values of responses -> (N,) the same value at each of their tokens."""
        return np.repeat(per_response, self.lengths)

    def responses(self) -> NDArray[np.int64]:
        """(N,) which response of the batch a token belongs to."""
        return self.spread(np.arange(len(self.lengths)))

    def positions(self) -> NDArray[np.int64]:
        """(N,) index of a token within its response."""
        return np.arange(self.num_tokens) - self.spread(self.starts)


def stream_columns(
    path: Paths,
    columns: Sequence[str],
    batch_rows: int | None = None,
    where: Where | None = None,
    missing_ok: bool = False,
    tell: Callable[[int], object] = lambda _: None,
) -> Iterator[TokenBatch]:
    """Read `columns`, per-token ones and fields of the response alike, a few responses at a time.

    `batch_rows` is how many; None takes some half a million tokens. `where` keeps the responses whose fields hold wanted
    values; `tell` hears of every batch how many responses were read. A column that some responses lack is NaN or -1 there;
    one that no shard has is refused unless `missing_ok`.

    Raises before the first batch: `FileNotFoundError` where there is no shard, `TraceSchemaError` for a file that this
    version does not know, `MissingColumnError`, `EmptyTracesError`; and that last one at the end where nothing was wanted.
    """
    if batch_rows is not None and batch_rows < 1:
        raise ValueError(f"batch_rows {batch_rows} is not positive")
    names = list(dict.fromkeys(columns))
    _check_names(names)
    shards = _checked_shards(path, () if missing_ok else names)
    wanted = {k: set(v) for k, v in (where or {}).items() if v or k == "key"}
    return _stream(shards, names, batch_rows, wanted, tell)


def num_responses(path: Paths) -> int:
    """Responses in all shards, wanted or not."""
    return sum(_num_rows(shard) for shard in paths_of(path))


def optional_columns(path: Paths) -> set[str]:
    """Registered optional columns that at least one shard has."""
    known: set[str] = set()
    for shard in paths_of(path):
        with open_shard(shard) as file:
            known.update(COLUMNS.keys() & set(file.schema_arrow.names))
    return known


def paths_of(path: Paths) -> list[Path]:
    """The shards that are there now. Raises `FileNotFoundError` where there is none."""
    return shard_paths(path) if isinstance(path, str | Path) else list(path)


def _num_rows(shard: Path) -> int:
    with open_shard(shard) as file:
        return int(file.metadata.num_rows)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name in COLUMNS and COLUMNS[name].is_row:
            raise ValueError(
                f"column '{name}' has a row of values per token; read it with navtoken.trace.read_traces"
            )
        if name not in COLUMNS and name not in _CORE_TOKENS and name not in _ROWS:
            raise ValueError(f"no column is called '{name}'; add it to navtoken.trace.COLUMNS")


def _checked_shards(path: Paths, wanted: Sequence[str]) -> list[Path]:
    """The shards that hold responses; everything that their schemas can refuse is refused here."""
    shards, known, rows = [], set[str](), 0
    for shard in paths_of(path):
        with open_shard(shard) as file:
            known.update(file.schema_arrow.names)
            rows += file.metadata.num_rows
            shards += [shard] if file.metadata.num_rows else []
    if not rows:
        raise EmptyTracesError(f"the traces at {path} hold no response; write some with `navtoken generate`")
    if lacking := [name for name in wanted if name not in known]:
        there = ", ".join(sorted(known & COLUMNS.keys())) or "no optional column"
        raise MissingColumnError(
            f"the traces at {path} have no column '{lacking[0]}', only {there}; `navtoken score` adds entropies and "
            "log-probabilities"
        )
    return shards


def _stream(
    shards: Sequence[Path],
    names: Sequence[str],
    batch_rows: int | None,
    where: Mapping[str, set[Any]],
    tell: Callable[[int], object],
) -> Iterator[TokenBatch]:
    found = False
    seen: dict[str, set[Any]] = {name: set() for name in where}
    for shard in shards:
        with open_shard(shard) as file:
            lengths_from = "response_ids" if "response_ids" in names else "writer"
            known = set(file.schema_arrow.names)
            filters = [each for name in where for each in (KEY_FIELDS if name == "key" else (name,))]
            reading = [name for name in dict.fromkeys((*names, *filters, lengths_from)) if name in known]
            for batch in file.iter_batches(batch_rows or _rows_per_batch(file), columns=reading):
                num_read = batch.num_rows
                batch = _wanted(batch, where, seen)
                if batch.num_rows:
                    found = True
                    yield _token_batch(batch, names, lengths_from, shard)
                tell(num_read)
    if not found:
        raise EmptyTracesError(_nothing_wanted(where, seen))


def _rows_per_batch(file: pq.ParquetFile) -> int:
    """Rows with about `TOKENS_PER_BATCH` tokens, going by the shard's mean."""
    meta = file.metadata
    if not meta.num_row_groups:
        return 1
    names = [meta.row_group(0).column(index).path_in_schema for index in range(meta.num_columns)]
    index = next(i for i, name in enumerate(names) if name.split(".")[0] == "response_ids")
    tokens = sum(meta.row_group(group).column(index).num_values for group in range(meta.num_row_groups))
    return max(1, TOKENS_PER_BATCH * meta.num_rows // max(1, tokens))


def _wanted(
    batch: pa.RecordBatch, where: Mapping[str, set[Any]], seen: dict[str, set[Any]]
) -> pa.RecordBatch:
    for name, values in where.items():
        if name == "key":
            keys = zip(*(batch.column(each).to_pylist() for each in KEY_FIELDS), strict=True)
            batch = batch.filter(pa.array([key in values for key in keys], pa.bool_()))
            continue
        column = batch.column(name)
        if len(seen[name]) < 8:
            seen[name].update(pc.unique(column).to_pylist())
        batch = batch.filter(pc.is_in(column, value_set=pa.array(list(values), column.type)))
    return batch


def _nothing_wanted(where: Mapping[str, set[Any]], seen: Mapping[str, set[Any]]) -> str:
    simple = [name for name in where if name != "key"]
    name = next((name for name in simple if not where[name] & seen[name]), None)
    if name is None and ("key" in where or not simple):
        return "none of the responses that are asked for is there; generate them, or ask for others"
    name = name or simple[0]
    asked = ", ".join(sorted(map(str, where[name]))[:4])
    there = ", ".join(sorted(map(str, seen[name]))[:8])
    return f"no trace has {name} {asked}; there are {there or 'none with the other things asked for'}"


def _token_batch(batch: pa.RecordBatch, names: Sequence[str], lengths_from: str, shard: Path) -> TokenBatch:
    lengths = _lengths(batch.column(lengths_from))
    tokens: dict[str, NDArray[Any]] = {}
    rows: dict[str, list[Any]] = {}
    for name in names:
        if name in _ROWS:
            values = batch.column(name).to_pylist()
            rows[name] = [json.loads(value) for value in values] if name in _JSON else values
        elif name in batch.schema.names:
            tokens[name] = _flat(batch.column(name), name, lengths, shard)
        else:
            tokens[name] = np.full(int(lengths.sum()), _missing(name), _dtype(name))
    return TokenBatch(lengths, tokens, rows)


def _lengths(column: pa.ListArray) -> NDArray[np.int64]:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _flat(column: pa.ListArray, name: str, lengths: NDArray[np.int64], shard: Path) -> NDArray[Any]:
    """(R lists) -> (N,); responses without the column get its word for "not computed"."""
    own = _lengths(column)
    computed = column.is_valid().to_numpy(zero_copy_only=False)
    if (wrong := np.flatnonzero(computed & (own != lengths))).size:
        row = int(wrong[0])
        raise TraceError(
            f"{shard}: a column '{name}' has {own[row]} values for {lengths[row]} tokens; write it again"
        )
    values = column.flatten()
    if values.null_count:
        values = pc.fill_null(values, _missing(name))
    flat = values.to_numpy(zero_copy_only=False)
    if computed.all():
        return flat
    whole = np.full(int(lengths.sum()), _missing(name), _dtype(name))
    whole[np.repeat(computed, lengths)] = flat
    return whole


def _missing(name: str) -> float:
    return COLUMNS[name].missing if name in COLUMNS else -1


def _dtype(name: str) -> np.dtype[Any]:
    return _CORE_TOKENS[name] if name in _CORE_TOKENS else COLUMNS[name].dtype
