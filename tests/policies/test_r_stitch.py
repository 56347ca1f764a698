"""R-Stitch's grammar and its state; the engine runs are in tests/engine."""

from math import log

import pytest
import torch

from navtoken.policies import Drafts, PairView, Policy, PolicyError, Writer, Writes, make_policy
from navtoken.policies.r_stitch import RStitchPolicy

V = 50
SLM, LLM = Writer


def joined(reference: str) -> Policy:
    return make_policy(reference).joined(PairView(0.1, vocab_size=V))


@pytest.mark.parametrize("reference", ["r-stitch:0.03", "r-stitch,share=0.13", "r-stitch:0.02,share=0.13"])
def test_references(reference: str) -> None:
    assert make_policy(reference).reference == reference
    assert joined(reference).reference == reference


@pytest.mark.parametrize(
    "reference", ["r-stitch", "r-stitch:some", "r-stitch:0.1,every=2", "r-stitch,share=2"]
)
def test_references_that_do_not_fit_are_refused(reference: str) -> None:
    with pytest.raises(PolicyError):
        make_policy(reference)


def test_the_llm_keeps_control_until_it_is_sure_itself() -> None:
    policy = joined("r-stitch:0.5")
    state = policy.start([1, 2])
    most = 0.5 * log(V)
    steps = [
        (SLM, most, SLM),
        (LLM, most + 0.01, LLM),
        (LLM, most + 1, LLM),
        (LLM, most - 0.01, SLM),
        (SLM, 0.0, SLM),
        (LLM, 0.0, SLM),
    ]
    assert policy.next_writer(state) is SLM
    for writer, entropy, then in steps:
        policy.committed(state, 7, writer, entropy)
        assert policy.next_writer(state) is then


def drafts(entropies: list[float]) -> Drafts:
    size = len(entropies)
    nothing_BV = torch.zeros(size, V)
    return Drafts(
        token_ids_B=torch.zeros(size, dtype=torch.long),
        logits_BV=nothing_BV,
        logprobs_BV=nothing_BV,
        hidden_BD=nothing_BV,
        entropy_B=torch.tensor(entropies),
        noise=lambda purpose: torch.zeros(size),
        probs=lambda: nothing_BV,
        states=[None] * size,
    )


def test_the_threshold_is_on_the_entropy_over_the_largest_there_can_be() -> None:
    entropies = [0.09 * log(V), 0.11 * log(V), 0.11, 0.99 * log(V)]
    assert joined("r-stitch:0.1").judge_drafts(drafts(entropies)).actions_B.tolist() == [0, 1, 0, 1]
    assert joined("r-stitch:1").judge_drafts(drafts(entropies)).actions_B.tolist() == [0, 0, 0, 0]


def test_calibration_hears_what_decided_each_token_once() -> None:
    """Of the LLM's tokens only those that kept it in control: after the others the SLM's entropy decides."""
    heard: list[torch.Tensor] = []
    policy = joined("r-stitch,share=0.5")
    assert isinstance(policy, RStitchPolicy)
    listening = policy.with_threshold(0.5, heard.append)
    listening.judge_drafts(drafts([0.2 * log(V), 0.7 * log(V)]))
    zeros_B = torch.zeros(3, dtype=torch.long)
    entropy_B = torch.tensor([0.9, 0.1, 0.6]) * log(V)
    writes = Writes(
        zeros_B, torch.zeros(3, V), torch.zeros(3, 1), entropy_B, zeros_B, lambda p: zeros_B, [None] * 3
    )
    assert listening.judge_writes(writes).actions_B.tolist() == [1, 1, 1]
    assert torch.cat(heard).tolist() == pytest.approx([0.2, 0.7, 0.9, 0.6])


def test_it_is_captured_unless_somebody_listens() -> None:
    policy = joined("r-stitch:0.5")
    assert isinstance(policy, RStitchPolicy)
    assert policy.capturable
    assert not policy.with_threshold(0.5, lambda signal: None).capturable
