"""The analysis is that of all tokens in memory at once, whatever the shards."""

import json
from pathlib import Path

import numpy as np
import pytest

from navtoken.analysis.analyze import BIN_WIDTH, PatternError, PatternOptions, analyze_traces, entropy_column
from navtoken.analysis.columns import EmptyTracesError, MissingColumnError
from navtoken.trace import Trace
from small_traces import random_traces, small_trace, written


def pool(traces: list[Trace]) -> np.ndarray:
    whole = np.concatenate([trace.columns["entropy_llm"] for trace in traces]).astype(np.float64)
    return whole[~np.isnan(whole)]


@pytest.mark.parametrize("shard_rows", [3, 100])
def test_numbers_are_those_of_the_pool(tmp_path: Path, shard_rows: int) -> None:
    traces = random_traces(60)
    traces[5].columns["entropy_llm"][:4] = np.nan
    written(tmp_path, traces, shard_rows)
    told: list[int] = []
    analysis = analyze_traces(tmp_path, PatternOptions(percentile=75, certain=0.02), tell=told.append)
    whole = pool(traces)
    assert (analysis.column, analysis.num_responses) == ("entropy_llm", 60)
    assert (analysis.num_tokens, analysis.num_missing) == (len(whole), 4)
    assert analysis.whole.percentile == pytest.approx(np.percentile(whole, 75), rel=1e-12)
    assert analysis.whole.certain_share == (whole < 0.02).mean()
    assert analysis.whole.mean == pytest.approx(whole.mean())
    counts, _ = np.histogram(whole, analysis.whole.edges)
    assert analysis.whole.counts == tuple(counts)
    assert sum(analysis.whole.counts) == len(whole)
    assert sum(told) == 2 * 60
    assert any("4 tokens" in note for note in analysis.notes)
    json.dumps(analysis.as_json(), allow_nan=False)


def test_groups_are_analysed_on_their_own(tmp_path: Path) -> None:
    traces = random_traces(60)
    analysis = analyze_traces(written(tmp_path, traces))
    assert list(analysis.groups) == ["all", "right", "wrong", "unjudged", "task countdown", "task knights"]
    for name, own in (
        ("wrong", [trace for trace in traces if trace.correct is False]),
        ("task knights", [trace for trace in traces if trace.task == "knights"]),
    ):
        assert analysis.groups[name].num_tokens == len(pool(own))
        assert analysis.groups[name].percentile == pytest.approx(np.percentile(pool(own), 80), rel=1e-12)
    assert analysis.outcomes["wrong"].mean == pytest.approx(analysis.groups["wrong"].mean)


def test_a_group_that_is_all_there_is_is_not_repeated(tmp_path: Path) -> None:
    analysis = analyze_traces(written(tmp_path, [small_trace([1, 2], entropy_llm=[0.1, 0.2])]))
    assert list(analysis.groups) == ["all"]


def test_too_many_tasks_are_not_told_apart(tmp_path: Path) -> None:
    traces = [small_trace([1], i, task=f"jsonl:{i}", entropy_llm=[0.1]) for i in range(30)]
    assert list(analyze_traces(written(tmp_path, traces)).groups) == ["all"]


def test_outcomes_are_told_apart_after_any_number_of_tasks(tmp_path: Path) -> None:
    traces = [small_trace([1], i, task=f"jsonl:{i}", entropy_llm=[0.1]) for i in range(30)]
    traces.append(small_trace([1], 30, task="jsonl:30", entropy_llm=[0.3], correct=False))
    analysis = analyze_traces(written(tmp_path, traces))
    assert list(analysis.groups) == ["all", "right", "wrong"]
    assert analysis.groups["wrong"].mean == pytest.approx(0.3)


def test_only_what_is_wanted_counts(tmp_path: Path) -> None:
    traces = random_traces(30)
    analysis = analyze_traces(written(tmp_path, traces), where={"task": ["knights"]})
    assert analysis.num_tokens == len(pool([trace for trace in traces if trace.task == "knights"]))


def test_values_on_an_edge_are_counted_as_numpy_does(tmp_path: Path) -> None:
    entropy = np.arange(0, 300).astype(np.float32) * np.float32(BIN_WIDTH)
    analysis = analyze_traces(written(tmp_path, [small_trace([1] * 300, entropy_llm=entropy)]))
    counts, _ = np.histogram(entropy.astype(np.float64), analysis.whole.edges)
    assert analysis.whole.counts == tuple(counts)


@pytest.mark.parametrize(
    ("slm", "llm", "writer", "expected"),
    [
        ([0.1, 0.2, 0.3], [np.nan, 0.2, np.nan], [0, 1, 0], "entropy_slm"),
        ([0.1, np.nan, 0.3], [0.1, 0.2, 0.3], [0, 0, 0], "entropy_llm"),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0, 0, 1], "entropy_slm"),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [1, 0, 1], "entropy_llm"),
        ([0.1, 0.2, 0.3], None, [1, 1, 1], "entropy_slm"),
    ],
)
def test_the_entropies_known_at_more_tokens_are_taken(tmp_path: Path, slm, llm, writer, expected) -> None:
    columns = {"entropy_slm": slm} | ({} if llm is None else {"entropy_llm": llm})
    written(tmp_path, [small_trace([1, 2, 3], writer=writer, **columns)])
    assert entropy_column(tmp_path) == expected


def test_traces_without_entropies_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "none", [small_trace([1])])
    with pytest.raises(MissingColumnError, match="no entropies; name the checkpoint"):
        analyze_traces(tmp_path / "none")
    written(
        tmp_path / "nan", [small_trace([1], entropy_llm=[np.nan]), small_trace([2], 1, entropy_slm=[0.5])]
    )
    with pytest.raises(EmptyTracesError, match="none of the 2 tokens"):
        analyze_traces(tmp_path / "nan", column="entropy_llm")
    written(tmp_path / "short", [small_trace([], entropy_llm=[])])
    with pytest.raises(EmptyTracesError, match="none of the 0 tokens"):
        analyze_traces(tmp_path / "short", column="entropy_llm")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"percentile": 100}, "percentile is 100"),
        ({"certain": 0}, "certain is 0"),
        ({"listed": 0}, "listed is 0"),
        ({"min_frequency": 0}, "min_frequency is 0"),
        ({"examples": -1}, "examples is -1"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(PatternError, match=words):
        PatternOptions(**changes)  # type: ignore[arg-type]


def test_several_policies_are_noted(tmp_path: Path) -> None:
    traces = [
        small_trace([1, 2], 0, entropy_llm=[0.1, 0.2]),
        small_trace([1], 1, policy="slm", entropy_llm=[0.3]),
    ]
    analysis = analyze_traces(written(tmp_path, traces))
    assert any("several policies are pooled (llm, slm" in note for note in analysis.notes)
