"""Entropies, quantiles and selection against slow float64 references."""

import itertools
import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from navtoken import entropy
from navtoken.entropy import (
    BadPoolError,
    EmptyPoolError,
    LMHead,
    UnknownHeadError,
    entropy_from_hidden,
    entropy_from_logits,
    exact_quantile,
    exact_quantiles,
    scores_from_hidden,
    scores_from_logits,
    select_top,
    top_threshold,
)

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # So large that soft caps and scales change the entropies visibly.
    "initializer_range": 0.8,
}
SMALL = {name: value for name, value in SHAPE.items() if name != "head_dim"}


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


# ---- heads -----------------------------------------------------------------------------------------------------


def models():
    torch.manual_seed(0)
    yield "qwen3", Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    # 0.5 leaves the caps far below the logits, so leaving them out shows.
    yield "gemma2", Gemma2ForCausalLM(Gemma2Config(**SHAPE, final_logit_softcapping=0.5))
    yield "granite", GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=7.0))
    yield "cohere", CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25))
    biased = PhiForCausalLM(PhiConfig(**SMALL))
    torch.nn.init.normal_(biased.lm_head.bias, std=3.0)
    yield "phi", biased


@pytest.mark.parametrize(
    ("name", "model"), list(models()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_scores_from_hidden_states_are_those_of_the_models_own_logits(name, model):
    model = model.double().eval()
    ids = torch.randint(97, (1, 23), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1]
        hidden = model.base_model(input_ids=ids).last_hidden_state[0, :-1]
    head = LMHead.of(model)
    for chunk in (None, 1, 5, 22, 100):
        scores = scores_from_hidden(hidden, head, ids[0, 1:], temperature=0.7, chunk=chunk)
        expected = scores_from_logits(logits, ids[0, 1:], temperature=0.7)
        torch.testing.assert_close(scores.entropy_N, expected.entropy_N)
        torch.testing.assert_close(scores.logprob_N, expected.logprob_N)
        assert torch.equal(scores.argmax_N, expected.argmax_N)


def test_padded_rows_of_the_vocabulary_have_no_mass():
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE)).double()
    with torch.no_grad():
        model.lm_head.weight[90:] = 0.0
    hidden = torch.randn(12, 32, dtype=torch.float64)
    masked = model.lm_head(hidden).detach()
    masked[:, 90:] = -torch.inf
    head = LMHead.of(model, valid_vocabulary=90)
    assert head.vocabulary == 90
    torch.testing.assert_close(entropy_from_hidden(hidden, head), entropy_from_logits(masked))
    assert not torch.allclose(entropy_from_hidden(hidden, LMHead.of(model)), entropy_from_logits(masked))
    with pytest.raises(ValueError, match=r"token ids 3\.\.90 leave the LM head's 0\.\.89"):
        scores_from_hidden(hidden[:2], head, torch.tensor([3, 90]))


@pytest.mark.parametrize("valid", [0, 98])
def test_a_vocabulary_that_the_head_has_not_is_refused(valid):
    with pytest.raises(UnknownHeadError, match=rf"valid vocabulary {valid} is not in 1\.\.97"):
        LMHead.of(Qwen3ForCausalLM(Qwen3Config(**SHAPE)), valid_vocabulary=valid)


