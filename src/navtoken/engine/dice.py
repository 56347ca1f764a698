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
from typing import NamedTuple

import torch
from torch import Tensor

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

    @classmethod
    def of(cls, params: Seq[SamplingParams], vocab_size: int) -> "Steps":
        hot = any(p.temperature > 0 for p in params)
        cold = any(p.temperature == 0 for p in params)
        truncates = any(p.top_k > 0 for p in params)
        return cls(
            hot,
            cold,
            max(_kept(p, vocab_size) for p in params) if truncates else 0,
            any(p.top_p < 1.0 for p in params),
            any(p.min_p > 0.0 for p in params),
        )


def dial_values(params: Seq[SamplingParams], vocab_size: int) -> list[list[float]]:
    """The values of some places' dials, as `Dials` has them."""
    return [
        [p.temperature for p in params],
        [_kept(p, vocab_size) for p in params],
        [p.top_p for p in params],
        [p.min_p for p in params],
    ]


def _kept(params: SamplingParams, vocab_size: int) -> int:
    """How many tokens top_k leaves."""
    return min(params.top_k, vocab_size) if params.top_k > 0 else vocab_size


@dataclass(frozen=True)
class Dials:
    """What tokens are drawn with."""

    values_4M: Tensor
    """Temperatures, numbers of tokens that top_k leaves, top_p and min_p, float64."""
    steps: Steps

    @property
    def hot_M(self) -> Tensor:
        """Where the temperature is above 0."""
        return self.values_4M[0] > 0

    def probs(self, logits_MV: Tensor) -> Tensor:
        """Probabilities after temperature, top-k, top-p and min-p, in this order (that of `transformers`), float64.

        Of places with temperature 0, those at temperature 1.
        """
        temperature_M, kept_M, top_p_M, min_p_M = self.values_4M.unbind()
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
