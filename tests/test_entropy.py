"""Entropies and scores of logits against slow float64 references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from navtoken.entropy import entropy_from_logits, scores_from_logits


def reference_entropy(logits_V: np.ndarray, temperature: float = 1.0) -> float:
    """Slow and obvious, in float64."""
    scaled_V = logits_V.astype(np.float64) / temperature
    p_V = np.exp(scaled_V - scaled_V.max())
    p_V /= p_V.sum()
    return -sum(float(p) * math.log(p) for p in p_V if p > 0)


floats = st.floats(-80, 80, width=32)


@settings(deadline=None, max_examples=80)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=floats),
    st.floats(0.05, 5),
)
def test_entropy_is_that_of_the_float64_reference(logits_NV, temperature):
    ours = entropy_from_logits(torch.from_numpy(logits_NV).double(), temperature)
    theirs = [reference_entropy(row, temperature) for row in logits_NV]
    assert ours.tolist() == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    assert entropy_from_logits(torch.from_numpy(logits_NV), temperature).tolist() == pytest.approx(
        theirs, rel=2e-4, abs=1e-15
    )


@pytest.mark.parametrize("gap", [5.0, 20.0, 40.0, 80.0])
def test_float32_keeps_the_digits_of_nearly_determined_tokens(gap):
    """A softmax in float32 rounds the likeliest token to 1 from a gap of 17 nats on, and loses its part of H."""
    rest = math.exp(-gap)
    exact = math.log1p(rest) + rest * gap / (1 + rest)
    assert entropy_from_logits(torch.tensor([[gap, 0.0]])).item() == pytest.approx(exact, rel=1e-5)


def test_entropy_of_known_distributions():
    assert entropy_from_logits(torch.zeros(3, 8)).tolist() == pytest.approx([math.log(8)] * 3)
    half = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])
    assert entropy_from_logits(half).item() == pytest.approx(math.log(2))
    assert entropy_from_logits(torch.tensor([[0.0, -torch.inf]])).item() == 0.0


def test_broken_logits_are_not_hidden():
    rows = torch.tensor([[0.0, torch.nan], [torch.inf, 0.0], [-torch.inf, -torch.inf], [0.0, 0.0]])
    scores = scores_from_logits(rows, torch.zeros(4, dtype=torch.long))
    assert torch.isnan(scores.entropy_N).tolist() == [True, True, True, False]
    assert torch.isnan(scores.logprob_N).tolist() == [True, True, True, False]
    assert torch.isnan(scores.margin_N).tolist() == [True, True, True, False]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_without_a_distribution_is_refused(temperature):
    with pytest.raises(ValueError, match="greedy decoding is scored at T = 1"):
        entropy_from_logits(torch.zeros(1, 4), temperature)


def test_log_probabilities_are_those_of_log_softmax():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 30, generator=generator, dtype=torch.float64) * 5
    ids = torch.randint(30, (50,), generator=generator)
    for temperature in (0.6, 1.0, 2.0):
        expected = torch.log_softmax(logits / temperature, -1).gather(-1, ids[:, None])[:, 0]
        scores = scores_from_logits(logits, ids, temperature)
        torch.testing.assert_close(scores.logprob_N, expected)
        assert torch.equal(scores.argmax_N, logits.argmax(-1))


def test_half_precision_is_computed_in_float32():
    logits = (torch.randn(20, 50, generator=torch.Generator().manual_seed(1)) * 4).bfloat16()
    assert torch.equal(entropy_from_logits(logits), entropy_from_logits(logits.float()))


def reference_margin(logits_NV: torch.Tensor) -> list[float]:
    top_N2 = torch.softmax(logits_NV.double(), -1).topk(2).values
    return (top_N2[:, 0] - top_N2[:, 1]).tolist()


def test_margin_is_the_two_likeliest_tokens_difference_in_probability():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(5)) * 4
    for temperature in (0.6, 1.0, 2.0):
        ours = scores_from_logits(logits, temperature=temperature).margin_N
        assert ours.tolist() == pytest.approx(reference_margin(logits / temperature), abs=1e-6)
    tied = scores_from_logits(torch.tensor([[2.0, 2.0, 0.0]])).margin_N
    assert tied.item() == 0.0
    assert scores_from_logits(torch.tensor([[3.0]])).margin_N.item() == 1.0
    assert scores_from_logits(torch.tensor([[3.0, -torch.inf]])).margin_N.item() == 1.0


def test_logits_given_by_others_are_left_as_they_are():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(6))
    before = logits.clone()
    scores_from_logits(logits, temperature=0.5)
    assert torch.equal(logits, before)
