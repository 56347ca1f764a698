"""Routing by a trained network: the LLM writes where the router says that the draft would lead elsewhere (R2R).

Router and features run inside the SLM's step, on tensors that are there anyway; only the verdict leaves the device. A
threshold that was stored with the router is the one that is used, and p(divergent) of every draft is recorded: what the
official code got wrong was to overwrite the router's decision, and to leave its stored threshold aside.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from navtoken.policies.arguments import check_options, number
from navtoken.policies.base import Drafts, PairView, Verdicts
from navtoken.policies.rules import PolicyError, ThresholdPolicy, UncalibratedError, spelled
from navtoken.reference import Reference
from navtoken.router.checkpoint import Kind, Router, RouterCard, RouterFileError, open_router
from navtoken.router.features import features_of

DIGITS = 8
"""Of the weights' sha256, in references."""


class RouterMismatchError(PolicyError):
    """A router of another pair's."""


def embedded_router(kind: Kind = "token") -> Path:
    """Where the routers of the embedded pair lie."""
    name = "router" if kind == "token" else "query_router"
    return Path(str(resources.files("navtoken"))) / "embedded" / name


def router_of(reference: Reference, kind: Kind) -> Router:
    """The router that a reference names, the embedded pair's where it names none; its network is not read yet.

    Raises `PolicyError` where there is none, it is of another kind, or its weights are not those that `weights` starts.
    """
    folder = embedded_router(kind) if reference.target is None else Path(reference.target)
    try:
        router = open_router(folder)
    except RouterFileError as error:
        raise PolicyError(f"'{reference}': {error}") from error
    if router.card.kind != kind:
        right = "query" if router.card.kind == "query" else "router"
        raise PolicyError(
            f"'{reference}': '{folder}' holds a router for policy {right}; write {right}:{folder}"
        )
    asked = reference.options.get("weights", "")
    if not router.weights.startswith(asked):
        raise PolicyError(
            f"'{reference}' asks for weights {asked}, those in '{folder}' are {router.weights[:DIGITS]}: the router was "
            "trained again; leave weights out to take it as it is now"
        )
    return router


def check_pair(card: RouterCard, pair: PairView) -> None:
    """Raise `RouterMismatchError` unless the pair's SLM is the one whose drafts the router learnt to judge."""
    theirs, ours = card.pair.fingerprints.get("slm", ""), pair.slm_fingerprint()
    if theirs != ours:
        raise RouterMismatchError(
            f"the router was trained for SLM '{card.pair.slm}' ({theirs[:DIGITS]}), this pair's is '{pair.slm_reference}' "
            f"({ours[:DIGITS]}): it cannot read that one's drafts; train a router for this pair with navtoken train-router"
        )
    if pair.vocab_size and card.shape.by_id and pair.vocab_size != card.shape.vocab_size:
        raise RouterMismatchError(
            f"the router reads logits of {card.shape.vocab_size} tokens, this pair shares {pair.vocab_size}; take the LLM "
            f"that it was trained with ('{card.pair.llm}'), or train a router for this pair"
        )


def embedding_of(card: RouterCard, pair: PairView) -> nn.Module | None:
    """The SLM's embedding, where the router reads it."""
    if "embedding" not in card.shape.inputs:
        return None
    embedding = pair.slm_embedding()
    if embedding is None:
        raise RouterMismatchError(
            f"the router reads the embedding of the SLM, and '{pair.slm_reference}' has none to offer; train one with "
            "other inputs"
        )
    return embedding


def _device_of(pair: PairView) -> torch.device:
    """Where the SLM's drafts come from, as far as its embedding tells."""
    weights = [] if (embedding := pair.slm_embedding()) is None else list(embedding.parameters())
    device = weights[0].device if weights else torch.device("cpu")
    # Of a model whose parts are offloaded.
    return torch.device("cpu") if device.type == "meta" else device


def p_divergent(router: Router, embedding: nn.Module | None, drafts: Drafts) -> Tensor:
    """What a router says of drafts: probabilities, float32 (B,). Nothing here waits for the device."""
    network = router.on(drafts.hidden_BD.device)
    embedding_BE = None if embedding is None else embedding(drafts.token_ids_B)
    logit_B: Tensor = network(features_of(drafts, router.card.shape), embedding_BE)
    return logit_B.sigmoid()


