"""Statistics of labels against counting by hand."""

from typing import Any

import numpy as np
import pytest

from navtoken.analysis.label_pool import COLUMNS, NUM_EXAMPLES, NUM_SHOWN
from navtoken.analysis.labels import LabelStudy, NoLabelsError, study_labels
from navtoken.analysis.ranking import Resampling
from navtoken.labeling.labels import Label
from navtoken.trace import Trace
from small_traces import small_trace

FEW = Resampling(30)


def labelled(num: int, seed: int = 0, invalid: float = 0.05) -> list[Trace]:
    """Responses of 20 to 60 tokens of a vocabulary of 30; the SLM is unsure where it leaves the path."""
    rng = np.random.default_rng(seed)
    traces = []
    for sample in range(num):
        length = int(rng.integers(20, 60))
        ids = rng.integers(0, 30, length)
        label = rng.choice(3, length, p=[0.7, 0.2, 0.1])
        label = np.where(ids == 7, 2, label)
        draft = np.where(label == Label.IDENTICAL, ids, 30 + ids % 3)
        entropy = rng.exponential(1.0, length) * np.where(label == Label.DIVERGENT, 2.0, 0.5)
        label = np.where((label > 0) & (rng.random(length) < invalid), Label.INVALID, label)
        branches = np.where(label[:, None] > 0, np.stack([draft, draft + 1], 1), -1)
        columns: dict[str, Any] = {
            "label": label.astype(np.int8),
            "entropy_slm": entropy.astype(np.float32),
            "draft_ids": draft.astype(np.int32),
            "continuation_ids": branches.astype(np.int32),
            "slm_hidden": np.zeros((length, 4), np.float16),
        }
        trace = small_trace(ids.tolist(), sample % 7, task=("countdown", "knights")[sample % 2])
        trace.columns.update(columns)
        traces.append(trace)
    return traces


def flat(traces: list[Trace], name: str) -> np.ndarray:
    return np.concatenate([trace.columns[name] for trace in traces])


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return labelled(60)


@pytest.fixture(scope="module")
def study(traces: list[Trace]) -> LabelStudy:
    return study_labels(iter(traces), FEW)


def test_shares_are_of_labels_that_say_something(traces: list[Trace], study: LabelStudy) -> None:
    label = flat(traces, "label")
    valid = (label != Label.INVALID).sum()
    assert study.num_tokens == len(label)
    for value, name in enumerate(("identical", "neutral", "divergent")):
        assert study.shares[name].value == pytest.approx((label == value).sum() / valid)
        assert study.shares[name].low < study.shares[name].value < study.shares[name].high
    assert study.invalid.value == pytest.approx(1 - valid / len(label))
    own = flat([trace for trace in traces if trace.task == "knights"], "label")
    known = own[own != Label.INVALID]
    assert study.task_shares["knights"]["divergent"] == pytest.approx((known == 2).mean())
    assert study.task_shares["knights"]["invalid"] == pytest.approx((own == 3).mean())


def test_entropies_by_class_and_their_ratio(traces: list[Trace], study: LabelStudy) -> None:
    label, entropy = flat(traces, "label"), flat(traces, "entropy_slm").astype(np.float64)
    for value, name in enumerate(("identical", "neutral", "divergent")):
        assert study.entropy[name].mean.value == pytest.approx(entropy[label == value].mean())
        assert study.entropy[name].median == pytest.approx(np.median(entropy[label == value]))
    # Invalid tokens are among neither: those would lower the ratio.
    ratio = entropy[label == 2].mean() / entropy[label < 2].mean()
    assert study.entropy_ratio.value == pytest.approx(ratio)
    assert 3.0 < ratio < 5.0
    assert study.rates["divergent"][-1].value > 5 * study.rates["divergent"][0].value
    assert sum(rate.value for rate in study.rates["neutral"]) / 20 == pytest.approx(
        study.shares["neutral"].value, rel=0.02
    )
    assert study.edges == sorted(study.edges)
    assert study.edges[-1] == pytest.approx(entropy[label < 3].max())


def test_rarity_counts_over_all_and_rates_over_labelled(traces: list[Trace], study: LabelStudy) -> None:
    ids = np.concatenate([trace.response_ids for trace in traces])
    label = flat(traces, "label")
    counts = np.bincount(ids)
    for each in study.rarity:
        inside = (counts[ids] >= each.at_least) & (counts[ids] < 2 * each.at_least) & (label < 3)
        assert each.num_tokens == inside.sum()
        assert each.rate.value == pytest.approx((label[inside] == 2).mean())


