"""Which tokens a pool keeps: the rules against plain sorting, shares that are held to what was asked, loss scale, very large pools."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from navtoken.reference import BadReference
from navtoken.rlvr.selection import (
    RULES,
    SLACK,
    FractionError,
    SelectionError,
    SelectionOptions,
    TokenColumns,
    select,
)

FRACTIONS = (0.05, 0.2, 0.5, 0.93, 1.0)


def columns(entropy: list[float] | Tensor, noise: Tensor | None = None) -> TokenColumns:
    entropy_N = torch.as_tensor(entropy)
    others_N = torch.zeros(1).expand(len(entropy_N))
    if noise is None:
        noise = torch.rand(len(entropy_N), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return TokenColumns(entropy_N, others_N, others_N, noise)


def kept_plainly(values: np.ndarray, fraction: float, ties: str) -> np.ndarray:
    """The largest ceil(fraction n), by sorting; the earlier first among equals."""
    k = math.ceil(fraction * len(values) - 1e-9)
    order = np.argsort(-values, kind="stable")
    if ties == "threshold":
        return values >= values[order[k - 1]]
    kept = np.zeros(len(values), bool)
    kept[order[:k]] = True
    return kept


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(("top_entropy", "bottom_entropy", "random")),
    st.lists(st.integers(0, 12), min_size=1, max_size=60),
    st.sampled_from(FRACTIONS),
    st.sampled_from(("threshold", "exact")),
    st.sampled_from(("kept", "all")),
)
def test_rules_keep_what_plain_sorting_keeps(
    rule: str, eighths: list[int], fraction: float, ties: str, normaliser: str
) -> None:
    given_columns = columns([value / 8 for value in eighths])
    entropy = given_columns.entropy_N.numpy()
    wanted = {
        "top_entropy": lambda: kept_plainly(entropy, fraction, ties),
        "bottom_entropy": lambda: kept_plainly(-entropy, fraction, ties),
        "random": lambda: kept_plainly(given_columns.noise_N.numpy(), fraction, "exact"),
    }[rule]()
    options = SelectionOptions(f"{rule}:{fraction}", ties=ties, normaliser=normaliser)
    if abs(wanted.mean() - fraction) > SLACK + 1 / len(wanted):
        assert ties == "threshold"
        with pytest.raises(FractionError, match="many tokens have one entropy: give ties exact"):
            select(given_columns, options)
        return
    found = select(given_columns, options)
    scale = len(wanted) / wanted.sum() if normaliser == "kept" else 1.0
    np.testing.assert_allclose(found.weight_N.numpy(), wanted * scale, rtol=1e-6)
    assert found.metrics() == pytest.approx(
        {
            "selection/threshold": entropy[wanted].min(),
            "selection/fraction": wanted.mean(),
            "selection/entropy_kept": entropy[wanted].mean(),
            "selection/entropy_dropped": entropy[~wanted].mean() if not wanted.all() else math.nan,
            "selection/pool_tokens": len(wanted),
        },
        nan_ok=True,
        rel=1e-6,
    )


def test_all_keeps_all_at_weight_one() -> None:
    for normaliser in ("kept", "all"):
        found = select(columns([0.5, 0.1, 0.5]), SelectionOptions("all", normaliser=normaliser))
        assert found.weight_N.tolist() == [1.0, 1.0, 1.0] and found.fraction == 1.0


def test_normalisers_differ_by_the_inverse_of_the_realised_fraction() -> None:
    given_columns = columns(torch.rand(317, generator=torch.Generator().manual_seed(0)))
    kept, every = (
        select(given_columns, SelectionOptions("top_entropy:0.2", normaliser=normaliser))
        for normaliser in ("kept", "all")
    )
    assert every.fraction == 64 / 317
    torch.testing.assert_close(kept.weight_N, every.weight_N * (317 / 64))
    assert float(kept.weight_N.mean()) == pytest.approx(1.0)
    assert set(every.weight_N.tolist()) == {0.0, 1.0}
    assert "makes the same step smaller by the fraction" in inspect.getsource(SelectionOptions)


@pytest.mark.parametrize(
    ("broken", "realised"),
    [
        (lambda columns, fraction, ties: torch.ones_like(columns.entropy_N), "1.0000"),
        (lambda columns, fraction, ties: (columns.entropy_N > 0.5).float(), "0.49"),
        (lambda columns, fraction, ties: torch.zeros_like(columns.entropy_N), "0.0000"),
    ],
)
def test_a_rule_that_keeps_another_share_is_stopped(
    broken: object, realised: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "top_entropy", broken)
    given_columns = columns(torch.arange(1000) / 1000)
    with pytest.raises(
        FractionError, match=rf"'top_entropy:0.2' kept {realised}\d* of 1000 tokens instead of 0.2"
    ):
        select(given_columns, SelectionOptions("top_entropy:0.2", ties="exact"))


def test_a_share_may_be_off_by_a_token_and_a_little_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    given_columns = columns(torch.arange(1000) / 1000)
    for kept, passes in ((195, True), (193, False), (205, True), (207, False)):
        monkeypatch.setitem(
            RULES, "top_entropy", lambda columns, *_, kept=kept: (torch.arange(1000) < kept).float()
        )
        if passes:
            assert select(given_columns, SelectionOptions()).fraction == kept / 1000
        else:
            with pytest.raises(FractionError):
                select(given_columns, SelectionOptions())


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_weights_that_would_turn_or_break_the_loss_are_refused(
    bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clipped loss is a minimum: a negative weight would turn it into a maximum."""

    def rule(columns: TokenColumns, fraction: float, ties: str) -> Tensor:
        return torch.tensor([1.0, *[bad] * 4])

    monkeypatch.setitem(RULES, "top_entropy", rule)
    with pytest.raises(SelectionError, match=r"'top_entropy:0.2' gave a weight of .*; a rule's weights"):
        select(columns([0.5] * 5), SelectionOptions(ties="exact"))