@dataclass(frozen=True)
class RouterPolicy(ThresholdPolicy):
    """LLM where p(divergent) of the draft is above the threshold."""

    router: Router = field(kw_only=True)
    target: str | None = None
    """The folder as it was named; None for the embedded pair's router."""
    embedding: nn.Module | None = field(default=None, repr=False, compare=False)
    """The SLM's, once the policy is joined to a pair."""

    by_default: bool = field(default=False, compare=False)
    """Is the threshold the router's default, as no other was asked for?"""

    name = "router"
    llm_above = True

    @property
    def reference(self) -> str:
        parts = {
            "threshold": None if self.threshold is None else spelled(self.threshold),
            "share": None if self.share is None else spelled(self.share),
            "weights": self.router.weights[:DIGITS] or None,
        }
        return str(Reference(self.name, self.target, {key: text for key, text in parts.items() if text}))

    @property
    def router_parameters(self) -> int:  # type: ignore[override]
        return self.router.card.shape.parameters

    def check_ready(self) -> None:
        if self.threshold is None:
            raise UncalibratedError(
                f"policy '{self.reference}' has no threshold for this share yet; turn the share into one with "
                "navtoken.engine.calibrate on training prompts, or give it: threshold=0.4"
            )

    def joined(self, pair: PairView) -> Self:
        """The policy with the SLM's embedding. Raises `RouterMismatchError` for a pair with another SLM."""
        check_pair(self.router.card, pair)
        # Now, so that a file that is not whole is found before the first draft.
        self.router.on(_device_of(pair))
        return replace(self, embedding=embedding_of(self.router.card, pair))

    def stored(
        self,
        task: str,
        sampling: Mapping[str, Any],
        llm: str | None = None,
        max_tokens: int | None = None,
    ) -> Self | None:
        """The policy with the threshold that was stored for its share on a task (`all` is all together) at these sampling
        parameters and this length limit; None where there is none, or the LLM with this fingerprint is not the one it was found with."""
        card = self.router.card
        if self.share is None or (llm is not None and llm != card.pair.fingerprints.get("llm")):
            return None
        threshold = card.threshold_for(task, sampling, self.share, max_tokens)
        return None if threshold is None else self.with_threshold(threshold)

    def in_sampling(self, sampling: Mapping[str, Any], llm: str | None = None) -> Self:
        """The policy for these sampling parameters: where nothing was asked for, the threshold that was stored for them and for the
        share of the default one. The policy itself where there is none, or the LLM is not the one it was found with."""
        card = self.router.card
        if not self.by_default or (llm is not None and llm != card.pair.fingerprints.get("llm")):
            return self
        threshold = card.default_for(sampling)
        return self if threshold is None else replace(self.with_threshold(threshold), by_default=False)

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        signal_B = p_divergent(self.router, self.embedding, drafts)
        return self.route_by(signal_B)._replace(p_divergent_B=signal_B)


Made = TypeVar("Made", bound=RouterPolicy)


def make(reference: Reference) -> RouterPolicy:
    """`router`, `router:FOLDER`, each with `threshold=` or `share=`; without either, the threshold stored as default.

    Who knows the sampling takes the one of `RouterPolicy.in_sampling`.
    """
    return made_as(RouterPolicy, "token", reference)


def made_as(policy: type[Made], kind: Kind, reference: Reference) -> Made:
    """A policy that asks a router, out of its reference."""
    check_options(reference, ("threshold", "share", "weights"))
    threshold = number(reference.options.get("threshold"), reference)
    share = number(reference.options.get("share"), reference)
    router = router_of(reference, kind)
    if threshold is not None or share is not None:
        return policy(threshold, share, router=router, target=reference.target)
    default = router.card.default_threshold
    if default is None:
        raise PolicyError(
            f"'{reference}': the router has no default threshold; give threshold=0.4 or share=0.13"
        )
    plain = policy(default, router=router, target=reference.target, by_default=True)
    return plain.with_threshold(default)
