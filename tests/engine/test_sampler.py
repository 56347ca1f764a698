"""Sampling parameters against transformers' own processors, and draws against their distribution."""

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from navtoken.engine import SamplingParams, Sequence
from navtoken.engine.options import OptionError
from navtoken.engine.sampler import draw, invert, noise_keys, penalize, truncated_probs
from navtoken.policies import Purpose, uniform

LOGITS_BV = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def row(sampling: SamplingParams, token_ids: list[int], prompt_len: int = 2, seed: int = 0) -> Sequence:
    return Sequence(0, token_ids, prompt_len, sampling, 100, seed, 0)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.3, top_k=7),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.1),
        SamplingParams(temperature=1.2, top_k=20, top_p=0.9, min_p=0.05),
    ],
)
def test_truncation_is_that_of_transformers(params: SamplingParams) -> None:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    expected_BV = warpers(torch.zeros(5, 1, dtype=torch.long), LOGITS_BV).softmax(-1)
    torch.testing.assert_close(truncated_probs(LOGITS_BV, [params] * 5), expected_BV)


def test_rows_keep_their_own_parameters_in_a_mixed_batch() -> None:
    params = [
        SamplingParams(temperature=t, top_k=k, top_p=p) for t, k, p in ((1, 0, 1), (0.5, 3, 1), (2, 0, 0.6))
    ]
    mixed_BV = truncated_probs(LOGITS_BV[:3], params)
    for index, each in enumerate(params):
        torch.testing.assert_close(mixed_BV[index], truncated_probs(LOGITS_BV[index : index + 1], [each])[0])


def test_repetition_penalty_is_that_of_transformers() -> None:
    token_ids = [3, 9, 9, 14]
    expected_BV = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([token_ids]), LOGITS_BV[:1])
    ours_BV = penalize(LOGITS_BV[:1], [row(SamplingParams(repetition_penalty=1.7), token_ids)])
    torch.testing.assert_close(ours_BV, expected_BV)


def test_frequency_and_presence_penalties_count_the_response_only() -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    ours_V = penalize(LOGITS_BV[:1], [row(params, [3, 5, 9, 9, 14])])[0]
    expected_V = LOGITS_BV[0].clone()
    expected_V[9] -= 2 * 0.5 + 0.25
    expected_V[14] -= 0.5 + 0.25
    torch.testing.assert_close(ours_V, expected_V)


def test_draws_follow_the_distribution() -> None:
    probs_V = truncated_probs(LOGITS_BV[:1], [SamplingParams(temperature=1.0, top_p=0.9)])[0]
    size = 40_000
    noise = uniform(np.full(size, 3), np.zeros(size, dtype=int), np.arange(size), Purpose.DRAFT)
    counts_V = torch.bincount(invert(probs_V.expand(size, -1), torch.from_numpy(noise)), minlength=40)
    likely = probs_V > 1e-4
    assert counts_V[probs_V == 0].sum() == 0
    chi_square = ((counts_V - size * probs_V) ** 2 / (size * probs_V))[likely].sum()
    assert chi_square < likely.sum() + 4 * (2 * likely.sum()) ** 0.5


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    rows = [row(SamplingParams(temperature=1.0), [1, 2], seed=seed) for seed in range(5)]
    together = draw(LOGITS_BV, rows, noise_keys(rows), Purpose.DRAFT).tolist()
    order = [4, 2, 0]
    chosen = [rows[index] for index in order]
    assert draw(LOGITS_BV[order], chosen, noise_keys(chosen), Purpose.DRAFT).tolist() == [
        together[i] for i in order
    ]


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    rows = [row(SamplingParams(temperature=t), [1, 2], seed=3) for t in (0.0, 5.0, 0.0, 5.0, 0.0)]
    tokens = draw(LOGITS_BV, rows, noise_keys(rows), Purpose.DRAFT)
    assert tokens[::2].tolist() == LOGITS_BV.argmax(-1)[::2].tolist()
    assert tokens[1::2].tolist() != LOGITS_BV.argmax(-1)[1::2].tolist()


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"min_p": 2.0}, {"repetition_penalty": 0.0}],
)
def test_options_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        SamplingParams(**wrong)
