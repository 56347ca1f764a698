"""Responses of the policy being trained, by the project's engine: continuous batching over a cache that samples share.

What an RLVR step needs besides tokens, their log-probabilities and the entropies at their positions, the engine knows anyway:
no second forward is made for them. The engine's model shares its weights with the one that is trained where these lie whole
in one process and in one dtype; where they are sharded (FSDP, ZeRO-3), or kept in float32 and computed in bfloat16, it has a
copy, filled anew before every batch.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
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

Gathered = Callable[[], Iterable[tuple[str, Tensor]]]
"""Makes weights whole out of what ranks hold, one by one, on every rank; collective."""
FSDP_PREFIX = "_fsdp_wrapped_module."
"""Before names of weights inside modules that FSDP 1 wrapped."""


class RolloutError(ValueError):
    """A model that responses cannot be drawn from."""


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
        # What the engine records is of the whole distribution at T = 1.
        self.tells_scores = sampling == SamplingParams(temperature=1.0)
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
        return [[self._rollout(row) for row in rows] for rows in groups]

    def _rollout(self, row: Sequence) -> Rollout:
        if not self.tells_scores:
            return Rollout(row.response_ids)
        return Rollout(row.response_ids, row.record.logprob_llm, row.record.entropy_llm)


def shadow_of(
    model: nn.Module,
    tokenizer: Any,
    reference: str,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> LoadedModel:
    """The same model for the engine: modules of its own (it runs another attention), weights in common, or copies of another dtype or on another device.

    Call it before a trainer patches or wraps the model.
    """
    shared: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
    }
    shadow = copy.deepcopy(model, shared)
    for parameter in shadow.parameters() if dtype else ():
        # Not the whole module: its rotary frequencies are buffers, and in bfloat16 they are too coarse for long responses.
        parameter.data = parameter.data.to(dtype)
    return LoadedModel(shadow, tokenizer, reference)


@torch.no_grad()
def follow(shadow: nn.Module, model: nn.Module, gathered: Gathered) -> None:
    """Give the shadow the model's weights: the same memory where each lies whole on this rank in one dtype, else copies.

    Raises `RolloutError` where the model has not all of the shadow's weights.
    """
    theirs, missing = dict(model.named_parameters()), dict(shadow.named_parameters())
    whole = all(_is_whole(theirs.get(name), mine) for name, mine in missing.items())
    for name, weight in theirs.items() if whole else gathered():
        mine = missing.pop(name, None)
        if mine is None:
            continue
        if whole and weight.dtype == mine.dtype and weight.device == mine.device:
            mine.data = weight.data
        else:
            mine.copy_(weight)
    if missing:
        raise RolloutError(
            f"the model in training has no weight '{next(iter(missing))}', which the engine's has; give rollouts transformers or vllm"
        )


def _is_whole(theirs: Tensor | None, mine: Tensor) -> bool:
    return theirs is not None and not isinstance(theirs, DTensor) and theirs.shape == mine.shape


def whole_weights(
    model: nn.Module, wrapped: nn.Module, backend: Any, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Sharded weights made whole on every rank, one after the other: Accelerate's own gathering leaves all ranks but the first
    without any. `backend` is TRL's `DistributedBackend`; collective."""
    with backend.summon_full_params(wrapped, writeback=False):
        for name, weight in model.named_parameters():
            with backend.gather_params([weight]):
                if isinstance(weight, DTensor):
                    # Offloaded shards are gathered by the accelerator, too.
                    weight = weight.to(device).full_tensor()  # type: ignore[attr-defined]
                yield name.replace(FSDP_PREFIX, ""), weight.data
