"""Draw tokens from logits: every sampling parameter, for both models, with noise that belongs to the token.

A token is drawn by inverting the cumulative distribution, in order of token ids, at a keyed uniform number. In order
of probability two nearly equal tokens would swap places, and the draw with them, whenever a batch rounds differently.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from navtoken.engine.options import SamplingParams
from navtoken.engine.sequence import Sequence
from navtoken.policies.base import NoiseKeys
from navtoken.policies.noise import Purpose, uniform


def noise_keys(rows: Seq[Sequence]) -> NoiseKeys:
    """The keys of the next token of each row."""
    return NoiseKeys(
        seed_B=np.array([row.seed for row in rows], dtype=np.int64),
        sample_B=np.array([row.sample for row in rows], dtype=np.int64),
        position_B=np.array([len(row.token_ids) for row in rows], dtype=np.int64),
    )


def draw(logits_BV: Tensor, rows: Seq[Sequence], keys: NoiseKeys, purpose: Purpose) -> Tensor:
    """One token id per row, int64 (B,), drawn with each row's own sampling parameters."""
    logits_BV = penalize(logits_BV, rows)
    token_ids_B = logits_BV.argmax(-1)
    hot = [index for index, row in enumerate(rows) if row.sampling.temperature > 0]
    if hot:
        probs_HV = truncated_probs(logits_BV[hot], [rows[index].sampling for index in hot])
        noise_H = uniform(keys.seed_B[hot], keys.sample_B[hot], keys.position_B[hot], purpose)
        token_ids_B[hot] = invert(probs_HV, torch.from_numpy(noise_H).to(logits_BV.device))
    return token_ids_B


def invert(probs_BV: Tensor, noise_B: Tensor) -> Tensor:
    """The token in whose stretch of the cumulative distribution the noise falls, (B,)."""
    cumulative_BV = probs_BV.double().cumsum(-1)
    target_B1 = (noise_B * cumulative_BV[:, -1])[:, None]
    return torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0].clamp_(max=probs_BV.shape[-1] - 1)


def truncated_probs(logits_BV: Tensor, params: Seq[SamplingParams]) -> Tensor:
    """Probabilities after temperature, top-k, top-p and min-p, in this order (that of `transformers`), float64."""
    scaled_BV = logits_BV.double() / _column([p.temperature for p in params], logits_BV)
    if any(p.top_k > 0 for p in params):
        scaled_BV = _top_k(scaled_BV, [p.top_k for p in params])
    if any(p.top_p < 1.0 for p in params):
        scaled_BV = _top_p(scaled_BV, [p.top_p for p in params])
    probs_BV = scaled_BV.softmax(-1)
    if any(p.min_p > 0.0 for p in params):
        least_B1 = probs_BV.amax(-1, keepdim=True) * _column([p.min_p for p in params], logits_BV)
        probs_BV = probs_BV.masked_fill(probs_BV < least_B1, 0.0)
        probs_BV = probs_BV / probs_BV.sum(-1, keepdim=True)
    return probs_BV


def penalize(logits_BV: Tensor, rows: Seq[Sequence]) -> Tensor:
    """Apply repetition, frequency and presence penalties where a row has any."""
    marked = [index for index, row in enumerate(rows) if row.sampling.has_penalties]
    if not marked:
        return logits_BV
    logits_BV = logits_BV.clone()
    for index in marked:
        logits_BV[index] = _penalized(logits_BV[index], rows[index])
    return logits_BV


def _penalized(logits_V: Tensor, row: Sequence) -> Tensor:
    size, params = len(logits_V), row.sampling
    counts = np.bincount(row.response_ids, minlength=size)[:size] if row.num_response else np.zeros(size)
    counts_V = torch.from_numpy(counts).to(logits_V)
    seen_V = counts_V > 0
    seen_V[torch.tensor(row.token_ids[: row.prompt_len], device=seen_V.device)] = True
    penalty = params.repetition_penalty
    repeated_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
    logits_V = torch.where(seen_V, repeated_V, logits_V)
    return logits_V - params.frequency_penalty * counts_V - params.presence_penalty * (counts_V > 0)


def _top_k(scaled_BV: Tensor, top_k: Seq[int]) -> Tensor:
    size = scaled_BV.shape[-1]
    kept = [min(k, size) if k > 0 else size for k in top_k]
    best_BK = scaled_BV.topk(max(kept), dim=-1).values
    least_B1 = best_BK.gather(1, torch.tensor(kept, device=scaled_BV.device)[:, None] - 1)
    return scaled_BV.masked_fill(scaled_BV < least_B1, -torch.inf)


def _top_p(scaled_BV: Tensor, top_p: Seq[float]) -> Tensor:
    ordered_BV, order_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    probs_BV = ordered_BV.softmax(-1)
    before_BV = probs_BV.cumsum(-1) - probs_BV
    dropped_BV = before_BV >= _column(top_p, scaled_BV)
    return scaled_BV.masked_fill(dropped_BV.scatter(1, order_BV, dropped_BV), -torch.inf)


def _column(values: Seq[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
