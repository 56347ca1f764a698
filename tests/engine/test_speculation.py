"""Speculation in the engine follows the LLM's distribution; broken on purpose, the tests that say so fail."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from chi_square import p_value
from fake_engine import VOCAB, FakeEngine, Reference
from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.engine import Engine, EngineOptions, SamplingParams, Sequence
from navtoken.policies import Judged, PairView, Purpose, Writer, make_policy
from navtoken.policies.speculative import accept, invert
from tiny_models import VOCAB_SIZE, near_pair, prompts, tiny_pair

SAMPLING = SamplingParams(temperature=0.9, top_p=0.9, ignore_eos=True)
LIKELY, IMPOSSIBLE = 1e-3, 1e-6
"""p-values above the one are what a right engine gives; below the other no luck explains."""

PROMPT = [1, 2, 3]


def counts_of(rows: list[Sequence], size: int) -> Tensor:
    """How often each first and second token came together, (size, size)."""
    pairs = torch.tensor([row.response_ids for row in rows])
    counts = torch.zeros(size, size, dtype=torch.float64)
    return counts.index_put_((pairs[:, 0], pairs[:, 1]), torch.ones(len(rows)).double(), accumulate=True)


def fake_rows(policy: str, num: int) -> list[Sequence]:
    engine = FakeEngine(make_policy(policy), EngineOptions(max_rows=1000))
    rows = engine.add_samples(num, PROMPT, SAMPLING, max_tokens=2)
    list(engine.run())
    assert engine.ledger.accepted_drafts > 0.1 * engine.ledger.judged_drafts
    return rows


@cache
def fake_joint() -> Tensor:
    """The LLM's distribution of the first two tokens, token by token, (V, V)."""
    engine = FakeEngine(make_policy("llm"), EngineOptions())
    reference = Reference(engine.add(PROMPT, SAMPLING, max_tokens=2))
    first_V = torch.from_numpy(reference.probs(Writer.LLM, PROMPT))
    rest_VV = [torch.from_numpy(reference.probs(Writer.LLM, [*PROMPT, token])) for token in range(VOCAB)]
    return first_V[:, None] * torch.stack(rest_VV)


def first_and_second(counts: Tensor, joint: Tensor) -> tuple[float, float, float]:
    """p-values of the first tokens, of the second ones, and of both together."""
    return (
        p_value(counts.sum(1), joint.sum(1)),
        p_value(counts.sum(0), joint.sum(0)),
        p_value(counts, joint),
    )


@pytest.mark.parametrize("policy", ["speculative:1", "speculative:3"])
def test_sampled_tokens_follow_the_llms_distribution(policy: str) -> None:
    """K = 1 adds a token of the LLM's own after a kept draft, K = 3 is cut off among its drafts."""
    counts = counts_of(fake_rows(policy, 20_000), VOCAB)
    assert min(first_and_second(counts, fake_joint())) > LIKELY


def test_the_slm_alone_does_not() -> None:
    """Else the test above would show nothing."""
    engine = FakeEngine(make_policy("slm"), EngineOptions(max_rows=1000))
    rows = engine.add_samples(2000, PROMPT, SAMPLING, max_tokens=2)
    list(engine.run())
    assert max(first_and_second(counts_of(rows, VOCAB), fake_joint())) < IMPOSSIBLE


