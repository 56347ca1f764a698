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

from chi_square import p_value
from navtoken.engine import SamplingParams, Sequence
from navtoken.engine.options import OptionError
from navtoken.engine.sampler import Draw, Places, adjust, truncated_probs
from navtoken.policies import Purpose, make_policy, uniform
from navtoken.policies.speculative import invert

LOGITS_BV = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def row(sampling: SamplingParams, token_ids: list[int], prompt_len: int = 2, seed: int = 0) -> Sequence:
    return Sequence(0, token_ids, prompt_len, sampling, 100, seed, 0, make_policy("slm"))


def adjusted(rows: list[Sequence], eos: tuple[int, ...] = ()) -> torch.Tensor:
    return adjust(LOGITS_BV[: len(rows)], Places.next_of(rows), eos)


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
    temperatures = [params.temperature] * 5
    torch.testing.assert_close(truncated_probs(LOGITS_BV, [params] * 5, temperatures), expected_BV)


def test_rows_keep_their_own_parameters_in_a_mixed_batch() -> None:
    params = [
        SamplingParams(temperature=t, top_k=k, top_p=p) for t, k, p in ((1, 0, 1), (0.5, 3, 1), (2, 0, 0.6))
    ]
    mixed_BV = truncated_probs(LOGITS_BV[:3], params, [each.temperature for each in params])
    for index, each in enumerate(params):
        alone_V = truncated_probs(LOGITS_BV[index : index + 1], [each], [each.temperature])[0]
        torch.testing.assert_close(mixed_BV[index], alone_V)


def test_repetition_penalty_is_that_of_transformers() -> None:
    token_ids = [3, 9, 9, 14]
    expected_BV = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([token_ids]), LOGITS_BV[:1])
    ours_BV = adjusted([row(SamplingParams(repetition_penalty=1.7), token_ids)])
    torch.testing.assert_close(ours_BV, expected_BV)


def test_frequency_and_presence_penalties_count_the_response_only() -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    ours_V = adjusted([row(params, [3, 5, 9, 9, 14])])[0]
    expected_V = LOGITS_BV[0].clone()
    expected_V[9] -= 2 * 0.5 + 0.25
    expected_V[14] -= 0.5 + 0.25
    torch.testing.assert_close(ours_V, expected_V)


def test_draws_follow_the_distribution() -> None:
    probs_V = truncated_probs(LOGITS_BV[:1], [SamplingParams(top_p=0.9)], [1.0])[0]
    size = 40_000
    noise = uniform(np.full(size, 3), np.zeros(size, dtype=int), np.arange(size), Purpose.DRAFT)
    counts_V = torch.bincount(invert(probs_V.expand(size, -1), torch.from_numpy(noise)), minlength=40)
    likely = probs_V > 1e-4
    assert counts_V[probs_V == 0].sum() == 0
    chi_square = ((counts_V - size * probs_V) ** 2 / (size * probs_V))[likely].sum()
    assert chi_square < likely.sum() + 4 * (2 * likely.sum()) ** 0.5


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    rows = [row(SamplingParams(temperature=1.0), [1, 2], seed=seed) for seed in range(5)]
    together = Draw(LOGITS_BV, Places.next_of(rows)).tokens(Purpose.DRAFT).tolist()
    order = [4, 2, 0]
    chosen = [rows[index] for index in order]
    alone = Draw(LOGITS_BV[order], Places.next_of(chosen)).tokens(Purpose.DRAFT).tolist()
    assert alone == [together[i] for i in order]


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    rows = [row(SamplingParams(temperature=t), [1, 2], seed=3) for t in (0.0, 5.0, 0.0, 5.0, 0.0)]
    draw = Draw(LOGITS_BV, Places.next_of(rows))
    tokens = draw.tokens(Purpose.DRAFT)
    assert tokens[::2].tolist() == LOGITS_BV.argmax(-1)[::2].tolist()
    assert tokens[1::2].tolist() != LOGITS_BV.argmax(-1)[1::2].tolist()
    probs_BV = draw.probs()
    assert probs_BV[::2].max(-1).values.tolist() == [1.0] * 3
    torch.testing.assert_close(probs_BV[1::2], (LOGITS_BV[1::2] / 5).softmax(-1))


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.8, top_p=0.7, top_k=9)])
def test_probs_are_what_tokens_are_drawn_from(sampling: SamplingParams) -> None:
    size = 20_000
    rows = [row(sampling, [1, 2], seed=seed) for seed in range(size)]
    draw = Draw(LOGITS_BV[:1].expand(size, -1), Places.next_of(rows))
    counts_V = torch.bincount(draw.tokens(Purpose.LLM_WRITE), minlength=40)
    probs_V = draw.probs()[0]
    if sampling.temperature == 0:
        assert counts_V[LOGITS_BV[0].argmax()] == size and probs_V[LOGITS_BV[0].argmax()] == 1
    else:
        assert p_value(counts_V, probs_V) > 1e-3
        assert int((probs_V > 0).sum()) <= 9


