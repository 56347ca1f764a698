"""Responses of the policy being trained, by the project's engine: continuous batching over a cache that samples share.

What an RLVR step needs besides tokens, their log-probabilities and the entropies at their positions, the engine knows anyway:
no second forward is made for them. The engine's model shares its weights with the one that is trained where these lie whole
in one process; where they are sharded (FSDP, ZeRO-3) it has a copy, filled anew before every batch.
"""

import copy
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.engine import Engine, EngineOptions, SamplingParams, Sequence
from navtoken.engine.options import DEFAULTS
from navtoken.policies.rules import LLMPolicy
from navtoken.rlvr.groups import Rollout

Gathered = Callable[[], dict[str, Tensor]]
"""Makes the whole state dict out of what ranks hold; collective."""


class Rollouts(Protocol):
    """Who draws responses."""

    tells_scores: bool
    """Do rollouts carry log-probabilities and entropies of the distribution that they were drawn from?"""

    def sync(self, model: nn.Module, gathered: Gathered) -> None:
        """Take over a model's weights as they are now."""
        ...

    def draw(self, prompts: Seq[Seq[int]], seeds: Seq[int], num: int) -> list[list[Rollout]]:
        """`num` responses to each prompt, noise fixed by its seed."""
        ...


class EngineRollouts:
    """Rollouts by `navtoken.engine`."""

    def __init__(
        self,
        shadow: LoadedModel,
        sampling: SamplingParams,
        max_tokens: int,
        options: EngineOptions = DEFAULTS,
    ) -> None:
        """`shadow` is from `shadow_of` the model that is trained, which is where it will stay."""
        self.pair = ModelPair(shadow, shadow)
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.tells_scores = sampling.temperature == 1.0
        self.engine = Engine(self.pair, LLMPolicy(), options)

    def sync(self, model: nn.Module, gathered: Gathered) -> None:
        """Share the model's weights, or copy what was gathered; forget what was computed with others."""
        follow(self.pair.llm.model, model, gathered)
        self.engine.reload_weights()

    def draw(self, prompts: Seq[Seq[int]], seeds: Seq[int], num: int) -> list[list[Rollout]]:
        """`num` responses to each prompt, which is read once."""
        groups = [
            self.engine.add_samples(num, prompt, self.sampling, self.max_tokens, seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        for _ in self.engine.run():
            pass
        return [[_rollout(row) for row in rows] for rows in groups]


def _rollout(row: Sequence) -> Rollout:
    return Rollout(row.response_ids, row.record.logprob_llm, row.record.entropy_llm)


def shadow_of(model: nn.Module, tokenizer: Any, reference: str) -> LoadedModel:
    """The same model for the engine: modules of its own (it runs another attention), weights in common.

    Call it before a trainer patches or wraps the model.
    """
    shared: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
    }
    return LoadedModel(copy.deepcopy(model, shared), tokenizer, reference)


@torch.no_grad()
def follow(shadow: nn.Module, model: nn.Module, gathered: Gathered) -> None:
    """Give the shadow the model's weights: the same memory where each lies whole on this rank, else copies."""
    theirs = dict(model.named_parameters())
    if all(_is_whole(theirs.get(name), mine) for name, mine in shadow.named_parameters()):
        for name, mine in shadow.named_parameters():
            mine.data = theirs[name].data
        device = next(iter(theirs.values())).device
        for buffer in shadow.buffers():
            buffer.data = buffer.data.to(device)
        return
    weights = gathered()
    for name, mine in shadow.named_parameters():
        mine.copy_(weights[name])


def _is_whole(theirs: Tensor | None, mine: Tensor) -> bool:
    return theirs is not None and not isinstance(theirs, DTensor) and theirs.shape == mine.shape
