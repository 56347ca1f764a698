"""Traces survive the way to disk and back, crashes included."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navtoken import trace as module
from navtoken.provenance import git_revision, provenance
from navtoken.trace import (
    COLUMNS,
    Trace,
    TraceError,
    TraceSchemaError,
    TraceWriter,
    read_provenance,
    read_traces,
    shard_paths,
)

RECORD = provenance({"slm": "aa", "llm": "bb"}, seed=0)


def make(sample: int = 0, num_tokens: int = 3, **changes) -> Trace:
    """A trace with every column filled."""
    columns = {}
    for name, column in COLUMNS.items():
        shape = (num_tokens, 4) if column.is_row else (num_tokens,)
        columns[name] = np.arange(np.prod(shape)).reshape(shape).astype(column.dtype)
    return replace(
        Trace(
            task="countdown",
            problem_id="p1",
            sample=sample,
            prompt="Numbers 3 7 12 target 33 :",
            prompt_ids=[5, 6],
            response_ids=list(range(num_tokens)),
            text="ünï 字",
            finish_reason="stop",
            seed=11,
            policy="entropy:0.67",
            writer=[position % 2 for position in range(num_tokens)],
            correct=True,
            reward=0.5,
            sampling={"temperature": 0.6, "top_k": 20, "stop": ["\n\n"]},
            ledger={"slm_tokens": 3.0, "llm_passes": 1.0},
            columns=columns,
        ),
        **changes,
    )


def assert_same(ours: Trace, theirs: Trace) -> None:
    assert replace(ours, columns={}) == replace(theirs, columns={})
    assert ours.columns.keys() == theirs.columns.keys()
    for name, values in theirs.columns.items():
        assert ours.columns[name].dtype == COLUMNS[name].dtype
        np.testing.assert_array_equal(ours.columns[name], values)


def write(folder: Path, traces: list[Trace], **options) -> None:
    with TraceWriter(folder, RECORD, **options) as writer:
        for trace in traces:
            writer.write(trace)


def test_a_trace_comes_back_as_it_was_written(tmp_path):
    write(tmp_path, [make()])
    (back,) = read_traces(tmp_path)
    assert_same(back, make())


def test_what_was_not_computed_stays_so(tmp_path):
    without = make(1, columns={}, correct=None, reward=None)
    holes = make(2, columns={"entropy_llm": [0.1, float("nan"), 0.3], "draft_ids": [4, -1, 5]})
    write(tmp_path, [make(0), without, holes])
    back = list(read_traces(tmp_path))
    assert_same(back[1], without)
    assert np.isnan(back[2].columns["entropy_llm"]).tolist() == [False, True, False]
    assert back[2].columns["draft_ids"].tolist() == [4, -1, 5]
    assert back[2].columns.keys() == {"entropy_llm", "draft_ids"}


def test_alternatives_of_some_tokens_only(tmp_path):
    ragged = {"top_ids": [[7, 8], [], [9]], "top_logprobs": [[-0.5, -2.0], [], [-1.0]]}
    write(tmp_path, [make(0, columns=ragged), make(1, columns={"top_ids": [[], [], []]})])
    first, second = read_traces(tmp_path)
    assert first.columns["top_ids"].tolist() == [[7, 8], [-1, -1], [9, -1]]
    assert np.isnan(first.columns["top_logprobs"]).tolist() == [[False, False], [True, True], [False, True]]
    assert second.columns["top_ids"].shape == (3, 0)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(1, 4))
def test_lengths_and_shards_make_no_difference(tmp_path_factory, lengths, shard_rows):
    folder = tmp_path_factory.mktemp("traces")
    traces = [make(sample, length) for sample, length in enumerate(lengths)]
    write(folder, traces, shard_rows=shard_rows)
    assert len(list(folder.iterdir())) == -(-len(traces) // shard_rows)
    for ours, theirs in zip(read_traces(folder), traces, strict=True):
        if not theirs.response_ids:
            # How many alternatives each of no tokens has is not on disk.
            rows = {name: theirs.columns[name][:, :0] for name in COLUMNS if COLUMNS[name].is_row}
            theirs = replace(theirs, columns={**theirs.columns, **rows})
        assert_same(ours, theirs)


def test_only_the_wanted_columns_are_read(tmp_path):
    write(tmp_path, [make()])
    (back,) = read_traces(tmp_path, columns=["entropy_slm"])
    assert back.columns.keys() == {"entropy_slm"}
    assert back.response_ids == [0, 1, 2]


def test_numbers_of_numpy_stay_numbers(tmp_path):
    write(tmp_path, [make(ledger={"flops": np.float32(2.5)})])
    assert next(read_traces(tmp_path)).ledger == {"flops": 2.5}


CRASH = """
import os, sys
sys.path.insert(0, sys.argv[2])
from test_trace import RECORD, TraceWriter, make
writer = TraceWriter(sys.argv[1], RECORD, shard_rows=3)
for sample in range(8):
    writer.write(make(sample))
