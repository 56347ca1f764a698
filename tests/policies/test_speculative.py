"""Speculative decoding's arithmetic: acceptance, residual, the number of drafts. The engine runs are in tests/engine."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chi_square import p_value
from navtoken.planner import StepTimes, Workload
from navtoken.planner import best_num_drafts as planned_num_drafts
from navtoken.policies import Judged, PairView, Purpose, make_policy, uniform
from navtoken.policies.speculative import (
    MOST_DRAFTS,
    Speculation,
    SpeculativePolicy,
    accept,
    best_num_drafts,
    invert,
)

V = 7


def distributions(*shape: int, seed: int, sharpness: float = 1.5) -> Tensor:
    """Random distributions, some of whose tokens are impossible, (*shape, V)."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(*shape, V, generator=generator, dtype=torch.float64)
    logits[torch.rand(logits.shape, generator=generator) < 0.2] = -torch.inf
    logits[..., 0] = logits[..., 0].clamp(min=-2)
    return logits.softmax(-1)


def noise_of(size: int, position: int, purpose: Purpose) -> Tensor:
    numbers = uniform(np.full(size, 5), np.arange(size), np.full(size, position), purpose)
    return torch.from_numpy(numbers)


def never(places_B: Tensor) -> Tensor:
    raise AssertionError("speculation draws from residuals, and from what it has")


