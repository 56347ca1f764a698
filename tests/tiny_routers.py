"""Routers with random weights, for pairs with random weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from navtoken.checkpoints import ModelPair
from navtoken.policies import Drafts
from navtoken.router import DEFAULT_INPUTS, PairNames, RouterCard, RouterNetwork, RouterShape, save_router
from navtoken.router.checkpoint import Kind


def names_of(pair: ModelPair) -> PairNames:
    fingerprints = {"slm": pair.slm.fingerprint, "llm": pair.llm.fingerprint}
    return PairNames(pair.slm.reference, pair.llm.reference, fingerprints)


def random_network(shape: RouterShape, seed: int = 0) -> RouterNetwork:
    """A network in eval mode whose probabilities spread over the whole range."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RouterNetwork(shape)
    with torch.no_grad():
        network.head.weight *= 4.0
        for norm in network.norms.values():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean.fill_(-6.0), norm.running_var.fill_(10.0)
    return network.eval()


def tiny_router(
    folder: Path,
    pair: ModelPair,
    seed: int = 0,
    inputs: Sequence[str] = DEFAULT_INPUTS,
    top_k: int = 20,
    kind: Kind = "token",
    **card: Any,
) -> RouterCard:
    """Save a router for a pair, and return its card."""
    shape = RouterShape.for_slm(pair.slm, inputs, top_k, pair.vocab_size)
    about = {"default_threshold": 0.5} | card
    return save_router(folder, random_network(shape, seed), RouterCard(kind, names_of(pair), shape, **about))


def random_drafts(size: int, vocab_size: int, hidden_size: int, seed: int = 0) -> Drafts:
    """Drafts of an SLM that says anything; some are not its most probable tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits_BV = 4.0 * torch.randn(size, vocab_size, generator=generator)
    logprobs_BV = logits_BV.log_softmax(-1)
    sampled_B = logprobs_BV.exp().multinomial(1, generator=generator)[:, 0]
    return Drafts(
        token_ids_B=sampled_B,
        logits_BV=logits_BV,
        logprobs_BV=logprobs_BV,
        hidden_BD=torch.randn(size, hidden_size, generator=generator),
        entropy_B=torch.special.entr(logprobs_BV.exp()).sum(-1),
        noise=lambda purpose: torch.zeros(size, dtype=torch.float64),
        probs=logprobs_BV.exp,
        states=[None] * size,
    )
