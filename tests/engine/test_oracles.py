"""What the engine must reproduce exactly, on random models of every architecture that it serves."""

import math
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from functools import cache
from typing import Any

import pytest
import torch

from navtoken.checkpoints import LoadedModel
from navtoken.engine import Engine, EngineOptions, SamplingParams, Sequence
from navtoken.engine.runner import Extension
from navtoken.entropy import entropy_from_logits
from navtoken.policies import Purpose, Writer, make_policy
from tiny_models import (
    CONTEXT,
    EOS,
    KINDS,
    PADDED_VOCAB_SIZE,
    VOCAB_SIZE,
    WINDOW,
    near_pair,
    prompts,
    tiny_pair,
)

MAX_TOKENS = 40
TOLERANCE = {"qwen3_moe": 2e-4}
"""Of logits: its experts only run in float32; the others run in float64, with norms that round to float32."""


def generated(loaded: LoadedModel, prompt_ids: Seq[int], eos: Seq[int] = (EOS,)) -> list[int]:
    """What `transformers` generates greedily for one prompt."""
    prompt = torch.tensor([prompt_ids])
    padded_rows = list(range(VOCAB_SIZE, PADDED_VOCAB_SIZE))
    out = loaded.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        eos_token_id=list(eos),
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
    """Notes what a runner said, and about which tokens."""

    def __init__(self, engine: Engine) -> None:
        self.said: dict[Writer, list[tuple[list[int], torch.Tensor]]] = {model: [] for model in Writer}
        for model in Writer:
            self._spy(engine.runners[model], model)

    def _spy(self, runner: Any, model: Writer) -> None:
        extend = runner.extend

        def spying(dealt: list[tuple[Sequence, int]], *others: Any) -> Extension:
            extension = extend(dealt, *others)
            places = [place for row, end in dealt for place in _asked(row, end, model)]
            for token_ids, logits_V in zip(places, extension.logits_MV, strict=True):
                self.said[model].append((token_ids, logits_V.clone()))
            return extension

        runner.extend = spying


def _asked(row: Sequence, end: int, model: Writer) -> list[list[int]]:
    """The tokens after which logits of a row fed up to `end` are had."""
    if end < len(row.token_ids):
        return []
    num_judged = row.num_provisional if model is Writer.LLM else 0
    return [row.token_ids[: end - back] for back in range(num_judged, -1, -1)]


