"""The runner's ways through attention: blocks in any order, rows fed in any pieces, windows, long rows, refusals."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from navtoken.checkpoints import LoadedModel, UnsupportedModelError
from navtoken.engine import Ledger, attention
from navtoken.engine.attention import paged_attention
from navtoken.engine.kv_cache import KVCache
from navtoken.engine.packing import Feed, Packed, by_block
from navtoken.engine.runner import ModelRunner
from navtoken.policies import Writer
from tiny_models import CONTEXT, VOCAB_SIZE, prompts, tiny_model

BLOCK_SIZE = 8


def runner_of(loaded: LoadedModel, num_blocks: int = 200) -> ModelRunner:
    cache = KVCache(num_blocks, BLOCK_SIZE, torch.device("cpu"))
    return ModelRunner(Writer.LLM, Ledger(), loaded, VOCAB_SIZE, cache)


def check(runner: ModelRunner, texts: list[list[int]], tables: list[list[int]], cuts: list[int]) -> None:
    """Feed each text in pieces that end at its length / cuts, and compare with full prefills."""
    done = [0] * len(texts)
    for cut in cuts:
        asked = [index for index, text in enumerate(texts) if done[index] < len(text)]
        feeds = [
            Feed(tables[i], done[i], texts[i][done[i] : max(done[i] + 1, len(texts[i]) // cut)])
            for i in asked
        ]
        logits_MV = runner.forward(feeds, ()).logits_MV
        for index, feed, logits_V in zip(asked, feeds, logits_MV, strict=True):
            done[index] = feed.end
            with torch.no_grad():
                full = runner.loaded.model(torch.tensor([texts[index][: feed.end]]), use_cache=False)
            torch.testing.assert_close(logits_V, full.logits[0, -1, :VOCAB_SIZE], atol=5e-6, rtol=0)
    assert done == [len(text) for text in texts]


def tables_of(texts: list[list[int]], order: str) -> list[list[int]]:
    """Block tables: rows one after the other, taking turns, backwards, or with gaps."""
    counts = [-(-len(text) // BLOCK_SIZE) for text in texts]
    places = [(row, index) for row, count in enumerate(counts) for index in range(count)]
    if order == "in turns":
        places.sort(key=lambda place: (place[1], place[0]))
    blocks = {place: at * (3 if order == "gaps" else 1) for at, place in enumerate(places)}
    if order == "backwards":
        blocks = {place: len(places) - at for place, at in blocks.items()}
    return [[blocks[row, index] for index in range(count)] for row, count in enumerate(counts)]


@pytest.mark.parametrize("kind", ["gemma2", "qwen3"])
@pytest.mark.parametrize("order", ["one by one", "in turns", "backwards", "gaps"])
@pytest.mark.parametrize("gap_bytes", [0, 1 << 18])
def test_blocks_in_any_order(kind: str, order: str, gap_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("navtoken.engine.kv_cache.GAP_BYTES", gap_bytes)
    texts = prompts(4, seed=2, shortest=20, longest=100)
    check(runner_of(tiny_model(kind)), texts, tables_of(texts, order), cuts=[9, 8, 4, 3, 2, 1])


@pytest.mark.parametrize("kind", ["gemma2", "qwen3"])
def test_long_rows_attend_in_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("navtoken.engine.block_attention.MOST_SCORES", 1500)
    texts = [*prompts(2, seed=4, shortest=150, longest=180), *prompts(2, seed=5)]
    check(runner_of(tiny_model(kind)), texts, tables_of(texts, "in turns"), cuts=[2, 1])


@pytest.mark.parametrize("gap_bytes", [0, 1 << 18])
def test_rows_of_one_block_each_in_another_order_than_their_blocks(
    gap_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("navtoken.engine.kv_cache.GAP_BYTES", gap_bytes)
    texts = prompts(4, seed=6, shortest=6, longest=6)
    check(runner_of(tiny_model("qwen3")), texts, [[7], [3], [5], [1]], cuts=[2, 1])


def test_a_block_used_again_shows_nothing_of_its_past() -> None:
    runner = runner_of(tiny_model("llama"), num_blocks=8)
    for seed, length, cuts in ((0, 50, [1]), (9, 30, [3, 1])):
        texts = prompts(1, seed=seed, shortest=length, longest=length)
        check(runner, texts, tables_of(texts, "backwards"), cuts)


def test_a_sequence_as_long_as_the_context() -> None:
    texts = prompts(1, shortest=CONTEXT, longest=CONTEXT)
    check(runner_of(tiny_model("gemma2")), texts, tables_of(texts, "one by one"), cuts=[2, 1])


def test_no_more_is_read_than_rounding_and_small_gaps_allow() -> None:
    """Work is counted: pairs of a row and a block that the products run over, and nobody's among them."""
    texts = prompts(16, seed=3, shortest=60, longest=120)
    cache = KVCache(800, BLOCK_SIZE, torch.device("cpu"))
    cache.write(0, torch.arange(2), torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))
    for order, most in (("one by one", 1.125), ("gaps", 1.0)):
        tables = tables_of(texts, order)
        feeds = [Feed(table, len(text) - 1, text[-1:]) for table, text in zip(tables, texts, strict=True)]
        (group,) = Packed.of(feeds, cache, torch.device("cpu")).groups
        needed = sum(map(len, tables))
        cache_gap = 0 if order == "gaps" else cache.max_gap
        found = by_block(tuple(map(tuple, tables)), cache_gap, cache.num_blocks)
        assert len(found.owner_E) == sum(count for _, _, count in found.runs) <= most * needed
        assert (found.owner_E < len(texts)).sum() == needed
        assert len(found.runs) == (1 if order == "one by one" else needed)
        assert group.num_new == 1 and group.is_everything


def test_the_model_attends_in_its_own_way_afterwards() -> None:
    loaded = tiny_model("qwen3")
    before = loaded.model.config._attn_implementation
    runner_of(loaded).forward([Feed([0], 0, [3, 4])], ())
    assert loaded.model.config._attn_implementation == before != attention.NAME


def test_attention_that_asks_for_more_is_refused_not_ignored() -> None:
    heads = torch.zeros(1, 2, 1, 8)
    cache = KVCache(1, 8, torch.device("cpu"))
    packed = Packed.of([Feed([0], 0, [3])], cache, torch.device("cpu"))
    with pytest.raises(UnsupportedModelError, match="s_aux"):
        paged_attention(torch.nn.Identity(), heads, heads, heads, None, packed=packed, s_aux=torch.zeros(2))


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
