"""Scores out of hidden states: the LM head's own logits, in chunks, by any number of threads."""

import threading

import pytest
import torch
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
    LMHead,
    UnknownHeadError,
    entropy_from_hidden,
    entropy_from_logits,
    scores_from_hidden,
    scores_from_logits,
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