def test_an_architecture_with_an_unknown_head_is_refused():
    class Doubled(Qwen3ForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 2
            return output

    with pytest.raises(UnknownHeadError, match="Doubled's logits differ"):
        LMHead.of(Doubled(Qwen3Config(**SHAPE)))


def test_a_long_response_never_has_all_its_logits_at_once(monkeypatch):
    largest = []
    plain = LMHead.logits
    monkeypatch.setattr(
        LMHead, "logits", lambda self, h: largest.append(h.shape[0] * self.vocabulary) or plain(self, h)
    )
    monkeypatch.setattr("navtoken.entropy.CHUNK_ELEMENTS", 5000)
    entropy = entropy_from_hidden(torch.randn(1000, 8), LMHead(torch.randn(100, 8)))
    assert entropy.shape == (1000,)
    assert max(largest) <= 5000
    assert len(largest) == 20


def test_an_empty_response_has_no_scores():
    scores = scores_from_hidden(torch.randn(0, 8), LMHead(torch.randn(100, 8)), torch.zeros(0).long())
    assert scores.entropy_N.shape == scores.argmax_N.shape == scores.logprob_N.shape == (0,)


@pytest.mark.parametrize("blocks", [1, 40, 10**6])
def test_blocks_that_caches_hold_change_nothing(monkeypatch, blocks):
    generator = torch.Generator().manual_seed(7)
    hidden, head = torch.randn(30, 8, generator=generator), LMHead(torch.randn(20, 8, generator=generator))
    ids = torch.randint(20, (30,), generator=generator)
    expected = scores_from_logits(head.logits(hidden), ids)
    monkeypatch.setattr("navtoken.entropy._CACHED_ELEMENTS", blocks)
    scores = scores_from_hidden(hidden, head, ids, chunk=7)
    for name in ("entropy_N", "argmax_N", "logprob_N", "margin_N"):
        torch.testing.assert_close(getattr(scores, name), getattr(expected, name))


@pytest.mark.parametrize("inference", [False, True])
def test_threads_score_blocks_alone_and_leave_no_trace(monkeypatch, inference):
    generator = torch.Generator().manual_seed(8)
    hidden, head = torch.randn(30, 8, generator=generator), LMHead(torch.randn(20, 8, generator=generator))
    ids = torch.randint(20, (30,), generator=generator)
    expected = scores_from_hidden(hidden, head, ids)
    plain, seen, before = entropy._scores_of_spare, set(), torch.get_num_threads()

    def watched(*args):
        seen.add((threading.current_thread().name, torch.get_num_threads(), torch.is_grad_enabled()))
        return plain(*args)

    monkeypatch.setattr(entropy, "_CACHED_ELEMENTS", 20)
    monkeypatch.setattr(entropy, "_scores_of_spare", watched)
    started = []
    try:
        torch.set_num_threads(3)
        with torch.inference_mode(inference):
            scores = scores_from_hidden(hidden, head, ids)
        assert torch.get_num_threads() == 3
        another = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
        another.start()
        another.join()
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(scores.entropy_N, expected.entropy_N)
    torch.testing.assert_close(scores.logprob_N, expected.logprob_N)
    assert started == [3]
    assert {(number, grad) for _, number, grad in seen} == {(1, False)}
    assert threading.current_thread().name not in {name for name, _, _ in seen}


@pytest.mark.parametrize("kind", ["hooks", "type"])
def test_a_head_whose_weight_cannot_be_read_computes_by_itself(kind):
    """As one that is offloaded, sharded among ranks, or quantised."""
    torch.manual_seed(0)
    model = PhiForCausalLM(PhiConfig(**SMALL)).eval()
    torch.nn.init.normal_(model.lm_head.bias, std=3.0)
    hidden = torch.randn(12, 32)
    expected = scores_from_logits(model.lm_head(hidden)[:, :90].detach())
    calls = []
    if kind == "hooks":
        model.lm_head.register_forward_pre_hook(lambda *_: calls.append("pre"))
    else:

        class Odd(torch.nn.Parameter):
            pass

        model.lm_head.weight = Odd(model.lm_head.weight.detach())
    head = LMHead.of(model, valid_vocabulary=90)
    assert head.layer is model.lm_head
    scores = scores_from_hidden(hidden, head, chunk=5)
    torch.testing.assert_close(scores.entropy_N, expected.entropy_N)
    torch.testing.assert_close(scores.margin_N, expected.margin_N)
    assert len(calls) == (5 if kind == "hooks" else 0)


# ---- quantiles -------------------------------------------------------------------------------------------------

pools = st.sampled_from([np.float32, np.float64]).flatmap(
    lambda kind: hnp.arrays(
        kind,
        st.integers(1, 60),
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5]),
            st.floats(-1e6, 1e6, width=32 if kind is np.float32 else 64),
        ),
    )
)


@settings(deadline=None, max_examples=60)
@given(pools, st.floats(0, 1), st.integers(1, 7))
def test_quantile_is_that_of_numpy_however_the_pool_is_cut(pool, q, cut):
    # numpy interpolates in the pool's own type, so the reference gets the same numbers in float64.
    expected = np.quantile(pool.astype(np.float64), q)
    chunks = [pool[start : start + cut] for start in range(0, len(pool), cut)]
    for given_pool in (pool, torch.from_numpy(pool), chunks, iter(chunks)):
        assert exact_quantile(given_pool, q) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_quantile_past_the_limit_of_torch():
    size = 2**24 + 12_345
    pool = torch.rand(size, generator=torch.Generator().manual_seed(3))
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(pool, 0.8)
    ordered = np.sort(pool.numpy())
    for q, ours in zip((0.5, 0.8, 0.999), exact_quantiles(pool, (0.5, 0.8, 0.999)), strict=True):
        position = q * (size - 1)
        low, high = (float(ordered[math.floor(position) + step]) for step in (0, 1))
        assert ours == low + (high - low) * (position - math.floor(position))
    k = math.ceil(0.2 * size)
    assert top_threshold(pool.split(2**21), 0.2) == float(ordered[size - k])


