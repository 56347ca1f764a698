"""Columns come as they were written, whatever the shards; what cannot be read is refused before anything is."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from navtoken.analysis import columns as module
from navtoken.analysis.columns import (
    EmptyTracesError,
    MissingColumnError,
    num_responses,
    optional_columns,
    stream_columns,
)
from navtoken.trace import TraceError, TraceSchemaError, read_traces
from small_traces import random_traces, small_trace, written


@pytest.mark.parametrize("batch_rows", [None, 1, 3, 100])
@pytest.mark.parametrize("shard_rows", [1, 4, 50])
def test_columns_are_those_of_the_traces(tmp_path: Path, batch_rows: int | None, shard_rows: int) -> None:
    traces = random_traces(11)
    written(tmp_path, traces, shard_rows)
    wanted = ("response_ids", "entropy_llm", "writer", "correct", "task", "prompt_ids", "sampling")
    batches = list(stream_columns(tmp_path, wanted, batch_rows))
    for name in ("response_ids", "writer"):
        ours = np.concatenate([batch[name] for batch in batches])
        assert ours.tolist() == [value for trace in traces for value in getattr(trace, name)]
    entropy = np.concatenate([batch["entropy_llm"] for batch in batches])
    np.testing.assert_array_equal(entropy, np.concatenate([trace.columns["entropy_llm"] for trace in traces]))
    assert entropy.dtype == np.float32
    for name in ("correct", "task", "prompt_ids", "sampling"):
        assert [v for batch in batches for v in batch[name]] == [getattr(trace, name) for trace in traces]
    assert np.concatenate([batch.lengths for batch in batches]).tolist() == [
        len(t.response_ids) for t in traces
    ]


def test_places_within_a_batch(tmp_path: Path) -> None:
    written(tmp_path, [small_trace([5, 6], 0), small_trace([], 1), small_trace([7, 8, 9], 2)])
    (batch,) = stream_columns(tmp_path, ["response_ids"])
    assert batch.starts.tolist() == [0, 2, 2]
    assert batch.positions().tolist() == [0, 1, 0, 1, 2]
    assert batch.responses().tolist() == [0, 0, 2, 2, 2]
    assert batch.num_tokens == 5


def test_batches_hold_about_so_many_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, [small_trace([1] * 10, sample) for sample in range(20)], shard_rows=20)
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 50)
    assert [batch.num_tokens for batch in stream_columns(tmp_path, ["writer"])] == [50] * 4


def test_what_was_not_computed_is_missing(tmp_path: Path) -> None:
    traces = [
        small_trace([3], 1),
        small_trace([1, 2], 0, entropy_llm=[0.5, float("nan")]),
        small_trace([4], 2, entropy_llm=[0.25], label=[2]),
    ]
    written(tmp_path, traces, shard_rows=2)
    batches = list(stream_columns(tmp_path, ["entropy_llm", "label"]))
    assert np.concatenate([b["entropy_llm"] for b in batches]).tolist() == pytest.approx(
        [np.nan, 0.5, np.nan, 0.25], nan_ok=True
    )
    assert np.concatenate([b["label"] for b in batches]).tolist() == [-1, -1, -1, 2]
    assert optional_columns(tmp_path) == {"entropy_llm", "label"}


def test_only_what_is_wanted_and_every_row_is_told(tmp_path: Path) -> None:
    written(tmp_path, random_traces(10))
    told: list[int] = []
    batches = stream_columns(tmp_path, ["task"], where={"task": ["knights"], "policy": []}, tell=told.append)
    assert [task for batch in batches for task in batch["task"]] == ["knights"] * 5
    assert sum(told) == num_responses(tmp_path) == 10
    with pytest.raises(EmptyTracesError, match="no trace has task gsm8k; there are countdown, knights"):
        list(stream_columns(tmp_path, ["task"], where={"task": ["gsm8k"]}))


def test_one_shard_alone(tmp_path: Path) -> None:
    written(tmp_path, random_traces(9))
    first = min(tmp_path.iterdir())
    assert sum(len(batch.lengths) for batch in stream_columns(first, ["task"])) == 4


def test_refusals_come_before_the_first_batch(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no traces at"):
        stream_columns(tmp_path, ["task"])
    written(tmp_path / "plain", [small_trace([1])])
    with pytest.raises(MissingColumnError, match="no column 'entropy_slm'.*navtoken score"):
        stream_columns(tmp_path / "plain", ["entropy_slm"])
    with pytest.raises(ValueError, match="no column is called 'entropi'"):
        stream_columns(tmp_path / "plain", ["entropi"])
    with pytest.raises(ValueError, match="'top_ids' has a row of values"):
        stream_columns(tmp_path / "plain", ["top_ids"])
    with pytest.raises(ValueError, match="batch_rows 0"):
        stream_columns(tmp_path / "plain", ["task"], batch_rows=0)
    assert [b.num_tokens for b in stream_columns(tmp_path / "plain", ["entropy_slm"], missing_ok=True)] == [1]


def rewritten(folder: Path, change: object) -> Path:
    """The one shard of `folder` as `change(table)` makes it."""
    (path,) = folder.iterdir()
    pq.write_table(change(pq.read_table(path)), path)  # type: ignore[operator]
    return folder


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.parquet").write_text("no Parquet at all, but long enough to have a footer")
    with pytest.raises(TraceSchemaError, match="notes.parquet is no Parquet file"):
        stream_columns(tmp_path / "notes.parquet", ["task"])
    pq.write_table(pa.table({"task": ["a"]}), tmp_path / "foreign.parquet")
    for read in (lambda path: stream_columns(path, ["task"]), lambda path: next(read_traces(path))):
        with pytest.raises(TraceSchemaError, match="schema version none"):
            read(tmp_path / "foreign.parquet")
    lacking = rewritten(
        written(tmp_path / "a", [small_trace([1])]), lambda table: table.drop(["response_ids"])
    )
    with pytest.raises(TraceSchemaError, match="no column 'response_ids'"):
        stream_columns(lacking, ["task"])


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    empty = rewritten(written(tmp_path, [small_trace([1])]), lambda table: table.slice(0, 0))
    with pytest.raises(EmptyTracesError, match="no response"):
        stream_columns(empty, ["task"])


def test_a_column_of_another_length_is_refused(tmp_path: Path) -> None:
    def shorter(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("entropy_llm")
        return table.set_column(index, "entropy_llm", pa.array([[0.5]], pa.list_(pa.float32())))

    folder = rewritten(written(tmp_path, [small_trace([1, 2], entropy_llm=[0.1, 0.2])]), shorter)
    with pytest.raises(TraceError, match="'entropy_llm' has 1 values for 2 tokens"):
        list(stream_columns(folder, ["entropy_llm"]))