def test_the_divergent_token_comes_first_with_places_where_it_stands(
    traces: list[Trace], study: LabelStudy
) -> None:
    ids, label = np.concatenate([trace.response_ids for trace in traces]), flat(traces, "label")
    first = study.items[0]
    assert first.token_id == 7
    assert (first.count, first.total) == (
        ((ids == 7) & (label == 2)).sum(),
        ((ids == 7) & (label < 3)).sum(),
    )
    for position in first.examples:
        assert label[position] == 2
        before, token, after = study.pool.around(position)
        assert token == 7
        start = max(0, position - len(before))
        assert ids[start : position + 1 + len(after)].tolist() == [*before, token, *after]


def test_context_stays_inside_the_response(traces: list[Trace], study: LabelStudy) -> None:
    first, second = traces[0].response_ids, traces[1].response_ids
    assert study.pool.around(0) == ([], first[0], first[1:9])
    last = len(first) - 1
    assert study.pool.around(last) == (first[last - 10 : last], first[last], [])
    assert study.pool.around(len(first)) == ([], second[0], second[1:9])


def test_pairs_are_substitutions(traces: list[Trace], study: LabelStudy) -> None:
    ids, draft = np.concatenate([trace.response_ids for trace in traces]), flat(traces, "draft_ids")
    label = flat(traces, "label")
    top = study.pairs[0]
    own = (ids == top.llm_id) & (draft == top.slm_id)
    assert (top.llm_id, top.slm_id) == (7, 31)
    assert top.divergent == (own & (label == 2)).sum()
    assert top.total == (own & (label < 3)).sum()
    assert [pair.divergent for pair in study.pairs] == sorted(
        (pair.divergent for pair in study.pairs), reverse=True
    )
    assert all(pair.llm_id != pair.slm_id for pair in study.pairs)


def test_examples_are_bounded_of_their_class_and_without_features() -> None:
    many = labelled(3 * NUM_EXAMPLES, invalid=0.3)
    study = study_labels(many, FEW)
    assert set(study.examples) == {"neutral", "divergent", "invalid"}
    for name, examples in study.examples.items():
        assert len(examples) == NUM_EXAMPLES
        for example in examples:
            assert example.trace.columns["label"][example.position] == Label[name.upper()]
            assert set(example.trace.columns) <= set(COLUMNS)
        # Drawn from all responses, not the first ones.
        assert len({id(example.trace) for example in examples} - {id(trace) for trace in many}) > 0
    late = {tuple(trace.response_ids) for trace in many[2 * NUM_EXAMPLES :]}
    assert sum(tuple(e.trace.response_ids) in late for e in study.examples["divergent"]) > 5
    assert len(study.shown) == 2 * NUM_SHOWN


def test_unlabelled_tokens_and_responses_count_nowhere() -> None:
    traces = labelled(6)
    for trace in traces[:3]:
        trace.columns["label"][:10] = -1
    whole = study_labels(traces, FEW)
    assert whole.num_tokens == sum(len(trace.response_ids) for trace in traces) - 30
    bare = small_trace([1, 2, 3])
    again = study_labels([bare, *traces], FEW)
    assert (again.num_tokens, again.num_responses) == (whole.num_tokens, 6)
    with pytest.raises(NoLabelsError, match="navtoken label"):
        study_labels([bare], FEW)


def test_responses_that_never_ended_are_told_apart() -> None:
    traces = labelled(6)
    for trace in traces[:2]:
        trace.finish_reason = "length"
    cut = study_labels(traces, FEW).cut_off
    label, own = flat(traces, "label"), flat(traces[:2], "label")
    assert (cut.num_responses, cut.tokens) == (2, pytest.approx(len(own) / len(label)))
    assert cut.divergent == pytest.approx((own == 2).sum() / (label == 2).sum())


def test_without_entropies_the_rest_is_there() -> None:
    traces = labelled(6)
    for trace in traces:
        del trace.columns["entropy_slm"]
    study = study_labels(traces, FEW)
    assert study.entropy == {} and study.rates == {}
    assert np.isnan(study.entropy_ratio.value)
    assert study.shares["identical"].value > 0.5


def test_only_invalid_labels_say_nothing() -> None:
    traces = labelled(4)
    for trace in traces:
        trace.columns["label"][:] = Label.INVALID
    study = study_labels(traces, FEW)
    assert study.invalid.value == 1.0
    assert np.isnan(study.shares["identical"].value)
    assert study.items == [] and study.pairs == [] and study.rarity == []
