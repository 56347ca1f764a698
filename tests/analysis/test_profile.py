"""Means along the response are those of its tokens, and their errors those of a ratio over responses."""

from pathlib import Path

import numpy as np
import pytest

from navtoken.analysis.columns import stream_columns
from navtoken.analysis.profile import NUM_PARTS, POSITION_EDGES, ClusteredMeans, Profile
from navtoken.trace import Trace
from small_traces import random_traces, small_trace, written

NEEDED = ("entropy_llm", "correct")


def profile_of(folder: Path, batch_rows: int | None = None) -> Profile:
    profile = Profile()
    for batch in stream_columns(folder, NEEDED, batch_rows):
        known = ~np.isnan(batch["entropy_llm"])
        profile.add(batch, batch["entropy_llm"], None if known.all() else known)
    return profile


def test_every_bin_has_its_tokens(tmp_path: Path) -> None:
    traces = random_traces(30)
    for trace in traces[::4]:
        trace.columns["entropy_llm"][::3] = np.nan
    written(tmp_path, traces)
    outcomes = profile_of(tmp_path, batch_rows=3).outcomes()
    assert outcomes.keys() == {"right", "wrong", "unjudged"}
    right = [trace for trace in traces if trace.correct]
    for index in range(NUM_PARTS):
        own = [
            trace.columns["entropy_llm"][at]
            for trace in right
            for at in range(len(trace.response_ids))
            if at * NUM_PARTS // len(trace.response_ids) == index
        ]
        check_bin(outcomes["right"].by_part, index, own)
    table = outcomes["right"].by_position
    for index in range(len(table.num_tokens)):
        own = [
            value
            for trace in right
            for value in trace.columns["entropy_llm"][int(table.edges[index]) : int(table.edges[index + 1])]
        ]
        check_bin(table, index, own)
    assert table.edges[-1] >= max(len(trace.response_ids) for trace in right)
    assert sum(table.num_tokens) == outcomes["right"].num_tokens


def check_bin(table, index: int, own: list[float]) -> None:
    known = [float(value) for value in own if not np.isnan(value)]
    assert table.num_tokens[index] == len(known)
    assert table.mean[index] == pytest.approx(np.mean(known) if known else np.nan, nan_ok=True)


def test_batches_make_no_difference(tmp_path: Path) -> None:
    written(tmp_path, random_traces(20))
    one, many = (profile_of(tmp_path, rows).outcomes()["right"] for rows in (1, None))
    np.testing.assert_allclose(one.by_part.mean, many.by_part.mean)
    np.testing.assert_allclose(one.by_part.error, many.by_part.error)
    assert (one.mean, one.error) == pytest.approx((many.mean, many.error))


def test_the_error_is_that_of_the_mean_over_responses() -> None:
    """Against the spread of the mean over many drawn sets of responses whose tokens hang together."""
    rng = np.random.default_rng(0)

    def draw() -> ClusteredMeans:
        means = ClusteredMeans(1)
        lengths = rng.integers(1, 40, 200).astype(float)[:, None]
        means.add(lengths, lengths * rng.normal(1.0, 0.3, (200, 1)))
        return means

    drawn = [draw() for _ in range(400)]
    spread = np.std([each.mean[0] for each in drawn])
    assert np.mean([each.error[0] for each in drawn]) == pytest.approx(spread, rel=0.1)
    # Tokens taken as independent would make it less than a quarter of that.
    assert spread > 4 * 0.3 / np.sqrt(200 * 20) / 2


def test_one_response_has_no_error(tmp_path: Path) -> None:
    written(tmp_path, [small_trace([1, 2], entropy_llm=[0.5, 1.5])])
    (profile,) = profile_of(tmp_path).outcomes().values()
    assert (profile.mean, profile.num_responses) == (1.0, 1)
    assert np.isnan(profile.error)


def test_responses_without_tokens_count_nowhere(tmp_path: Path) -> None:
    traces: list[Trace] = [
        small_trace([], 0, entropy_llm=[], correct=False),
        small_trace([1], 1, entropy_llm=[0.5]),
    ]
    written(tmp_path, traces)
    assert profile_of(tmp_path).outcomes().keys() == {"right"}


def test_position_bins_grow() -> None:
    widths = np.diff(POSITION_EDGES)
    assert (widths > 0).all()
    assert POSITION_EDGES[:9] == tuple(range(9))
    assert POSITION_EDGES[-1] > 2_000_000