def one_too_many(judged: Judged, draft_probs: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Acceptance with an off-by-one: the draft that should have been rejected is kept."""
    kept_B, token_B = accept(judged, draft_probs)
    counts_B = torch.tensor(judged.counts)
    wrong_B = torch.minimum(kept_B + 1, counts_B)
    stop_B = torch.cumsum(counts_B + 1, 0) - counts_B - 1 + wrong_B
    own_B = invert(judged.probs()[stop_B], judged.noise_M(Purpose.LLM_WRITE)[stop_B])
    return wrong_B, torch.where(wrong_B > kept_B, own_B, token_B)


def always_redraws_from_the_llm(judged: Judged, draft_probs: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """After a rejection, a draw from p where it must be one from max(0, p - q)."""
    kept_B, token_B = accept(judged, draft_probs)
    counts_B = torch.tensor(judged.counts)
    stop_B = torch.cumsum(counts_B + 1, 0) - counts_B - 1 + kept_B
    own_B = invert(judged.probs()[stop_B], judged.noise_M(Purpose.RESIDUAL)[stop_B])
    return kept_B, torch.where(kept_B < counts_B, own_B, token_B)


@pytest.mark.parametrize("broken", [one_too_many, always_redraws_from_the_llm])
def test_broken_acceptance_is_seen_in_the_distribution(
    broken: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("navtoken.policies.speculative.accept", broken)
    counts = counts_of(fake_rows("speculative:3", 4000), VOCAB)
    assert max(first_and_second(counts, fake_joint())) < IMPOSSIBLE


def test_broken_acceptance_is_seen_in_greedy_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    def responses(policy: str) -> list[list[int]]:
        engine = Engine(tiny_pair("llama"), make_policy(policy), EngineOptions(max_rows=4))
        rows = [engine.add(prompt, max_tokens=20) for prompt in prompts(4)]
        list(engine.run())
        return [row.response_ids for row in rows]

    expected = responses("llm")
    assert responses("speculative:3") == expected
    monkeypatch.setattr("navtoken.policies.speculative.accept", one_too_many)
    assert all(broken != right for broken, right in zip(responses("speculative:3"), expected, strict=True))


@torch.no_grad()
def warped_probs(loaded: LoadedModel, token_ids: list[list[int]]) -> Tensor:
    """What `transformers` would draw the next token from, (B, V)."""
    logits_BV = loaded.model(torch.tensor(token_ids), use_cache=False).logits[:, -1, :VOCAB_SIZE].double()
    nothing = torch.zeros(len(token_ids), 1, dtype=torch.long)
    warmed_BV = TemperatureLogitsWarper(SAMPLING.temperature)(nothing, logits_BV)
    return TopPLogitsWarper(SAMPLING.top_p)(nothing, warmed_BV).softmax(-1)


def assert_follows_the_llm(pair: ModelPair, policy: str, num: int) -> None:
    prompt = prompts(1)[0]
    engine = Engine(pair, make_policy(policy), EngineOptions(max_rows=500))
    rows = engine.add_samples(num, prompt, SAMPLING, max_tokens=2, seed=1)
    list(engine.run())
    assert 0.02 < engine.ledger.accepted_drafts / engine.ledger.judged_drafts < 0.99
    first_V = warped_probs(pair.llm, [prompt])[0]
    rest_VV = warped_probs(pair.llm, [[*prompt, token] for token in range(VOCAB_SIZE)])
    joint = first_V[:, None] * rest_VV
    assert min(first_and_second(counts_of(rows, VOCAB_SIZE), joint)) > LIKELY


@pytest.mark.parametrize("policy", ["speculative:2", "speculative:auto"])
def test_sampled_tokens_of_models_follow_the_llms_distribution(policy: str) -> None:
    assert_follows_the_llm(near_pair("qwen3", noise=0.3), policy, 4000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "gemma2", "granite"])
@pytest.mark.parametrize("policy", ["speculative:1", "speculative:2", "speculative:auto"])
def test_many_sampled_tokens_of_models_follow_the_llms_distribution(kind: str, policy: str) -> None:
    assert_follows_the_llm(near_pair(kind, noise=0.06), policy, 20_000)


def test_acceptance_is_counted_per_verification() -> None:
    """As vLLM counts it: 1 + accepted drafts per verification."""
    engine = FakeEngine(make_policy("speculative:3"), EngineOptions(max_rows=3))
    rows = [
        engine.add([1, 2, index], SamplingParams(ignore_eos=True), 25, seed=index) for index in range(1, 7)
    ]
    list(engine.run())
    ledger = engine.ledger
    assert ledger.verifications == sum(row.ledger.verifications for row in rows)
    assert ledger.written[Writer.SLM] == ledger.accepted_drafts
    assert ledger.written[Writer.LLM] <= ledger.verifications <= ledger.written[Writer.LLM] + len(rows)
    assert ledger.acceptance_length == 1 + ledger.accepted_drafts / ledger.verifications
    assert ledger.rolled_back_tokens == ledger.judged_drafts - ledger.accepted_drafts
    assert ledger.discarded_drafts == 0


def test_only_judged_tokens_are_told() -> None:
    engine = FakeEngine(make_policy("speculative:4"), EngineOptions())
    row = engine.add([1, 2], SamplingParams(ignore_eos=True), max_tokens=12)
    held = 0
    while engine.has_work:
        engine.step()
        assert row.num_streamed == row.num_response - row.num_provisional
        held = max(held, row.num_provisional)
    assert held == 3, "the fourth draft is judged in the step that makes it"


def test_an_adaptive_number_of_drafts_pays_off() -> None:
    """Where the models agree it drafts many, where they never do one."""
    same = tiny_pair("llama").llm
    lengths = {}
    for name, pair in (("same", ModelPair(same, same)), ("other", tiny_pair("llama"))):
        engine = Engine(pair, make_policy("speculative:auto"))
        engine.policy = engine.policy.joined(PairView(0.05))
        row = engine.add(prompts(1)[0], SamplingParams(ignore_eos=True), max_tokens=100)
        list(engine.run())
        lengths[name] = row.ledger.judged_drafts / row.ledger.verifications
    assert lengths["same"] > 7
    assert lengths["other"] < 2