def test_padding_is_never_counted():
    pool = torch.tensor([[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 5.0, torch.nan]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    assert exact_quantile(pool, 0.5, mask) == 3.0
    assert exact_quantile([pool[0], pool[1]], 0.5, [mask[0], mask[1]]) == 3.0
    assert top_threshold(pool, 0.4, mask) == 4.0


def test_columns_of_a_trace_are_read_only_and_do():
    pool = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    pool.flags.writeable = False
    assert exact_quantile(pool, 0.5) == 2.0


def test_pools_that_have_no_quantile():
    with pytest.raises(EmptyPoolError, match="no element counts"):
        exact_quantile(torch.zeros(0), 0.5)
    with pytest.raises(EmptyPoolError, match="mask is all False"):
        exact_quantile(torch.zeros(4), 0.5, torch.zeros(4, dtype=torch.bool))
    with pytest.raises(EmptyPoolError):
        exact_quantile([], 0.5)
    with pytest.raises(BadPoolError, match="mask it out"):
        exact_quantile(torch.tensor([0.0, torch.nan]), 0.5)
    with pytest.raises(BadPoolError, match="shapes differ"):
        exact_quantile(torch.zeros(4), 0.5, torch.ones(3))
    with pytest.raises(ValueError, match=r"quantile 80 is not in 0\.\.1"):
        exact_quantile(torch.zeros(4), 80)


# ---- selection -------------------------------------------------------------------------------------------------

few_values = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 12)),
    elements=st.sampled_from([0.0, 0.25, 1.0, 2.0]),
)


@settings(deadline=None, max_examples=150)
@given(few_values, st.floats(0.01, 1), st.randoms(use_true_random=False))
def test_selection_with_many_ties(entropy, fraction, rng):
    mask = np.array([[rng.random() < 0.7 for _ in row] for row in entropy])
    values = sorted(entropy[mask].tolist(), reverse=True)
    if not values:
        with pytest.raises(EmptyPoolError):
            select_top(torch.from_numpy(entropy), torch.from_numpy(mask), fraction)
        return
    k = max(1, math.ceil(round(fraction * len(values), 6)))
    exact = select_top(torch.from_numpy(entropy), torch.from_numpy(mask), fraction, ties="exact")
    threshold = select_top(torch.from_numpy(entropy), torch.from_numpy(mask), fraction, ties="threshold")
    for selection in (exact, threshold):
        assert selection.threshold == values[k - 1]
        assert not (selection.mask.numpy() & ~mask).any()
        assert selection.fraction == selection.mask.sum().item() / len(values)
    assert exact.mask.sum() == k
    assert sorted(entropy[exact.mask.numpy()].tolist(), reverse=True) == values[:k]
    assert (threshold.mask.numpy() == (mask & (entropy >= values[k - 1]))).all()
    assert (threshold.mask | ~exact.mask).all()


def test_of_equal_tokens_the_earlier_are_selected():
    selection = select_top(torch.tensor([[1.0, 1.0, 3.0], [1.0, 1.0, 1.0]]), fraction=0.5, ties="exact")
    assert selection.mask.tolist() == [[True, True, True], [False, False, False]]


@pytest.mark.parametrize(
    ("size", "fraction"), [*itertools.product([1, 3, 100, 1000], [0.001, 0.07, 0.2, 1.0])]
)
def test_realised_fraction_is_the_asked_one_rounded_up_to_tokens(size, fraction):
    entropy = torch.randperm(size, generator=torch.Generator().manual_seed(4)).float()
    for ties in ("threshold", "exact"):
        k = select_top(entropy, fraction=fraction, ties=ties).mask.sum().item()
        assert k == max(1, -(-round(fraction * 1000) * size // 1000))


@pytest.mark.parametrize("fraction", [0.0, -0.2, 1.5, 20])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(ValueError, match="0.2 keeps the top 20 %"):
        select_top(torch.zeros(4), fraction=fraction)


def test_unknown_ties_are_refused():
    with pytest.raises(ValueError, match="use 'threshold' or 'exact'"):
        select_top(torch.zeros(4), ties="random")
