"""The runner's ways through attention: neighbouring and scattered slots, split groups, growing caches, refusals."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from navtoken.checkpoints import LoadedModel, UnsupportedModelError
from navtoken.engine import Ledger, attention
from navtoken.engine.attention import Feed, Plan, slotted_attention
from navtoken.engine.kv_cache import KVCache
from navtoken.engine.runner import ModelRunner
from navtoken.policies import Writer
from tiny_models import CONTEXT, VOCAB_SIZE, prompts, tiny_model


def runner_of(loaded: LoadedModel) -> ModelRunner:
    return ModelRunner(Writer.LLM, Ledger(), loaded, VOCAB_SIZE)


def check(runner: ModelRunner, texts: dict[int, list[int]], cuts: list[int]) -> None:
    """Feed each slot's text in pieces that end at its length / cuts, and compare with full prefills."""
    done = dict.fromkeys(texts, 0)
    for cut in cuts:
        feeds = [
            Feed(slot, done[slot], text[done[slot] : max(done[slot] + 1, len(text) // cut)])
            for slot, text in texts.items()
            if done[slot] < len(text)
        ]
        logits_NV = runner.forward(feeds, 1).logits_NV
        for feed, logits_V in zip(feeds, logits_NV, strict=True):
            done[feed.slot] = feed.end
            with torch.no_grad():
                full = runner.loaded.model(torch.tensor([texts[feed.slot][: feed.end]]), use_cache=False)
            torch.testing.assert_close(logits_V, full.logits[0, -1, :VOCAB_SIZE], atol=5e-6, rtol=0)
    assert all(done[slot] == len(text) for slot, text in texts.items())


@pytest.mark.parametrize("kind", ["gemma2", "qwen3"])
@pytest.mark.parametrize("slots", [[0, 1, 2, 3], [3, 2, 1, 0], [0, 9, 4, 30], [7, 5, 8, 2]])
def test_any_slots_in_any_order(kind: str, slots: list[int]) -> None:
    texts = dict(zip(slots, prompts(4, seed=2, shortest=20, longest=100), strict=True))
    check(runner_of(tiny_model(kind)), texts, cuts=[9, 8, 4, 3, 2, 1])


def test_groups_are_split_where_masks_would_grow_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_MASK_ELEMENTS", 2000)
    texts = dict(enumerate(prompts(6, seed=4, shortest=30, longest=40)))
    check(runner_of(tiny_model("gemma2")), texts, cuts=[2, 1])


def test_a_slot_used_again_shows_nothing_of_its_past() -> None:
    runner = runner_of(tiny_model("llama"))
    check(runner, {0: prompts(1, shortest=50, longest=50)[0]}, cuts=[1])
    check(runner, {0: prompts(1, seed=9, shortest=30, longest=30)[0]}, cuts=[3, 1])


def test_a_sequence_as_long_as_the_context() -> None:
    check(runner_of(tiny_model("gemma2")), {1: prompts(1, shortest=CONTEXT, longest=CONTEXT)[0]}, cuts=[2, 1])


def test_the_model_attends_in_its_own_way_afterwards() -> None:
    loaded = tiny_model("qwen3")
    before = loaded.model.config._attn_implementation
    runner_of(loaded).forward([Feed(0, 0, [3, 4])], 1)
    assert loaded.model.config._attn_implementation == before != attention.NAME


def test_attention_that_asks_for_more_is_refused_not_ignored() -> None:
    heads = torch.zeros(1, 2, 1, 8)
    plan = Plan(KVCache(), torch.tensor([0]), torch.tensor([0]), [])
    with pytest.raises(UnsupportedModelError, match="s_aux"):
        slotted_attention(torch.nn.Identity(), heads, heads, heads, None, plan=plan, s_aux=torch.zeros(2))


def test_attention_sinks_are_refused_at_load() -> None:
    config = CONFIG_MAPPING["gpt_oss"](
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match="attention sinks"):
        LoadedModel(model, tiny_model("qwen3").tokenizer, "tiny:gpt-oss")
