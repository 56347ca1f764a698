"""Token tables: means, bounds that scale with the corpus, and examples that are where they say."""

from pathlib import Path

import numpy as np
import pytest

from navtoken.analysis.columns import stream_columns
from navtoken.analysis.tokens import FEWEST, TokenTally, find_contexts
from navtoken.trace import TraceError
from small_traces import random_traces, small_trace, written


def tally(counts: dict[int, int], means: dict[int, float]) -> TokenTally:
    """Each token as often as asked, in pieces, its entropies spread around its mean."""
    made = TokenTally()
    for token, count in counts.items():
        entropy = means[token] + np.linspace(-0.01, 0.01, count) * (count > 1)
        for ids, values in zip(
            np.array_split(np.full(count, token), 3), np.array_split(entropy, 3), strict=True
        ):
            made.add(ids, values)
    return made


def test_means_are_those_of_all_occurrences() -> None:
    rng = np.random.default_rng(1)
    ids, entropy = rng.integers(0, 50, 5000), rng.exponential(1, 5000).astype(np.float32)
    made = TokenTally()
    for part in np.array_split(np.arange(5000), 7):
        made.add(ids[part], entropy[part])
    tables = made.tables(num=10, min_frequency=1)
    means = {token: entropy[ids == token].astype(np.float64) for token in range(50)}
    ranked = sorted(means, key=lambda token: means[token].mean())
    assert [stat.token_id for stat in tables.lowest] == ranked[:10]
    assert [stat.token_id for stat in tables.highest] == ranked[::-1][:10]
    for stat in tables.highest:
        assert stat.count == len(means[stat.token_id])
        assert stat.mean_entropy == pytest.approx(means[stat.token_id].mean())
        assert stat.standard_deviation == pytest.approx(means[stat.token_id].std())
    assert (tables.num_items, tables.num_frequent, tables.notes) == (50, 50, ())


def test_rare_tokens_are_left_out() -> None:
    made = tally({1: 30, 2: 3, 3: 30, 4: 30}, {1: 1.0, 2: 9.0, 3: 0.1, 4: 0.5})
    assert [stat.token_id for stat in made.tables(1, min_frequency=4).highest] == [1]
    assert [stat.token_id for stat in made.tables(1, min_frequency=3).highest] == [2]


def test_a_small_corpus_has_a_smaller_bound_and_says_so() -> None:
    counts = {token: 1 + 4000 * (token % 2) for token in range(100)}
    tables = tally(counts, {token: float(token) for token in counts}).tables(10)
    assert tables.min_frequency == 21
    assert "200,100 tokens" in tables.notes[0] and "21 times" in tables.notes[0]
    assert all(stat.token_id % 2 for stat in tables.highest)
    few = tally({1: 21_000, 2: FEWEST - 1, 3: FEWEST}, {1: 1, 2: 3, 3: 2}).tables(1)
    assert few.min_frequency == FEWEST
    assert [stat.token_id for stat in few.highest] == [3]
    assert tally({1: 4, 2: 5}, {1: 1, 2: 2}).tables(1).min_frequency == 1
    asked = tally({1: 4, 2: 5, 3: 6}, {1: 1, 2: 2, 3: 3}).tables(1, min_frequency=100)
    assert (asked.min_frequency, asked.highest, asked.num_frequent) == (100, (), 0)


def test_a_corpus_of_the_papers_size_has_the_papers_bound() -> None:
    counts = {1: 1_000_000, 2: 99, 3: 100}
    tables = tally(counts, {1: 0.1, 2: 3.0, 3: 2.0}).tables(1)
    assert tables.min_frequency == 100
    assert [stat.token_id for stat in tables.highest] == [3]
    assert tables.notes == ()


def test_no_token_is_in_both_lists() -> None:
    tables = tally(dict.fromkeys(range(13), 10), {token: float(token) for token in range(13)}).tables(100)
    highest, lowest = ([stat.token_id for stat in stats] for stats in (tables.highest, tables.lowest))
    assert (highest, lowest) == ([12, 11, 10], [0, 1, 2])
    assert any("each list has 3" in note for note in tables.notes)


@pytest.mark.parametrize("token", [-1, 2**24])
def test_ids_of_no_vocabulary_are_refused(token: int) -> None:
    with pytest.raises(TraceError, match=f"token id {token} is of no vocabulary"):
        TokenTally().add(np.array([1, token]), np.ones(2))


def test_examples_are_occurrences_in_different_responses(tmp_path: Path) -> None:
    traces = random_traces(40)
    written(tmp_path, traces)
    made = TokenTally()
    for trace in traces:
        made.add(np.array(trace.response_ids, np.int32), trace.columns["entropy_llm"])
    stats = made.tables(5, min_frequency=1).highest
    batches = stream_columns(tmp_path, ["response_ids", "entropy_llm"], batch_rows=3)
    found = find_contexts(batches, "entropy_llm", stats, num=4, before=2, after=3)
    for stat in found:
        assert len(stat.contexts) == 4
        sources = set()
        for context in stat.contexts:
            window = (*context.before, stat.token_id, *context.after)
            places = [
                (index, at)
                for index, trace in enumerate(traces)
                for at, token in enumerate(trace.response_ids)
                if token == stat.token_id
                and (*trace.response_ids[max(0, at - 2) : at], token, *trace.response_ids[at + 1 : at + 4])
                == window
                and trace.columns["entropy_llm"][at] == np.float32(context.entropy)
            ]
            assert places
            sources.add(places[0][0])
        assert len(sources) == 4


def test_examples_stay_within_their_response_and_reading_stops(tmp_path: Path) -> None:
    rows = [[1, 2, 3], [], [4, 1, 5], [1, 1, 1]]
    written(
        tmp_path,
        [small_trace(ids, i, entropy_llm=[0.5] * len(ids)) for i, ids in enumerate(rows)],
        shard_rows=1,
    )
    made = TokenTally()
    made.add(np.array([1] * 5), np.full(5, 0.5))
    read = []

    def batches():
        for batch in stream_columns(tmp_path, ["response_ids", "entropy_llm"]):
            read.append(batch.num_tokens)
            yield batch

    (stat,) = find_contexts(batches(), "entropy_llm", made.tables(1, 1).highest, num=2)
    assert [(c.before, c.after) for c in stat.contexts] == [((), (2, 3)), ((4,), (5,))]
    assert read == [3, 0, 3]
