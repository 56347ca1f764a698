"""The grammar of policies, the rules, and the noise they share with the sampler."""

import numpy as np
import pytest
import torch

from navtoken.policies import (
    Drafts,
    NoiseKeys,
    PolicyError,
    Purpose,
    ThresholdPolicy,
    UnknownPolicyError,
    Writer,
    Writes,
    derive_seed,
    known_policies,
    make_policy,
    register,
    uniform,
)
from navtoken.policies.rules import SLMPolicy

KEEP, TO_LLM = 0, 1


def drafts(logits_BV: torch.Tensor, keys: NoiseKeys | None = None) -> Drafts:
    size = len(logits_BV)
    keys = keys or NoiseKeys(np.arange(size), np.zeros(size, dtype=int), np.full(size, 5))
    logprobs_BV = logits_BV.log_softmax(-1)
    return Drafts(
        token_ids_B=logits_BV.argmax(-1),
        logits_BV=logits_BV,
        logprobs_BV=logprobs_BV,
        hidden_BD=torch.zeros(size, 1),
        entropy_B=torch.special.entr(logprobs_BV.exp()).sum(-1),
        noise=lambda purpose: torch.from_numpy(keys.uniform(purpose)),
        probs=logprobs_BV.exp,
        states=[None] * size,
    )


LOGITS_BV = torch.tensor([[9.0, 0.0, 0.0], [0.3, 0.2, 0.1], [2.0, 1.9, -9.0]])


@pytest.mark.parametrize(
    ("reference", "verdicts"),
    [
        ("slm", [KEEP, KEEP, KEEP]),
        ("random:0", [KEEP, KEEP, KEEP]),
        ("random:1", [TO_LLM, TO_LLM, TO_LLM]),
        ("random,share=1", [TO_LLM, TO_LLM, TO_LLM]),
        ("entropy:0.9", [KEEP, TO_LLM, KEEP]),
        ("entropy:0.5", [KEEP, TO_LLM, TO_LLM]),
        ("margin:0.2", [KEEP, TO_LLM, TO_LLM]),
        ("margin:0.04", [KEEP, TO_LLM, KEEP]),
        ("llm-prob:0.5", [TO_LLM, TO_LLM, TO_LLM]),
    ],
)
def test_rules(reference: str, verdicts: list) -> None:
    assert make_policy(reference).judge_drafts(drafts(LOGITS_BV)).actions_B.tolist() == verdicts


def test_llm_prob_keeps_what_the_llm_finds_likely() -> None:
    policy = make_policy("llm-prob:0.1")
    view = drafts(LOGITS_BV)
    said = (view.token_ids_B, view.logprobs_BV, view.hidden_BD, view.entropy_B)
    writes = Writes(*said, torch.tensor([1, 1, 2]), view.noise, view.states)
    assert policy.judge_writes(writes).actions_B.tolist() == [TO_LLM, KEEP, TO_LLM]


def test_policy_llm_drafts_nothing() -> None:
    policy = make_policy("llm")
    assert policy.next_writer(None) is Writer.LLM
    assert policy.models == {Writer.LLM}


@pytest.mark.parametrize(
    "reference", ["slm", "llm", "random:0.13", "entropy:0.67", "margin:0.1", "llm-prob:0.1"]
)
def test_a_policy_knows_its_reference(reference: str) -> None:
    assert make_policy(reference).reference == reference


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("entropy", "threshold or a share"),
        ("entropy:high", "'high'"),
        ("entropy:nan", "compare with nan"),
        ("entropy,shaer=0.1", "'shaer'"),
        ("entropy,share=1.5", "1.5"),
        ("random", "random:0.13"),
        ("random:0.1,share=0.2", "random,share"),
        ("random:7", "7"),
        ("slm:3", "nothing after"),
        ("llm,share=0.1", "'share'"),
    ],
)
def test_references_that_do_not_fit_are_refused(reference: str, named: str) -> None:
    with pytest.raises(PolicyError, match=named):
        make_policy(reference)


def test_an_unknown_policy_names_the_known_ones() -> None:
    known = (
        "entropy, hindsight, llm, llm-prob, margin, oracle, query, r-stitch, random, router, slm, speculative"
    )
    with pytest.raises(UnknownPolicyError, match=f"'entrpy'.*{known}"):
        make_policy("entrpy:0.1")


def test_a_registered_policy_is_made_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("navtoken.policies.registry._MAKERS", {})
    made = SLMPolicy("mine")
    register("mine", lambda reference: made)
    assert make_policy("mine:folder,threshold=0.4") is made
    assert known_policies() == ["mine"]
    with pytest.raises(PolicyError, match="registered already"):
        register("mine", lambda reference: made)


@pytest.mark.parametrize("name", ["entropy", "margin"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
def test_a_threshold_for_a_share_leaves_that_share_beyond_it(name: str, share: float) -> None:
    policy = make_policy(f"{name},share={share}")
    assert isinstance(policy, ThresholdPolicy)
    signals = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    threshold = policy.threshold_for(signals)
    beyond = signals > threshold if policy.llm_above else signals < threshold
    assert abs(float(beyond.float().mean()) - share) <= 0.001


def test_the_coin_of_random_routing_belongs_to_the_token() -> None:
    policy = make_policy("random:0.5")
    keys = NoiseKeys(np.arange(200), np.zeros(200, dtype=int), np.arange(200))
    last = NoiseKeys(keys.seed_B[150:], keys.sample_B[150:], keys.position_B[150:])
    together = policy.judge_drafts(drafts(torch.zeros(200, 3), keys)).actions_B.tolist()
    apart = policy.judge_drafts(drafts(torch.zeros(50, 3), last)).actions_B.tolist()
    assert apart == together[150:]
    assert 70 < sum(together) < 130


def test_noise_is_uniform_and_differs_by_every_part_of_its_key() -> None:
    size = 20_000
    base = (np.full(size, 7), np.full(size, 2), np.arange(size))
    streams = [uniform(*base, purpose) for purpose in Purpose]
    streams.append(uniform(base[0] + 1, base[1], base[2], Purpose.DRAFT))
    streams.append(uniform(base[0], base[1] + 1, base[2], Purpose.DRAFT))
    streams.append(uniform(base[2], base[1], base[0], Purpose.DRAFT))
    correlations = np.corrcoef(np.stack(streams)) - np.eye(len(streams))
    assert np.abs(correlations).max() < 0.03
    for stream in streams:
        counts, _ = np.histogram(stream, bins=20, range=(0, 1))
        assert np.abs(counts - size / 20).max() < 6 * (size / 20) ** 0.5
    assert uniform(np.array([-1]), np.array([0]), np.array([0]), Purpose.DRAFT)[0] < 1


def test_derived_seeds_differ_by_name_and_fit_63_bits() -> None:
    seeds = {derive_seed(11, "countdown", str(index)) for index in range(1000)}
    assert len(seeds) == 1000
    assert derive_seed(11, "a", "b") != derive_seed(11, "ab")
    assert max(seeds) < 2**63