def test_weights_need_not_be_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "by_entropy", lambda columns, fraction, ties: columns.entropy_N)
    found = select(columns([1.0, 2.0, 3.0, 4.0]), SelectionOptions("by_entropy:1"))
    assert found.weight_N.tolist() == pytest.approx([0.4, 0.8, 1.2, 1.6])


def test_an_empty_pool_selects_nothing() -> None:
    for reference in ("all", "top_entropy:0.2", "random:0.2"):
        found = select(columns([]), SelectionOptions(reference))
        assert found.weight_N.shape == (0,) and found.num_tokens == 0
        assert math.isnan(found.fraction) and math.isnan(found.threshold)


def test_a_pool_beyond_what_torch_quantile_takes() -> None:
    size = 2**24 + 5
    entropy_N = torch.rand(size, generator=torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(entropy_N, 0.8)
    found = select(columns(entropy_N, torch.zeros(1).expand(size)), SelectionOptions(ties="exact"))
    k = math.ceil(0.2 * size)
    assert int((found.weight_N > 0).sum()) == k
    kept_N = found.weight_N > 0
    assert found.threshold == float(entropy_N[kept_N].min()) >= float(entropy_N[~kept_N].max())
    assert found.threshold == pytest.approx(0.8, abs=1e-3)
    assert found.fraction == k / size


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"select": "highest:0.2"}, "there is no rule 'highest'; there are all, top_entropy"),
        ({"select": "top_entropy"}, "top_entropy needs a fraction; write top_entropy:0.2"),
        ({"select": "all:0.2"}, "all takes no fraction"),
        ({"select": "random:0"}, "above 0 and at most 1"),
        ({"select": "random:1.2"}, "above 0 and at most 1"),
        ({"select": "random:nan"}, "above 0 and at most 1"),
        ({"select": "random:some"}, "above 0 and at most 1"),
        ({"select": "top_entropy:0.2,pool=mini"}, "flags of their own"),
        ({"pool": "rank"}, "pool is 'rank'; give one of batch, mini, micro"),
        ({"normaliser": "none"}, "normaliser is 'none'; give one of kept, all"),
        ({"ties": "last"}, "ties is 'last'; give one of threshold, exact"),
    ],
)
def test_what_cannot_be_selected_is_refused(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        SelectionOptions(**wrong)
    with pytest.raises(BadReference):
        SelectionOptions("top_entropy:")