@pytest.mark.parametrize("policy", ["random:0.3", "speculative:3"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_after_any_routing_are_those_of_a_full_prefill(kind: str, policy: str) -> None:
    pair = near_pair(kind)
    engine = Engine(pair, make_policy(policy), EngineOptions(max_rows=4, llm_min_rows=2))
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


@pytest.mark.parametrize("policy", ["random:0.25", "speculative:3"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_depend_on_neither_batch_nor_batching_rule(kind: str, policy: str) -> None:
    pair = near_pair(kind)
    sampling = SamplingParams(temperature=0.8, top_p=0.95, presence_penalty=0.2)

    def responses(options: EngineOptions) -> Iterator[tuple[list[int], list[int], str | None]]:
        engine = Engine(pair, make_policy(policy), options)
        rows = [engine.add(each, sampling, 25, seed=index) for index, each in enumerate(prompts(6, seed=5))]
        list(engine.run())
        return ((row.response_ids, row.record.writer, row.finish_reason) for row in rows)

    alone = list(responses(EngineOptions(max_rows=1)))
    assert list(responses(EngineOptions(max_rows=6, llm_min_rows=1))) == alone
    assert list(responses(EngineOptions(max_rows=4, llm_min_rows=3))) == alone
    assert list(responses(EngineOptions(max_rows=6))) == alone


@pytest.mark.parametrize("policy", ["slm", "llm", "random:0.25", "speculative:4"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_depend_on_neither_blocks_nor_chunks_nor_scarcity(
    kind: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scattered blocks, prompts fed in parts of 5 tokens, and rows that are put back and computed again."""
    pair = near_pair(kind)
    sampling = SamplingParams(temperature=0.8, ignore_eos=True)

    def decode(options: EngineOptions) -> tuple[Engine, list]:
        engine = Engine(pair, make_policy(policy), options)
        rows = [engine.add(each, sampling, 20, seed=index) for index, each in enumerate(prompts(7, seed=6))]
        list(engine.run())
        return engine, [(row.response_ids, row.record.writer, row.finish_reason) for row in rows]

    _, ample = decode(EngineOptions(max_rows=4))
    monkeypatch.setattr("navtoken.engine.scheduler.SHORT", 2)
    engine, scattered = decode(EngineOptions(max_rows=4, block_size=4, prefill_chunk=5))
    assert scattered == ample
    num_tokens = 60
    cache_gib = num_tokens * (pair.slm.card.kv_bytes + pair.llm.card.kv_bytes) / 2**30
    engine, scarce = decode(EngineOptions(max_rows=4, block_size=4, prefill_chunk=5, cache_gib=cache_gib))
    assert engine.memory.capacity == num_tokens
    assert engine.scheduler.num_put_back > 0
    assert scarce == ample


@pytest.mark.parametrize("policy", ["random:0.3", "speculative:3"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ledger_counts_what_hooks_on_the_models_count(kind: str, policy: str) -> None:
    pair = near_pair(kind)
    engine = Engine(pair, make_policy(policy), EngineOptions(max_rows=3, llm_min_rows=2))
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
    prompted = [row for row in rows if 1 in row.record.writer or row.ledger.verifications]
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


@pytest.mark.parametrize("kind", KINDS)
def test_what_speculation_records_is_that_of_a_full_prefill(kind: str) -> None:
    pair = near_pair(kind)
    engine = Engine(pair, make_policy("speculative:4"), EngineOptions(num_alternatives=3))
    row = engine.add(prompts(1)[0], SamplingParams(temperature=0.7, ignore_eos=True), max_tokens=60)
    list(engine.run())
    by_llm = torch.tensor(row.record.writer, dtype=torch.bool)
    accepted = ~by_llm
    assert accepted.sum() > 5 and by_llm.sum() > 5
    tolerance = {"atol": 10 * TOLERANCE.get(kind, 5e-6), "rtol": 0.0}
    logprobs = {}
    for model, entropies, told in (
        (Writer.SLM, row.record.entropy_slm, row.record.logprob_slm),
        (Writer.LLM, row.record.entropy_llm, row.record.logprob_llm),
    ):
        logits_TV = full_logits(pair[model], row.token_ids)[row.prompt_len - 1 : -1].double()
        logprobs[model] = logits_TV.log_softmax(-1)
        chosen_T = logprobs[model][torch.arange(len(logits_TV)), torch.tensor(row.response_ids)]
        known = ~torch.tensor(entropies).isnan()
        assert bool(known.all()) == (model is Writer.LLM)
        torch.testing.assert_close(
            torch.tensor(entropies).double()[known],
            entropy_from_logits(logits_TV)[known].double(),
            **tolerance,
        )
        known = ~torch.tensor(told).isnan()
        assert bool((known == (accepted | (model is Writer.LLM))).all())
        torch.testing.assert_close(torch.tensor(told).double()[known], chosen_T[known], **tolerance)
    for index, writer in enumerate(row.record.writer):
        best = logprobs[Writer(writer)][index].topk(3)
        assert list(row.record.top_ids[index]) == best.indices.tolist()
    replaced = [index for index in range(60) if by_llm[index] and row.record.draft_ids[index] >= 0]
    assert replaced and all(row.record.draft_ids[index] != row.response_ids[index] for index in replaced)
    assert all(
        row.record.draft_ids[index] == row.response_ids[index] for index in range(60) if accepted[index]
    )


@cache
def ends_for(kind: str) -> tuple[int, ...]:
    """End tokens that the LLM writes in the middle of most greedy responses."""
    written = [generated(near_pair(kind).llm, prompt)[8:] for prompt in prompts(7)]
    return (EOS, *{response[index] for index, response in enumerate(written) if len(response) > index})


@cache
def greedy_of_llm(kind: str, eos: tuple[int, ...]) -> list[list[int]]:
    return [generated(near_pair(kind).llm, prompt, eos) for prompt in prompts(7)]


@pytest.mark.parametrize("num_drafts", ["1", "3", "8", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_speculation_writes_what_the_llm_generates(kind: str, num_drafts: str) -> None:
    """Some drafts are wrong, and some responses end with an accepted draft. Only the LLM's end tokens count."""
    eos = ends_for(kind)
    pair = near_pair(kind, slm_eos=(EOS, 5, 6, 7), llm_eos=eos)
    engine = Engine(pair, make_policy(f"speculative:{num_drafts}"), EngineOptions(max_rows=4))
    rows = [engine.add(prompt, max_tokens=MAX_TOKENS) for prompt in prompts(7)]
    list(engine.run())
    assert [row.response_ids for row in rows] == greedy_of_llm(kind, eos)
    assert [row.finish_reason for row in rows] == [
        "stop" if response[-1] in eos else "length" for response in greedy_of_llm(kind, eos)
    ]
    assert 0 < engine.ledger.accepted_drafts < engine.ledger.judged_drafts
    assert engine.ledger.llm.passes < sum(row.num_response for row in rows)


def test_some_responses_end_with_an_accepted_draft() -> None:
    """Else the test above would not show that ends among drafts are seen."""
    by_draft = 0
    for kind in KINDS:
        pair = near_pair(kind, llm_eos=ends_for(kind))
        engine = Engine(pair, make_policy("speculative:8"))
        rows = [engine.add(prompt, max_tokens=MAX_TOKENS) for prompt in prompts(7)]
        list(engine.run())
        by_draft += sum(row.finish_reason == "stop" and row.record.writer[-1] == 0 for row in rows)
    assert by_draft >= 3


@pytest.mark.parametrize("num_drafts", ["3", "8", "auto"])
def test_greedy_speculation_is_cut_off_where_the_llm_is(num_drafts: str) -> None:
    engine = Engine(near_pair("gemma2"), make_policy(f"speculative:{num_drafts}"), EngineOptions(max_rows=5))
    rows = [
        (limit, index, engine.add(prompt, max_tokens=limit))
        for limit in range(1, 13)
        for index, prompt in enumerate(prompts(7)[:3])
    ]
    list(engine.run())
    assert any(row.record.writer[-1] == 0 for _, _, row in rows)
    for limit, index, row in rows:
        assert row.response_ids == greedy_of_llm("gemma2", (EOS,))[index][:limit]


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(repetition_penalty=1.4),
        SamplingParams(frequency_penalty=0.7, presence_penalty=0.4),
        SamplingParams(min_tokens=17),
        SamplingParams(logit_bias=((EOS, 3.0), (9, 2.0), (30, -9.0))),
        SamplingParams(stop=("e", "t9", '"')),
        SamplingParams(stop=("b", "#"), min_tokens=9, presence_penalty=0.5),
        SamplingParams(ignore_eos=True, temperature=2.0, top_k=1),
    ],
)
@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "granite"])
def test_greedy_speculation_honours_sampling_parameters_as_the_llm_does(
    kind: str, sampling: SamplingParams
) -> None:
    eos = ends_for(kind)[:3]
    outcomes = []
    for policy in ("llm", "speculative:5"):
        engine = Engine(near_pair(kind, llm_eos=eos), make_policy(policy), EngineOptions(max_rows=4))
        rows = [engine.add(prompt, sampling, MAX_TOKENS) for prompt in prompts(7)]
        list(engine.run())
        outcomes.append([(row.response_ids, row.finish_reason, row.stop_string) for row in rows])
    assert outcomes[0] == outcomes[1]
    plain = greedy_of_llm(kind, eos)
    assert [ids for ids, _, _ in outcomes[0]] != plain
    if sampling.min_tokens and not sampling.stop:
        assert all(len(ids) > sampling.min_tokens for ids, _, _ in outcomes[0])
        assert any(len(ids) <= sampling.min_tokens for ids in plain)


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


@pytest.mark.parametrize("policy", ["random:0.3", "speculative:3"])
def test_forks_of_parents_that_are_gone_go_on_as_those_would(policy: str) -> None:
    """A finished parent, an aborted one, and one that is aborted after the fork: its blocks stay for the fork."""
    pair = near_pair("llama")
    engine = Engine(pair, make_policy(policy), EngineOptions(max_rows=8, block_size=8))
    sampling = SamplingParams(ignore_eos=True)
    whole = engine.add(prompts(1, shortest=20)[0], sampling, max_tokens=30, seed=7)
    list(engine.run())
    parents = [engine.add(whole.token_ids[: whole.prompt_len], sampling, 30, seed=7) for _ in range(2)]
    while parents[0].num_response < 12:
        engine.step()
    engine.abort(parents[0])
    forks = [
        engine.fork(whole, 12, sample=0, max_tokens=18),
        engine.fork(parents[0], 12, sample=0, max_tokens=18),
        engine.fork(
            parents[1], sample=0, max_tokens=30 - parents[1].num_response + parents[1].num_provisional
        ),
    ]
    engine.abort(parents[1])
    list(engine.run())
    for fork in forks:
        assert fork.token_ids == whole.token_ids
    assert all(pool.num_used == 0 for pool in engine.memory.pools)


@pytest.mark.parametrize("policy", ["llm", "random:0.4", "speculative:3"])
@pytest.mark.parametrize("chunk", [5, 2048])
def test_samples_of_one_prompt_compute_it_once_and_are_what_they_would_be_alone(
    policy: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("navtoken.engine.scheduler.SHORT", 4)
    pair = near_pair("gemma2")
    prompt = prompts(1, shortest=30, longest=30)[0]
    sampling = SamplingParams(temperature=1.0, ignore_eos=True)
    engine = Engine(pair, make_policy(policy), EngineOptions(max_rows=9, block_size=8, prefill_chunk=chunk))
    samples = engine.add_samples(6, prompt, sampling, 20, seed=3)
    list(engine.run())
    # Beside the prompt, each sample that asks for its first token must feed the prompt's last one.
    expected = {"llm": (0, 35), "speculative:3": (35, 35)}.get(policy)
    slm, llm = (counted.prefill_tokens for counted in engine.ledger.models)
    assert (slm, llm) == expected if expected else slm == 35 and 30 <= llm < 35
    alone = Engine(pair, make_policy(policy), EngineOptions(max_rows=1))
    for index, row in enumerate(samples):
        twin = alone.add(prompt, sampling, 20, seed=3, sample=index)
        list(alone.run())
        assert row.response_ids == twin.response_ids
        assert row.record.writer == twin.record.writer
    assert len({tuple(row.response_ids) for row in samples}) == 6
    assert all(pool.num_used == 0 for pool in engine.memory.pools)


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
