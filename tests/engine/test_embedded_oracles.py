"""The oracles on the pair that ships in the package, with real problems of its three families."""

from functools import cache

import pytest
import torch

from navtoken.checkpoints import LoadedModel, ModelPair, load_pair
from navtoken.engine import Engine, EngineOptions, SamplingParams, Sequence
from navtoken.engine.runner import Extension
from navtoken.policies import Writer, derive_seed, make_policy
from navtoken.tasks import load_task
from navtoken.tasks.prompts import render

FAMILIES = ("arithmetic", "countdown", "knights")
MAX_TOKENS = 120


@cache
def pair() -> ModelPair:
    return load_pair(dtype="float64")


@cache
def embedded_prompts() -> list[list[int]]:
    """Two test problems of each family."""
    return [
        render(pair().tokenizer, task, problem).ids
        for task in map(load_task, FAMILIES)
        for problem in task.problems("test", 2, seed=5)
    ]


def decode(
    policy: str, options: EngineOptions | None = None, temperature: float = 0.0
) -> tuple[Engine, list[Sequence]]:
    engine = Engine(pair(), make_policy(policy), options or EngineOptions())
    rows = [
        engine.add(prompt_ids, SamplingParams(temperature), MAX_TOKENS, seed=derive_seed(3, str(index)))
        for index, prompt_ids in enumerate(embedded_prompts())
    ]
    list(engine.run())
    return engine, rows


@pytest.mark.parametrize("name", ["slm", "llm"])
def test_one_model_alone_writes_what_generate_writes(name: str) -> None:
    loaded: LoadedModel = getattr(pair(), name)
    _, rows = decode(name)
    for row in rows:
        prompt = torch.tensor([row.token_ids[: row.prompt_len]])
        mask = torch.ones_like(prompt)
        out = loaded.model.generate(prompt, attention_mask=mask, max_new_tokens=MAX_TOKENS, do_sample=False)
        assert row.response_ids == out[0, row.prompt_len :].tolist()
    assert any(row.finish_reason == "stop" for row in rows)


def test_logits_after_catchup_are_those_of_a_full_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[list[int], torch.Tensor]] = []
    engine = Engine(pair(), make_policy("entropy:0.5"), EngineOptions(llm_min_rows=2))
    extend = engine.runners[Writer.LLM].extend

    def spying(dealt: list[tuple[Sequence, int]], copies: list, *args: object) -> Extension:
        extension = extend(dealt, copies, *args)
        assert all(end == len(row.token_ids) for row, end in dealt)
        said.extend(
            (list(row.token_ids), logits_V.clone())
            for (row, _), logits_V in zip(dealt, extension.logits_MV, strict=True)
        )
        return extension

    monkeypatch.setattr(engine.runners[Writer.LLM], "extend", spying)
    for prompt_ids in embedded_prompts():
        engine.add(prompt_ids, max_tokens=60)
    list(engine.run())
    assert engine.ledger.llm.catchup_tokens > 0
    for token_ids, logits_V in said[:: max(1, len(said) // 40)]:
        with torch.no_grad():
            expected_V = pair().llm.model(torch.tensor([token_ids]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits_V, expected_V[: len(logits_V)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_outputs_depend_on_neither_batch_nor_batching_rule(temperature: float) -> None:
    def responses(options: EngineOptions) -> list:
        _, rows = decode("random:0.2", options, temperature)
        return [(row.response_ids, row.record.writer) for row in rows]

    alone = responses(EngineOptions(max_rows=1))
    assert responses(EngineOptions(max_rows=6, llm_min_rows=1)) == alone
    assert responses(EngineOptions(max_rows=4, llm_min_rows=3)) == alone


def test_the_ledger_counts_what_hooks_on_the_models_count() -> None:
    tokens, passes = [0, 0], [0, 0]

    def count(model: Writer) -> torch.utils.hooks.RemovableHandle:
        def fed(_: object, inputs: tuple) -> None:
            tokens[model] += inputs[0].numel()
            passes[model] += 1

        return pair()[model].model.get_input_embeddings().register_forward_pre_hook(fed)

    handles = [count(model) for model in Writer]
    engine, rows = decode("entropy:0.5", EngineOptions(max_rows=4, llm_min_rows=2))
    for handle in handles:
        handle.remove()
    assert [count.tokens for count in engine.ledger.models] == tokens
    assert [count.passes for count in engine.ledger.models] == passes
    assert engine.ledger.discarded_drafts == sum(sum(row.record.writer) for row in rows) > 0


@pytest.mark.parametrize("num_drafts", ["1", "4", "auto"])
def test_greedy_speculation_writes_what_the_llm_writes(num_drafts: str) -> None:
    engine, rows = decode(f"speculative:{num_drafts}", EngineOptions(max_rows=4))
    _, alone = decode("llm")
    assert [row.response_ids for row in rows] == [row.response_ids for row in alone]
    assert [row.finish_reason for row in rows] == [row.finish_reason for row in alone]
    assert engine.ledger.acceptance_length > 1.5


@pytest.mark.slow
@pytest.mark.parametrize("num_drafts", ["4", "auto"])
def test_greedy_speculation_writes_what_the_llm_writes_on_200_prompts(num_drafts: str) -> None:
    asked = [
        render(pair().tokenizer, task, problem).ids
        for task, num in zip(map(load_task, FAMILIES), (66, 67, 67), strict=True)
        for problem in task.problems("test", num, seed=7)
    ]
    responses = []
    for policy in ("llm", f"speculative:{num_drafts}"):
        engine = Engine(pair(), make_policy(policy), EngineOptions(max_rows=32))
        rows = [engine.add(prompt_ids, max_tokens=200) for prompt_ids in asked]
        list(engine.run())
        responses.append([(row.response_ids, row.finish_reason) for row in rows])
    assert len(asked) == 200
    assert responses[0] == responses[1]
