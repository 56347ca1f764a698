"""Whole-query routing: asked once, followed to the end, calibrated to a share of tokens."""

from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest
import torch

from navtoken.checkpoints import ModelPair
from navtoken.engine import CalibrationOptions, Engine, EngineOptions, SamplingParams, Sequence, calibrate
from navtoken.policies import PolicyError, Writer, make_policy
from navtoken.policies.query import QueryPolicy
from navtoken.router.checkpoint import PairNames, Router, RouterCard, save_router
from navtoken.router.network import RouterNetwork
from navtoken.router.shape import RouterShape
from tiny_models import VOCAB_SIZE, prompts, tiny_pair

GREEDY = SamplingParams()
HOT = SamplingParams(temperature=0.9)
HIDDEN = 32


def router_for(pair: ModelPair, kind: str = "query", inputs: tuple[str, ...] = ("hidden",)) -> Router:
    """An untrained router of what the SLM makes of a prompt."""
    shape = RouterShape.of_sizes(HIDDEN, HIDDEN, VOCAB_SIZE, 40_000, inputs)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = RouterNetwork(shape).eval().requires_grad_(False)
        network.head.weight *= 20
    names = PairNames(pair.slm.reference, pair.llm.reference, {"slm": pair.slm.fingerprint})
    return Router(RouterCard(kind, names, shape, default_threshold=0.5), None, network)  # type: ignore[arg-type]


def query(threshold: float | None = None, share: float | None = None) -> QueryPolicy:
    return QueryPolicy(threshold, share, router=router_for(tiny_pair()))


def decode(
    policy: QueryPolicy, sampling: SamplingParams, num: int = 12, **options: int
) -> tuple[Engine, list[Sequence]]:
    engine = Engine(tiny_pair(), policy, EngineOptions(max_rows=5, **options))  # type: ignore[arg-type]
    # Responses of other lengths, so that a share of tokens is none of responses.
    rows = [
        engine.add(prompt, sampling, 3 + seed % 7 * 4, seed=seed) for seed, prompt in enumerate(prompts(num))
    ]
    list(engine.run())
    return engine, rows


@torch.no_grad()
def probability(pair: ModelPair, prompt: list[int], router: Router) -> float:
    """From a full forward pass over the prompt."""
    hidden_D = pair.slm.model.model(torch.tensor([prompt]), use_cache=False).last_hidden_state[0, -1]
    normed = router.network
    assert normed is not None
    x = normed.norms["hidden"](hidden_D.float()[None])
    x = normed.project(x)
    for block in normed.blocks:
        x = block(x)
    return float(normed.head(normed.norm(x)).sigmoid())


@pytest.mark.parametrize("sampling", [GREEDY, HOT])
def test_who_writes_is_decided_once_by_the_prompt(sampling: SamplingParams) -> None:
    pair = tiny_pair()
    said = sorted(probability(pair, prompt, router_for(pair)) for prompt in prompts(12))
    threshold = (said[5] + said[6]) / 2
    engine, rows = decode(query(threshold), sampling)
    alone = {name: Engine(pair, make_policy(name)) for name in ("slm", "llm")}
    for seed, row in enumerate(rows):
        p = probability(pair, prompts(12)[seed], router_for(pair))
        assert row.record.p_divergent[0] == pytest.approx(p, abs=1e-5)
        assert all(isnan(each) for each in row.record.p_divergent[1:])
        assert set(row.record.writer) == {Writer.LLM if p > threshold else Writer.SLM}
        twin_of = alone["llm" if p > threshold else "slm"]
        twin = twin_of.add(prompts(12)[seed], sampling, 3 + seed % 7 * 4, seed=seed)
        list(twin_of.run())
        assert row.response_ids == twin.response_ids
        assert row.ledger.router_calls == 1
        assert row.ledger.models[Writer.LLM if p <= threshold else Writer.SLM].decode_tokens == 0
    assert sum(row.record.writer[0] for row in rows) == 6
    assert engine.ledger.router_calls == 12


def test_the_same_whatever_the_batch() -> None:
    _, rows = decode(query(0.5), HOT)
    _, others = decode(query(0.5), HOT, llm_min_rows=4, prefill_chunk=3)
    assert [row.response_ids for row in rows] == [row.response_ids for row in others]


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_share_is_of_tokens_not_of_responses(share: float) -> None:
    pair, texts = tiny_pair(), prompts(150)
    options = CalibrationOptions(max_tokens=30, max_iterations=6)
    sampling = SamplingParams(temperature=1.0)
    policy = calibrate(query(share=share), pair, texts, sampling, options)
    assert isinstance(policy, QueryPolicy)
    engine = Engine(pair, policy)
    rows = [engine.add(prompt, sampling, 30, seed=seed) for seed, prompt in enumerate(texts)]
    list(engine.run())
    assert engine.ledger.llm_share == pytest.approx(share, abs=0.02)
    of_responses = sum(row.record.writer[0] for row in rows) / len(rows)
    assert of_responses != pytest.approx(engine.ledger.llm_share, abs=1e-3)


def test_calibration_hears_every_token_once() -> None:
    heard: list[torch.Tensor] = []
    policy = query(0.5).with_threshold(0.5, heard.append)
    _, rows = decode(policy, HOT)
    signals = torch.cat(heard)
    assert len(signals) == sum(row.num_response for row in rows)
    expected = [row.record.p_divergent[0] for row in rows for _ in row.response_ids]
    assert sorted(signals.tolist()) == pytest.approx(sorted(expected))
    assert {row.record.writer[0] for row in rows} == {0, 1}


def test_references_lead_to_a_folder(tmp_path: Path) -> None:
    pair = tiny_pair()
    router = router_for(pair)
    assert router.network is not None
    card = save_router(tmp_path / "query", router.network, router.card)
    weights = f"weights={card.weights[:8]}"
    policy = make_policy(f"query:{tmp_path}/query")
    assert isinstance(policy, QueryPolicy)
    assert policy.reference == f"query:{tmp_path}/query,threshold=0.5,{weights}"
    assert make_policy(policy.reference) == policy
    assert policy.router_parameters == sum(weight.numel() for weight in router.network.parameters())
    assert make_policy(f"query:{tmp_path}/query,share=0.3").reference.endswith(f"query,share=0.3,{weights}")
    assert [row.response_ids for row in decode(policy, HOT)[1]] == [
        row.response_ids for row in decode(query(0.5), HOT)[1]
    ]
    with pytest.raises(PolicyError, match="router for policy query"):
        make_policy(f"router:{tmp_path}/query")
    with pytest.raises(PolicyError, match="has no option 'every'"):
        make_policy(f"query:{tmp_path}/query,every=2")
    save_router(tmp_path / "token", router.network, replace(router.card, kind="token"))
    with pytest.raises(PolicyError, match="router for policy router"):
        make_policy(f"query:{tmp_path}/token")
    save_router(tmp_path / "bare", router.network, replace(router.card, default_threshold=None))
    with pytest.raises(PolicyError, match=r"threshold=0\.4 or share=0\.13"):
        make_policy(f"query:{tmp_path}/bare")


def test_another_pair_is_refused() -> None:
    with pytest.raises(PolicyError, match="trained for SLM 'tiny:qwen3-1'"):
        Engine(tiny_pair("llama"), query(0.5))
