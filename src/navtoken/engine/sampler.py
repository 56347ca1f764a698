"""Draw tokens for rows: every sampling parameter, for both models, with noise that belongs to the token.

The tensor work is `dice`'s; here rows become its numbers, and what depends on a row's own tokens is added to its logits.

Shapes: M places at which a token is decided, V vocabulary.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from navtoken.engine.dice import Dials, Dice, Steps, dial_values
from navtoken.engine.options import SamplingParams
from navtoken.engine.sequence import Sequence
from navtoken.policies.noise import NoiseKeys, Purpose

TemperatureHook = Callable[[Tensor, Tensor], Tensor]
"""(entropy in nats at T = 1, the temperature that the request gives this token) -> temperature to draw with, each float64
(M,). For rules that sampling parameters do not have."""


@dataclass(frozen=True)
class Places:
    """Where tokens are to be decided: which row, and at which of its positions."""

    rows: Seq[Sequence]
    positions: Seq[int]
    """Index in prompt and response together."""

    @classmethod
    def next_of(cls, rows: Seq[Sequence]) -> "Places":
        """The next token of each row."""
        return cls(rows, [len(row.token_ids) for row in rows])

    @classmethod
    def judged_of(cls, rows: Seq[Sequence]) -> "Places":
        """Each row's provisional tokens, and the token after them."""
        rows_M: list[Sequence] = []
        positions_M: list[int] = []
        for row in rows:
            end = len(row.token_ids)
            rows_M += [row] * (row.num_provisional + 1)
            positions_M += range(end - row.num_provisional, end + 1)
        return cls(rows_M, positions_M)

    @property
    def params(self) -> list[SamplingParams]:
        return [row.sampling for row in self.rows]

    @cached_property
    def keys(self) -> NoiseKeys:
        return NoiseKeys(
            seed_B=np.array([row.seed for row in self.rows], dtype=np.int64),
            sample_B=np.array([row.sample for row in self.rows], dtype=np.int64),
            position_B=np.array(self.positions, dtype=np.int64),
        )

    def noise(self, device: torch.device) -> Callable[[Purpose], Tensor]:
        """Each place's own uniform numbers, as a policy reads them."""
        return lambda purpose: torch.from_numpy(self.keys.uniform(purpose)).to(device)


class Draw(Dice):
    """Draws for rows, by their own sampling parameters and noise."""

    def __init__(
        self,
        logits_MV: Tensor,
        places: Places,
        eos_token_ids: Seq[int] = (),
        temperature_M: Tensor | None = None,
        entropy_M: Tensor | None = None,
    ) -> None:
        """`temperature_M`, float64, overrides the requests' temperatures; without it, requests that tell forking tokens
        from others need `entropy_M`, in nats at T = 1."""
        super().__init__(
            adjust(logits_MV, places, eos_token_ids),
            dials_of(places.params, logits_MV, temperature_M).at(entropy_M),
            places.noise(logits_MV.device),
        )


def dials_of(params: Seq[SamplingParams], logits_MV: Tensor, temperature_M: Tensor | None = None) -> Dials:
    """The dials of some places, on the device of their logits."""
    size = logits_MV.shape[-1]
    values_6M = torch.tensor(dial_values(params, size), dtype=torch.float64, device=logits_MV.device)
    steps = Steps.of(params, size)
    if temperature_M is not None:
        values_6M[0] = temperature_M
        # Whether a given temperature is 0 only the device knows.
        steps = steps._replace(hot=True, cold=True, forks=False)
    return Dials(values_6M, steps)


def truncated_probs(logits_MV: Tensor, params: Seq[SamplingParams], temperatures: Seq[float]) -> Tensor:
    """Probabilities after temperature, top-k, top-p and min-p, in this order (that of `transformers`), float64 (M, V)."""
    temperature_M = torch.tensor(temperatures, dtype=torch.float64, device=logits_MV.device)
    return dials_of(params, logits_MV, temperature_M).probs(logits_MV)


def adjust(logits_MV: Tensor, places: Places, eos_token_ids: Seq[int]) -> Tensor:
    """Apply penalties, biases and the ban on ends before `min_tokens`, where a row has any."""
    marked = [
        index
        for index, (row, position) in enumerate(zip(places.rows, places.positions, strict=True))
        if row.sampling.has_penalties
        or row.sampling.logit_bias
        or position - row.prompt_len < row.sampling.min_tokens
    ]
    if not marked:
        return logits_MV
    logits_MV = logits_MV.clone()
    for index in marked:
        row, position = places.rows[index], places.positions[index]
        logits_MV[index] = _adjusted(logits_MV[index], row, position, eos_token_ids)
    return logits_MV


def _adjusted(logits_V: Tensor, row: Sequence, position: int, eos_token_ids: Seq[int]) -> Tensor:
    params = row.sampling
    if params.has_penalties:
        logits_V = _penalized(logits_V, row, position)
    if params.logit_bias:
        ids, biases = zip(*params.logit_bias, strict=True)
        bias_V = torch.zeros_like(logits_V)
        bias_V[list(ids)] = torch.tensor(biases, dtype=bias_V.dtype, device=bias_V.device)
        logits_V = logits_V + bias_V
    if position - row.prompt_len < params.min_tokens and eos_token_ids:
        logits_V = logits_V.index_fill(0, torch.tensor(eos_token_ids, device=logits_V.device), -torch.inf)
    return logits_V


def _penalized(logits_V: Tensor, row: Sequence, position: int) -> Tensor:
    size, params = len(logits_V), row.sampling
    response = row.token_ids[row.prompt_len : position]
    counts = np.bincount(response, minlength=size)[:size] if response else np.zeros(size)
    counts_V = torch.from_numpy(counts).to(logits_V)
    seen_V = counts_V > 0
    seen_V[torch.tensor(row.token_ids[: row.prompt_len], device=seen_V.device)] = True
    penalty = params.repetition_penalty
    repeated_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
    logits_V = torch.where(seen_V, repeated_V, logits_V)
    return logits_V - params.frequency_penalty * counts_V - params.presence_penalty * (counts_V > 0)
