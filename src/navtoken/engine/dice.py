"""Tokens out of logits as plain tensor work: temperature, truncation and a draw, the same eagerly and in a captured graph.

Which steps there are is decided on the host (`Steps`); the values that they use are tensors (`Dials`), so that captured work
serves any values.

A token is drawn by inverting the cumulative distribution, in order of token ids, at a keyed uniform number. In order
of probability two nearly equal tokens would swap places, and the draw with them, whenever a batch rounds differently.

Shapes: M places at which a token is decided, V vocabulary.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from navtoken.engine.fork_temperature import fork_temperatures
from navtoken.engine.options import SamplingParams
from navtoken.policies import Noise, Purpose
from navtoken.policies.speculative import invert


class Steps(NamedTuple):
    """What drawing takes at some places: steps that none of them asks for are left out."""

    hot: bool
    """Has any a temperature above 0?"""
    cold: bool
    """Has any the temperature 0?"""
    most_k: int
    """The largest top_k, where any is given; all tokens where one place keeps all."""
    top_p: bool
    min_p: bool
    forks: bool
    """Has any another temperature for forking tokens?"""

    @classmethod
    def of(cls, params: Seq[SamplingParams], vocab_size: int) -> "Steps":
        temperatures = [t for p in params for t in (p.temperature, p.fork_temperature) if t is not None]
        truncates = any(p.top_k > 0 for p in params)
        return cls(
            any(t > 0 for t in temperatures),
            any(t == 0 for t in temperatures),
            max(_kept(p, vocab_size) for p in params) if truncates else 0,
            any(p.top_p < 1.0 for p in params),
            any(p.min_p > 0.0 for p in params),
            any(p.fork_threshold is not None for p in params),
        )


def dial_values(params: Seq[SamplingParams], vocab_size: int) -> list[list[float]]:
    """The values of some places' dials, as `Dials` has them."""
    return [
        [p.temperature for p in params],
        [_kept(p, vocab_size) for p in params],
        [p.top_p for p in params],
        [p.min_p for p in params],
        [inf if p.fork_threshold is None else p.fork_threshold for p in params],
        [p.temperature if p.fork_temperature is None else p.fork_temperature for p in params],
    ]


def _kept(params: SamplingParams, vocab_size: int) -> int:
    """How many tokens top_k leaves."""
    return min(params.top_k, vocab_size) if params.top_k > 0 else vocab_size


@dataclass(frozen=True)
class Dials:
    """What tokens are drawn with."""

    values_6M: Tensor
    """Temperatures, numbers of tokens that top_k leaves, top_p, min_p, entropies above which tokens fork (infinity where
    none do) and temperatures of those, float64."""
    steps: Steps

    def at(self, entropy_M: Tensor | None) -> "Dials":
        """With the temperatures that these entropies (nats, T = 1) give: needed where any place has a rule for forks."""
        if not self.steps.forks:
            return self
        assert entropy_M is not None, "a place tells forking tokens from others: give the entropies"
        other_M, *_, threshold_M, fork_M = self.values_6M.unbind()
        decided_M = fork_temperatures(entropy_M, threshold_M, fork_M, other_M)
        return Dials(torch.cat([decided_M[None], self.values_6M[1:]]), self.steps)

    @property
    def temperature_M(self) -> Tensor:
        return self.values_6M[0]

    @property
    def hot_M(self) -> Tensor:
        """Where the temperature is above 0."""
        return self.temperature_M > 0

    def probs(self, logits_MV: Tensor) -> Tensor:
        """Probabilities after temperature, top-k, top-p and min-p, in this order (that of `transformers`), float64.

        Of places with temperature 0, those at temperature 1.
        """
        temperature_M, kept_M, top_p_M, min_p_M = self.values_6M[:4].unbind()
        scaled_MV = logits_MV.double() / torch.where(self.hot_M, temperature_M, 1.0)[:, None]
        if self.steps.most_k:
            scaled_MV = _top_k(scaled_MV, kept_M, self.steps.most_k)
        if self.steps.top_p:
            scaled_MV = _top_p(scaled_MV, top_p_M[:, None])
        probs_MV = scaled_MV.softmax(-1)
        if self.steps.min_p:
            least_M1 = probs_MV.amax(-1, keepdim=True) * min_p_M[:, None]
            probs_MV = probs_MV.masked_fill(probs_MV < least_M1, 0.0)
            probs_MV = probs_MV / probs_MV.sum(-1, keepdim=True)
        return probs_MV


@dataclass(frozen=True)
class Dice:
    """Tokens drawn at some places, and on demand what they were drawn from."""

    logits_MV: Tensor
    """After penalties, biases and bans."""
    dials: Dials
    noise: Noise

    def tokens(self, purpose: Purpose) -> Tensor:
        """One token id per place, int64 (M,)."""
        steps = self.dials.steps
        if not steps.hot:
            return self.logits_MV.argmax(-1)
        drawn_M = invert(self._hot_probs_MV, self.noise(purpose))
        if not steps.cold:
            return drawn_M
        return torch.where(self.dials.hot_M, drawn_M, self.logits_MV.argmax(-1))

    def probs(self) -> Tensor:
        """What the tokens are drawn from, float64 (M, V): one-hot where the temperature is 0."""
        steps = self.dials.steps
        if not steps.cold:
            return self._hot_probs_MV
        sure_MV = torch.zeros_like(self.logits_MV, dtype=torch.float64)
        sure_MV.scatter_(1, self.logits_MV.argmax(-1, keepdim=True), 1.0)
        if not steps.hot:
            return sure_MV
        return torch.where(self.dials.hot_M[:, None], self._hot_probs_MV, sure_MV)

    @cached_property
    def _hot_probs_MV(self) -> Tensor:
        return self.dials.probs(self.logits_MV)


def _top_k(scaled_MV: Tensor, kept_M: Tensor, most: int) -> Tensor:
    best_MK = scaled_MV.topk(most, dim=-1).values
    least_M1 = best_MK.gather(1, kept_M.long()[:, None] - 1)
    return scaled_MV.masked_fill(scaled_MV < least_M1, -torch.inf)


def _top_p(scaled_MV: Tensor, top_p_M1: Tensor) -> Tensor:
    ordered_MV, order_MV = scaled_MV.sort(dim=-1, descending=True, stable=True)
    probs_MV = ordered_MV.softmax(-1)
    before_MV = probs_MV.cumsum(-1) - probs_MV
    # Sums round: where all is kept, nothing may fall out behind a sum that reached 1.
    dropped_MV = (before_MV >= top_p_M1) & (top_p_M1 < 1.0)
    return scaled_MV.masked_fill(dropped_MV.scatter(1, order_MV, dropped_MV), -torch.inf)