(writer.folder / ".traces-00002-dead.parquet.tmp").write_bytes(b"PAR1 half a shard")
os._exit(9)
"""


def test_a_killed_run_goes_on_without_losing_or_repeating_work(tmp_path):
    here = str(Path(__file__).parent)
    assert subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), here], check=False).returncode == 9
    assert [trace.sample for trace in read_traces(tmp_path)] == [0, 1, 2, 3, 4, 5]

    with TraceWriter(tmp_path, RECORD, shard_rows=3) as writer:
        assert writer.done() == {make(sample).key for sample in range(6)}
        for trace in (make(sample) for sample in range(8)):
            if trace.key not in writer.done():
                writer.write(trace)
    assert [trace.sample for trace in read_traces(tmp_path)] == list(range(8))
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_block_keeps_what_it_has(tmp_path):
    with pytest.raises(KeyboardInterrupt), TraceWriter(tmp_path, RECORD) as writer:
        writer.write(make())
        assert writer.done() == set()
        raise KeyboardInterrupt
    assert len(list(read_traces(tmp_path))) == 1
    assert writer.done() == {make().key}


def test_a_failed_write_leaves_no_shard(tmp_path, monkeypatch):
    writer = TraceWriter(tmp_path, RECORD)
    writer.write(make())
    with monkeypatch.context() as broken:
        broken.setattr(module.os, "fsync", lambda _file: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            writer.flush()
    assert not list(tmp_path.glob("traces-*"))
    writer.flush()
    assert len(list(read_traces(tmp_path))) == 1


def test_the_same_response_is_not_written_twice(tmp_path):
    write(tmp_path, [make()])
    with TraceWriter(tmp_path, RECORD) as writer:
        with pytest.raises(TraceError, match="already; skip the keys in done"):
            writer.write(make())
        writer.write(make(1))
        with pytest.raises(TraceError, match="already"):
            writer.write(make(1))


@pytest.mark.parametrize(
    ("other", "fixed", "message"),
    [
        (provenance({"slm": "aa", "llm": "cc"}, seed=0), (), "fingerprints = .*'llm': 'bb'.*another folder"),
        (provenance({"slm": "aa", "llm": "bb"}, seed=1), ("seed",), "seed = 0, now it is 1"),
    ],
)
def test_another_run_may_not_be_mixed_in(tmp_path, other, fixed, message):
    write(tmp_path, [make()])
    with pytest.raises(TraceError, match=message):
        TraceWriter(tmp_path, other, fixed=fixed)


def test_arguments_that_are_not_fixed_may_change(tmp_path):
    write(tmp_path, [make()])
    TraceWriter(tmp_path, provenance({"slm": "aa", "llm": "bb"}, seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"writer": [0]}, "'writer' has 1 values for 3 tokens"),
        ({"writer": [0, 1, 2]}, "0 is the SLM, 1 the LLM"),
        ({"columns": {"entropy_slm": [0.1]}}, "'entropy_slm' has 1 values for 3 tokens"),
        ({"columns": {"surprise": [1, 2, 3]}}, "unknown column 'surprise'; add it to navtoken.trace.COLUMNS"),
        ({"finish_reason": "eos"}, "'eos' is none of stop, length, abort"),
    ],
)
def test_traces_that_do_not_hold_together_are_refused(tmp_path, changes, message):
    with pytest.raises(TraceError, match=message):
        TraceWriter(tmp_path, RECORD).write(make(**changes))


def test_files_of_another_version_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as future:
        future.setattr(module, "SCHEMA_VERSION", 99)
        write(tmp_path, [make()])
    for act in (lambda: list(read_traces(tmp_path)), lambda: read_provenance(tmp_path)):
        with pytest.raises(TraceSchemaError, match="schema version 99.*reads version 1"):
            act()
    with pytest.raises(TraceSchemaError):
        TraceWriter(tmp_path, RECORD)


def test_foreign_files_and_unknown_columns_are_refused(tmp_path, monkeypatch):
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"task": ["x"]}), foreign)
    with pytest.raises(TraceSchemaError, match="schema version none"):
        next(read_traces(foreign))
    with monkeypatch.context() as future:
        future.setitem(COLUMNS, "surprise", COLUMNS["entropy_slm"])
        write(tmp_path / "new", [make()])
    with pytest.raises(TraceSchemaError, match=r"columns \['surprise'\]"):
        next(read_traces(tmp_path / "new"))


def test_a_folder_without_traces_says_so(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="no traces at"):
            next(read_traces(path))


@dataclass(frozen=True)
class Options:
    temperature: float = 0.6
    out: Path = Path("out")


def test_provenance_is_in_every_shard(tmp_path):
    record = provenance({"slm": "aa"}, options=Options(), seed=7)
    with TraceWriter(tmp_path, record, shard_rows=1) as writer:
        writer.write(make(0))
        writer.write(make(1))
    for path in (tmp_path, *tmp_path.glob("*.parquet")):
        back = read_provenance(path)
        assert back["fingerprints"] == {"slm": "aa"}
        assert back["arguments"] == {"options": {"temperature": 0.6, "out": "out"}, "seed": 7}
        assert back["versions"]["torch"] and back["versions"]["navtoken"] and back["created"]
    # Resuming compares what is on disk with what is in memory, where paths are not yet text.
    TraceWriter(tmp_path, record, fixed=("options",))


def test_provenance_can_be_read_without_navtoken(tmp_path):
    write(tmp_path, [make()])
    (shard,) = tmp_path.glob("*.parquet")
    metadata = pq.read_schema(shard).metadata
    assert json.loads(metadata[b"navtoken.provenance"]) == RECORD
    assert metadata[b"navtoken.schema_version"] == b"1"


def test_revision_is_that_of_a_repository_that_tracks_the_folder(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("a = 1\n")
    assert git_revision(tmp_path / "package") is None
    git("init", "-q")
    assert git_revision(tmp_path / "package") is None
    git("add", ".")
    git("commit", "-q", "-m", "x", "--no-verify")
    revision = git_revision(tmp_path / "package")
    assert revision is not None and len(revision) == 40
    (tmp_path / "package" / "a.py").write_text("a = 2\n")
    assert git_revision(tmp_path / "package") == revision + "-dirty"
    (tmp_path / "installed").mkdir()
    assert git_revision(tmp_path / "installed") is None


def test_wide_columns_come_back_as_they_went_and_fill_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    traces = []
    for sample, length in enumerate((3, 1, 5, 4)):
        trace = make(sample, length)
        trace.columns = {
            "slm_hidden": rng.normal(size=(length, 7)).astype(np.float16),
            "slm_top_ids": rng.integers(0, 9, (length, 2 + sample)).astype(np.int32),
            # Of another width at every token, and of none at all.
            "continuation_ids": [list(range(position % 3)) for position in range(length)],
        }
        traces.append(trace)
    del traces[2].columns["slm_hidden"]
    monkeypatch.setattr("navtoken.trace.SHARD_BYTES", 100)
    with TraceWriter(tmp_path, {}) as writer:
        for trace in traces:
            writer.write(trace)
    assert len(shard_paths(tmp_path)) > 1
    for before, after in zip(traces, read_traces(tmp_path), strict=True):
        assert ("slm_hidden" in after.columns) == ("slm_hidden" in before.columns)
        for name in ("slm_hidden", "slm_top_ids"):
            if name in before.columns:
                np.testing.assert_array_equal(after.columns[name], before.columns[name])
                assert after.columns[name].dtype == before.columns[name].dtype
        for row, own in zip(
            after.columns["continuation_ids"], before.columns["continuation_ids"], strict=True
        ):
            assert row[row >= 0].tolist() == own
