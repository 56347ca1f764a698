"""Both definitions on positions made by hand, and what holds for any positions."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from navtoken.analysis.definitions import Positions, compare
from navtoken.analysis.frozen import FrozenSetError
from navtoken.analysis.ranking import Resampling
from navtoken.analysis.rarity import rarity_bins

NONE = Resampling(num=0)


def positions(size: int = 10, **changes: object) -> Positions:
    """Entropy of the LLM falls from position to position, that of the SLM rises; they differ at the first two and the last."""
    fields = {
        "token_N": np.arange(size, dtype=np.int32) % 4,
        "cluster_N": (np.arange(size) // 3).astype(np.int32),
        "entropy_llm_N": np.linspace(1, 0, size, dtype=np.float32),
        "entropy_slm_N": np.linspace(0, 2, size, dtype=np.float32),
        "margin_slm_N": np.linspace(1, 0, size, dtype=np.float32),
        "differs_N": np.isin(np.arange(size), [0, 1, size - 1]),
    }
    return Positions(**(fields | changes))  # type: ignore[arg-type]


def test_sets_and_overlaps_by_hand() -> None:
    found = compare(positions(), 0.3, NONE, min_count=1)
    by_name = {(each.found, each.wanted): each.overlap for each in found.agreements}
    assert by_name["forking_llm", "differs"].precision.value == pytest.approx(2 / 3)
    assert by_name["forking_llm", "differs"].jaccard.value == pytest.approx(2 / 4)
    assert by_name["forking_llm", "forking_slm"].jaccard.value == 0.0
    # The SLM's margin is narrowest where its entropy is highest.
    assert by_name["forking_slm", "narrow_slm"].jaccard.value == 1.0
    assert found.thresholds["forking_llm"] == pytest.approx(1 - 2 / 9)
    assert found.shares["differs"].value == pytest.approx(0.3)
    assert found.shares["forking_slm"].value == pytest.approx(0.3)
    assert not found.labelled


def test_signals_are_ranked_by_scikit_learns_areas() -> None:
    p = positions()
    found = {(each.signal, each.target): each for each in compare(p, 0.3, NONE).predictions}
    assert found["entropy_llm", "differs"].areas.roc.value == pytest.approx(
        roc_auc_score(p.differs_N, p.entropy_llm_N)
    )
    assert found["margin_slm", "differs"].areas.roc.value == pytest.approx(
        roc_auc_score(p.differs_N, -p.margin_slm_N)
    )
    counts = np.bincount(p.token_N)[p.token_N]
    assert found["rarity", "differs"].areas.roc.value == pytest.approx(roc_auc_score(p.differs_N, -counts))
    assert found["entropy_slm", "differs"].share == pytest.approx(0.3)
    # What is found by construction is no finding.
    assert ("entropy_llm", "forking_llm") not in found
    assert found["entropy_slm", "forking_llm"].areas.roc.value == 0.0


def test_at_equal_size_precision_is_recall() -> None:
    p = positions(differs_N=np.isin(np.arange(10), [0, 1, 2, 3, 9]))
    found = {(each.found, each.wanted): each.overlap for each in compare(p, 0.2, NONE).equal_size}
    assert found["entropy_llm", "differs"].num_found == 5
    assert (
        found["entropy_llm", "differs"].precision.value == found["entropy_llm", "differs"].recall.value == 0.8
    )


def test_entropy_where_models_differ_against_the_rest_by_hand() -> None:
    p = positions(
        4, entropy_slm_N=np.array([4.0, 2.0, 1.0, 3.0]), differs_N=np.array([True, False, False, True])
    )
    assert compare(p, 0.5, NONE).entropy_ratio["entropy_slm"].value == pytest.approx(3.5 / 1.5)


def test_corners_by_hand() -> None:
    token = np.array([5, 5, 7, 7, 8, 8, 9, 9, 9, 9], np.int32)
    differs = np.array([True, True, False, False, True, True, False, False, False, False])
    llm = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], np.float32)
    p = positions(token_N=token, differs_N=differs, entropy_llm_N=llm)
    corners = {corner.name: corner for corner in compare(p, 0.4, NONE, min_count=2).corners}
    assert {name: [item.token_id for item in corner.items] for name, corner in corners.items()} == {
        "both": [5],
        "only_forking": [7],
        "only_parting": [8],
        "neither": [9],
    }
    assert corners["neither"].share.value == pytest.approx(0.4)
    assert corners["only_parting"].items[0].examples == (4, 5)


def test_labels_take_the_place_of_differences_and_count_alone() -> None:
    label = np.array([2, 0, -1, 1, 2, -1, 0, 0, 0, 0], np.int8)
    found = compare(positions(label_N=label), 0.3, NONE, min_count=1)
    assert found.labelled
    assert found.shares["divergent"].value == pytest.approx(2 / 8)
    assert found.shares["differs"].value == pytest.approx(3 / 10)
    overlap = next(e.overlap for e in found.agreements if (e.found, e.wanted) == ("forking_llm", "divergent"))
    # Forking are 0, 1 and 2, of which 2 has no label.
    assert (overlap.num_found, overlap.num_wanted) == (2, 2)
    assert overlap.precision.value == 0.5
    assert sum(corner.share.value for corner in found.corners) == pytest.approx(1.0)
    examples = [i for corner in found.corners for item in corner.items for i in item.examples]
    assert set(examples) <= set(np.flatnonzero(label >= 0))
    assert {each.target for each in found.predictions} == {"forking_llm", "differs", "divergent"}


def test_one_labelled_problem_gives_no_interval_whatever_its_number() -> None:
    label = np.where(np.arange(10) >= 6, 0, -1).astype(np.int8)
    label[6] = 2
    label[9] = -1
    found = compare(positions(label_N=label), 0.3, Resampling(20))
    assert found.shares["divergent"].value == pytest.approx(1 / 3)
    assert math.isnan(found.shares["divergent"].low)
    assert not math.isnan(found.shares["differs"].low)


def test_rarity_is_binned_by_factors_of_two() -> None:
    token = np.repeat(np.arange(6, dtype=np.int32), [1, 2, 3, 4, 1, 9])
    differs = np.isin(token, [0, 2])
    size = len(token)
    made = positions(size, token_N=token, differs_N=differs)
    bins = rarity_bins(made.token_N, made.differs_N, made.cluster_N, NONE)
    assert [(b.at_least, b.num_items, b.num_tokens) for b in bins] == [
        (1, 2, 2),
        (2, 2, 5),
        (4, 1, 4),
        (8, 1, 9),
    ]
    assert [b.rate.value for b in bins] == [0.5, 0.6, 0.0, 0.0]


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 60), st.integers(0, 2**31), st.floats(0.05, 0.9))
def test_whatever_the_positions(size: int, seed: int, fraction: float) -> None:
    rng = np.random.default_rng(seed)
    p = Positions(
        token_N=rng.integers(0, 7, size).astype(np.int32),
        cluster_N=rng.integers(0, 4, size).astype(np.int32),
        entropy_llm_N=rng.integers(0, 4, size).astype(np.float32),
        entropy_slm_N=rng.random(size, dtype=np.float32),
        margin_slm_N=rng.random(size, dtype=np.float32),
        differs_N=rng.random(size) < 0.3,
    )
    found = compare(p, fraction, Resampling(5), num_items=100, min_count=1)
    sets = p.sets(fraction)
    assert sum(corner.share.value for corner in found.corners) == pytest.approx(1.0)
    assert sum(each.num_tokens for each in found.rarity) == size
    assert len({int(sets[name].sum()) for name in ("forking_llm", "forking_slm", "narrow_slm")}) == 1
    # Rates in bins of one size average to the rate.
    for rates in found.rates.values():
        sizes = np.bincount(np.arange(size) * 20 // size, minlength=20)
        total = sum(r.value * n for r, n in zip(rates, sizes, strict=True) if n)
        assert total == pytest.approx(p.differs_N.sum())
    for each in found.agreements:
        both = int((sets[each.found] & sets[each.wanted]).sum())
        if each.overlap.num_found:
            assert each.overlap.precision.value == pytest.approx(both / each.overlap.num_found)
        if not math.isnan(each.overlap.jaccard.low):
            assert each.overlap.jaccard.low <= each.overlap.jaccard.high


def test_no_positions_are_refused() -> None:
    empty = positions()
    with pytest.raises(FrozenSetError, match="no position"):
        replace(empty, token_N=np.array([], np.int32))


def test_invalid_labels_count_for_nothing() -> None:
    label = np.array([2, 3, 0, 0, 1, 3, -1, 0, 0, 2], np.int8)
    found = compare(positions(label_N=label), 0.3, NONE, min_count=1)
    assert found.shares["divergent"].value == pytest.approx(2 / 7)


def test_coarse_intervals_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare(positions(), 0.3, NONE).notes == ()
    for name in ("ranking", "definitions"):
        monkeypatch.setattr(f"navtoken.analysis.{name}.MOST_EXACT", 5)
    (note,) = compare(positions(), 0.3, NONE).notes
    assert "more than 5 tokens" in note
