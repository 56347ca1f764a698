"""What the engine must reproduce exactly, on random models of every architecture that it serves."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from navtoken.checkpoints import LoadedModel
from navtoken.engine import Engine, EngineOptions, SamplingParams, Sequence
from navtoken.engine.runner import Extension, ModelRunner
from navtoken.entropy import entropy_from_logits
from navtoken.policies import Purpose, Writer, make_policy
from tiny_models import CONTEXT, KINDS, PADDED_VOCAB_SIZE, VOCAB_SIZE, WINDOW, prompts, tiny_pair

MAX_TOKENS = 40
TOLERANCE = {"qwen3_moe": 2e-4}
"""Of logits: its experts only run in float32; the others run in float64, with norms that round to float32."""


def generated(loaded: LoadedModel, prompt_ids: list[int]) -> list[int]:
    """What `transformers` generates greedily for one prompt."""
    prompt = torch.tensor([prompt_ids])
    padded_rows = list(range(VOCAB_SIZE, PADDED_VOCAB_SIZE))
    out = loaded.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        suppress_tokens=padded_rows,
    )
    return out[0, len(prompt_ids) :].tolist()


@torch.no_grad()
def full_logits(loaded: LoadedModel, token_ids: list[int]) -> torch.Tensor:
    """Logits at every position from one plain forward of the model, (len, V)."""
    return loaded.model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0, :, :VOCAB_SIZE]


@pytest.mark.parametrize("name", ["slm", "llm"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_model_alone_writes_what_generate_writes(kind: str, name: str) -> None:
    pair = tiny_pair(kind)
    engine = Engine(pair, make_policy(name), EngineOptions(max_rows=4))
    rows = [engine.add(prompt, max_tokens=MAX_TOKENS) for prompt in prompts(7)]
    list(engine.run())
    for row in rows:
        assert row.response_ids == generated(getattr(pair, name), row.token_ids[: row.prompt_len])
    assert max(len(row.token_ids) for row in rows) > 3 * WINDOW
    assert max(len(set(row.response_ids)) for row in rows) > 5


class Spied:
    """Notes what a runner said about each row, and about which tokens."""

    def __init__(self, engine: Engine) -> None:
        self.said: dict[Writer, list[tuple[list[int], torch.Tensor]]] = {model: [] for model in Writer}
        for model in Writer:
            self._spy(engine.runners[model], model)

    def _spy(self, runner: Any, model: Writer) -> None:
        extend = runner.extend

        def spying(rows: list[Sequence], num_logits: int = 1) -> Extension:
            extension = extend(rows, num_logits)
            for row, logits_V in zip(rows, extension.logits_NV, strict=True):
                self.said[model].append((list(row.token_ids), logits_V.clone()))
            return extension

        runner.extend = spying


@pytest.mark.parametrize("kind", KINDS)
def test_logits_after_any_routing_are_those_of_a_full_prefill(kind: str) -> None:
    pair = tiny_pair(kind)
    engine = Engine(pair, make_policy("random:0.3"), EngineOptions(max_rows=4, llm_min_rows=2))
    spied = Spied(engine)
    for index, prompt in enumerate(prompts(6, seed=3)):
        engine.add(prompt, SamplingParams(ignore_eos=True), max_tokens=30, seed=index)
    list(engine.run())
    assert engine.ledger.llm.catchup_tokens > 0
    for model in Writer:
        assert len(spied.said[model]) > 20
        for token_ids, logits_V in spied.said[model]:
            expected_V = full_logits(pair[model], token_ids)[-1]
            torch.testing.assert_close(logits_V, expected_V, atol=TOLERANCE.get(kind, 5e-6), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_depend_on_neither_batch_nor_batching_rule(kind: str) -> None:
    pair = tiny_pair(kind)
    sampling = SamplingParams(temperature=0.8, top_p=0.95, presence_penalty=0.2)

    def responses(options: EngineOptions) -> Iterator[tuple[list[int], list[int], str | None]]:
        engine = Engine(pair, make_policy("random:0.25"), options)
        rows = [engine.add(each, sampling, 25, seed=index) for index, each in enumerate(prompts(6, seed=5))]
        list(engine.run())
        return ((row.response_ids, row.record.writer, row.finish_reason) for row in rows)

    alone = list(responses(EngineOptions(max_rows=1)))
    assert list(responses(EngineOptions(max_rows=6, llm_min_rows=1))) == alone
    assert list(responses(EngineOptions(max_rows=4, llm_min_rows=3))) == alone


@pytest.mark.parametrize("kind", KINDS)
def test_the_ledger_counts_what_hooks_on_the_models_count(kind: str) -> None:
    pair = tiny_pair(kind)
    engine = Engine(pair, make_policy("random:0.3"), EngineOptions(max_rows=3, llm_min_rows=2))
    tokens, passes, heads = [0, 0], [0, 0], [0, 0]

    def count(model: Writer, loaded: LoadedModel) -> list[Any]:
        def fed(_: Any, inputs: tuple) -> None:
            tokens[model] += inputs[0].numel()
            passes[model] += 1

        def asked(_: Any, inputs: tuple) -> None:
            heads[model] += inputs[0].shape[:-1].numel()

        body, head = loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings()
        return [body.register_forward_pre_hook(fed), head.register_forward_pre_hook(asked)]

    handles = [handle for model in Writer for handle in count(model, pair[model])]
    rows = [engine.add(prompt, max_tokens=20, seed=index) for index, prompt in enumerate(prompts(5))]
    list(engine.run())
    for handle in handles:
        handle.remove()
    for model in Writer:
        counted = engine.ledger.models[model]
        assert (counted.tokens, counted.passes, counted.head_tokens) == (
            tokens[model],
            passes[model],
            heads[model],
        )
        assert counted.tokens == sum(row.ledger.models[model].tokens for row in rows)
    prompted = [row for row in rows if 1 in row.record.writer]
    assert engine.ledger.slm.prefill_tokens == sum(row.prompt_len for row in rows)
    assert engine.ledger.llm.prefill_tokens == sum(row.prompt_len for row in prompted)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_entropies_and_logprobs_are_those_of_a_full_prefill(kind: str) -> None:
    pair = tiny_pair(kind)
    engine = Engine(pair, make_policy("random:0.4"), EngineOptions(num_alternatives=3))
    row = engine.add(prompts(1)[0], SamplingParams(temperature=1.0, ignore_eos=True), max_tokens=30)
    list(engine.run())
    for model, entropies, logprobs in (
        (Writer.SLM, row.record.entropy_slm, row.record.logprob_slm),
        (Writer.LLM, row.record.entropy_llm, row.record.logprob_llm),
    ):
        logits_TV = full_logits(pair[model], row.token_ids)[row.prompt_len - 1 : -1]
        ran = torch.tensor([not math.isnan(value) for value in entropies])
        assert ran.sum() >= 5
        assert bool(ran.all()) == (model is Writer.SLM)
        entropy_T = entropy_from_logits(logits_TV).double()
        logprobs_TV = logits_TV.double().log_softmax(-1)
        chosen_T = logprobs_TV[torch.arange(len(logits_TV)), torch.tensor(row.response_ids)]
        tolerance = {"atol": 10 * TOLERANCE.get(kind, 5e-6), "rtol": 0.0}
        torch.testing.assert_close(torch.tensor(entropies).double()[ran], entropy_T[ran], **tolerance)
        torch.testing.assert_close(torch.tensor(logprobs).double()[ran], chosen_T[ran], **tolerance)
        best = logprobs_TV.topk(3)
        wrote = [index for index, writer in enumerate(row.record.writer) if writer == model]
        assert [row.record.top_ids[index] for index in wrote] == best.indices[wrote].tolist()
        told = torch.tensor([row.record.top_logprobs[index] for index in wrote]).double()
        torch.testing.assert_close(told, best.values[wrote], **tolerance)


def test_several_logits_per_row_are_those_of_a_full_prefill() -> None:
    pair = tiny_pair("gemma2")
    engine = Engine(pair, make_policy("slm"))
    runner = engine.runners[Writer.LLM]
    assert isinstance(runner, ModelRunner)
    rows = [engine.add(prompt, SamplingParams(ignore_eos=True)) for prompt in prompts(4, shortest=4)]
    engine.step()
    extension = runner.extend(rows, num_logits=3)
    expected = [full_logits(pair.llm, row.token_ids)[-3:] for row in rows]
    torch.testing.assert_close(extension.logits_NV, torch.cat(expected), atol=5e-6, rtol=0)
    assert extension.hidden_ND.shape == (12, 32)


def test_a_fork_goes_on_as_its_parent_would_without_computing_the_prefix_again() -> None:
    pair = tiny_pair("gemma2")
    engine = Engine(pair, make_policy("random:0.3"), EngineOptions(max_rows=8, llm_min_rows=1))
    parent = engine.add(prompts(1, shortest=20)[0], SamplingParams(ignore_eos=True), max_tokens=30, seed=7)
    for _ in range(12):
        engine.step()
    fed = engine.ledger.slm.tokens
    fork = engine.fork(parent, sample=parent.sample, max_tokens=30 - parent.num_response)
    shared = fork.prompt_len
    engine.step()
    assert engine.ledger.slm.tokens - fed <= 3
    list(engine.run())
    assert fork.token_ids == parent.token_ids
    assert fork.record.writer == parent.record.writer[shared - parent.prompt_len :]


def test_weights_changed_in_place_are_used_after_reload() -> None:
    pair = tiny_pair("llama")
    engine = Engine(pair, make_policy("random:0.3"), EngineOptions(llm_min_rows=1))
    row = engine.add(prompts(1)[0], SamplingParams(ignore_eos=True), max_tokens=20)
    for _ in range(6):
        engine.step()
    key = pair.slm.model.model.layers[0].self_attn.k_proj.weight
    original = key.detach().clone()
    try:
        key.mul_(-1.5)
        engine.reload_weights()
        spied = Spied(engine)
        engine.step()
        token_ids, logits_V = spied.said[Writer.SLM][0]
        torch.testing.assert_close(logits_V, full_logits(pair.slm, token_ids)[-1], atol=5e-6, rtol=0)
    finally:
        key.copy_(original)
    assert len(token_ids) == len(row.token_ids) - 1 < CONTEXT


def test_purposes_share_no_noise() -> None:
    """The same model on both sides: were drafts and LLM writes drawn with the same noise, they would agree."""
    pair = tiny_pair("qwen2")
    engine = Engine(type(pair)(pair.llm, pair.llm), make_policy("random:1"))
    row = engine.add(prompts(1)[0], SamplingParams(temperature=1.5, ignore_eos=True), max_tokens=60)
    list(engine.run())
    agreements = sum(a == b for a, b in zip(row.record.draft_ids, row.response_ids, strict=True))
    assert agreements < 40
    assert {int(purpose) for purpose in Purpose} == {0, 1, 2, 3, 4}