def speculate(p: list[Tensor], q: list[Tensor], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draft 2 tokens for `size` rows and judge them: drafts (B, 2), kept (B,), the token after them (B,).

    Element 0 of `p` and `q` is (V,); elements 1 and 2 are by the tokens before, (V, V) and (V, V, V).
    """
    first_B = invert(q[0].expand(size, -1), noise_of(size, 0, Purpose.DRAFT))
    second_B = invert(q[1][first_B], noise_of(size, 1, Purpose.DRAFT))
    probs_BNV = torch.stack([p[0].expand(size, -1), p[1][first_B], p[2][first_B, second_B]], 1)
    judged = Judged(
        counts=[2] * size,
        num_response=[2] * size,
        token_ids_M=torch.stack([first_B, second_B, torch.zeros_like(first_B)], 1).flatten(),
        logprob_M=torch.zeros(3 * size),
        noise_M=lambda purpose: torch.stack([noise_of(size, at, purpose) for at in range(3)], 1).flatten(),
        probs=lambda: probs_BNV.flatten(0, 1),
        written_at=never,
    )
    drafted = [[q[0], q[1][first]] for first in first_B.tolist()]
    kept_B, token_B = accept(judged, drafted)
    return torch.stack([first_B, second_B], 1), kept_B, token_B


@pytest.mark.parametrize("seed", range(5))
def test_tokens_follow_the_llms_distribution_whatever_was_drafted(seed: int) -> None:
    shapes = ((), (V,), (V, V))
    p, q = ([distributions(*shape, seed=10 * seed + who) for shape in shapes] for who in (0, 1))
    size = 20_000
    drafts_B2, kept_B, token_B = speculate(p, q, size)
    first_B = torch.where(kept_B > 0, drafts_B2[:, 0], token_B)
    assert p_value(torch.bincount(first_B, minlength=V), p[0]) > 1e-3
    # Where the first draft was kept the second token is decided too, from p given the first.
    two = kept_B > 0
    second_B = torch.where(kept_B > 1, drafts_B2[:, 1], token_B)
    counts_VV = (
        torch.zeros(V, V)
        .double()
        .index_put_((first_B[two], second_B[two]), torch.ones(int(two.sum())).double(), accumulate=True)
    )
    given_VV = p[1] * (counts_VV.sum(1) / counts_VV.sum())[:, None]
    assert p_value(counts_VV, given_VV) > 1e-3
    assert 0.01 < float((kept_B == 2).double().mean()) < 0.9
    overlap = float(torch.minimum(p[0], q[0]).sum())
    assert abs(float(two.double().mean()) - overlap) < 0.02


def test_equal_models_keep_every_draft() -> None:
    p = [distributions(*shape, seed=3) for shape in ((), (V,), (V, V))]
    drafts_B2, kept_B, token_B = speculate(p, p, 2000)
    assert bool((kept_B == 2).all())
    counts = torch.zeros(V, V, V).index_put_(
        (drafts_B2[:, 0], drafts_B2[:, 1], token_B), torch.ones(2000), accumulate=True
    )
    assert p_value(counts, p[0][:, None, None] * p[1][:, :, None] * p[2]) > 1e-3


def test_what_the_llm_cannot_write_is_never_kept_and_never_drawn() -> None:
    p, q = torch.zeros(V, dtype=torch.float64), torch.full((V,), 1 / V, dtype=torch.float64)
    p[2] = p[5] = 0.5
    tree = [p, p.expand(V, V), p.expand(V, V, V)]
    drafts_B2, kept_B, token_B = speculate(tree, [q, q.expand(V, V)], 4000)
    assert set(token_B.tolist()) == {2, 5}
    kept = drafts_B2[torch.arange(2) < kept_B[:, None]]
    assert set(kept.tolist()) == {2, 5}


def test_greedy_rows_keep_drafts_up_to_the_first_difference_and_add_the_llms_token() -> None:
    """Rows with other numbers of drafts, in one batch."""
    one_hot = torch.eye(V, dtype=torch.float64)
    drafted = [[1, 2, 3], [4], [1, 2], [6, 6, 6, 6]]
    wanted = [[1, 2, 5, 0], [4, 3], [0, 2, 2], [6, 6, 6, 6, 1]]
    judged = Judged(
        counts=[len(row) for row in drafted],
        num_response=[9] * 4,
        token_ids_M=torch.tensor([token for row in drafted for token in (*row, 0)]),
        logprob_M=torch.zeros(14),
        noise_M=lambda purpose: torch.full((14,), 1 - 1e-9, dtype=torch.float64),
        probs=lambda: one_hot[[token for row in wanted for token in row]],
        written_at=never,
    )
    kept_B, token_B = accept(judged, [[one_hot[token] for token in row] for row in drafted])
    assert kept_B.tolist() == [2, 1, 0, 4]
    assert token_B.tolist() == [5, 3, 0, 1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1, exclude_max=True))
def test_inverting_never_picks_what_has_no_weight(weights: list[float], noise: float) -> None:
    if not any(weight > 1e-12 for weight in weights):
        weights[0] = 1.0
    picked = int(invert(torch.tensor([weights], dtype=torch.float64), torch.tensor([noise]).double()))
    assert weights[picked] > 0


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 0.99), st.floats(1e-3, 2.0))
def test_the_best_number_of_drafts_is_the_planners(acceptance: float, cost_ratio: float) -> None:
    workload = Workload(StepTimes.constant(cost_ratio), StepTimes.constant(1.0), 0.5, 1)
    best, planned = best_num_drafts(acceptance, cost_ratio), planned_num_drafts(workload, acceptance)

    def rate(num: int) -> float:
        return sum(acceptance**kept for kept in range(num + 1)) / (num * cost_ratio + 1)

    assert 1 <= best <= MOST_DRAFTS
    assert rate(best) == pytest.approx(max(map(rate, range(1, MOST_DRAFTS + 1))), rel=1e-9)
    assert best == planned or rate(best) == pytest.approx(rate(planned), rel=1e-9)


def test_auto_drafts_more_where_drafts_are_kept_and_fewer_where_not() -> None:
    policy = make_policy("speculative:auto").joined(PairView(0.05))
    assert isinstance(policy, SpeculativePolicy)
    eager, sobered = policy.start([1]), policy.start([1])
    for _ in range(40):
        policy.settle(eager, eager.num_drafts, eager.num_drafts)
        policy.settle(sobered, 0, sobered.num_drafts)
    assert sobered.num_drafts == 1
    assert 4 < eager.num_drafts <= MOST_DRAFTS
    dear = policy.joined(PairView(0.9)).start([1])
    for _ in range(40):
        policy.joined(PairView(0.9)).settle(dear, min(2, dear.num_drafts), dear.num_drafts)
    assert dear.num_drafts < eager.num_drafts


def test_a_fixed_number_of_drafts_stays() -> None:
    policy = make_policy("speculative:3")
    state = policy.start([1])
    assert isinstance(state, Speculation)
    for _ in range(5):
        policy.settle(state, 0, 3)
    assert state.num_drafts == 3
    assert policy.lookback == 3


@pytest.mark.parametrize("reference", ["speculative:1", "speculative:64", "speculative:auto"])
def test_references(reference: str) -> None:
    assert make_policy(reference).reference == reference
    assert make_policy("speculative").reference == "speculative:auto"


@pytest.mark.parametrize("reference", ["speculative:0", "speculative:65"])
def test_numbers_of_drafts_out_of_range_are_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 drafts, or auto"):
        make_policy(reference)


@pytest.mark.parametrize("reference", ["speculative:many", "speculative:1.5", "speculative:4,share=0.1"])
def test_references_that_do_not_fit_are_refused(reference: str) -> None:
    with pytest.raises(ValueError, match=r"speculative:4|'share'"):
        make_policy(reference)