def test_places_of_judged_tokens_are_adjusted_by_what_precedes_each() -> None:
    """A provisional token counts for the penalties of those after it, not for its own."""
    judged = row(SamplingParams(presence_penalty=0.5), [3, 5, 9, 14], prompt_len=1)
    judged.num_provisional = 2
    places = Places.judged_of([judged])
    assert places.positions == [2, 3, 4]
    ours_MV = adjust(LOGITS_BV[:1].expand(3, -1), places, ())
    for index, seen in enumerate(([5], [5, 9], [5, 9, 14])):
        expected_V = LOGITS_BV[0].clone()
        expected_V[seen] -= 0.5
        torch.testing.assert_close(ours_MV[index], expected_V)
    noise = places.noise(torch.device("cpu"))(Purpose.ACCEPTANCE)
    assert len(set(noise.tolist())) == 3


def test_biases_are_added_and_ends_are_banned_before_min_tokens() -> None:
    params = SamplingParams(min_tokens=2, logit_bias=((4, 2.5), (7, -1.0), (8, 100.0)))
    one, two = row(params, [1, 2, 3]), row(params, [1, 2, 3, 4])
    ours_BV = adjusted([one, two], eos=(8, 11))
    assert ours_BV[0, 4] == LOGITS_BV[0, 4] + 2.5
    assert ours_BV[0, 7] == LOGITS_BV[0, 7] - 1.0
    assert ours_BV[0, [8, 11]].tolist() == [-torch.inf] * 2
    assert ours_BV[1, 8] == LOGITS_BV[1, 8] + 100
    assert ours_BV[1, 11] == LOGITS_BV[1, 11]
    assert adjusted([row(SamplingParams(), [1, 2])]) is not None
    untouched = LOGITS_BV[:1]
    assert adjust(untouched, Places.next_of([row(SamplingParams(), [1, 2])]), (8,)) is untouched


def test_a_hook_overrides_the_temperatures() -> None:
    rows = [row(SamplingParams(temperature=t), [1, 2], seed=3) for t in (0.0, 5.0, 1.0, 1.0, 0.0)]
    given = torch.tensor([2.0, 0.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    hooked = Draw(LOGITS_BV, Places.next_of(rows), (), given)
    asked = [row(SamplingParams(temperature=t), [1, 2], seed=3) for t in given.tolist()]
    plain = Draw(LOGITS_BV, Places.next_of(asked))
    torch.testing.assert_close(hooked.probs(), plain.probs())
    assert hooked.tokens(Purpose.DRAFT).tolist() == plain.tokens(Purpose.DRAFT).tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"min_tokens": -1},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        SamplingParams(**wrong)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(OptionError, match="stop string is empty"):
        SamplingParams(stop=("a", ""))
