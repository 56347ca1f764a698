"""What a model said about the next token of each row, as tensors, and the one copy that brings it to the host.

Shapes: B rows, V vocabulary, A alternatives, F columns.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LOWEST = -87.0
"""Log-probability below which a token counts for nothing."""


@dataclass(frozen=True)
class Evidence:
    """Everything is at T = 1, before sampling parameters."""

    logprobs_BV: Tensor
    entropy_B: Tensor
    """Nats."""
    top_ids_BA: Tensor
    top_logprobs_BA: Tensor


def gather_evidence(logits_BV: Tensor, num_alternatives: int) -> Evidence:
    """Log-probabilities, entropies in nats, and the most probable tokens where asked for."""
    logprobs_BV = logits_BV.log_softmax(-1)
    # Exponentials below float32's normal range are more than ten times as slow, and add nothing to the sum.
    floored_BV = logprobs_BV.clamp(min=LOWEST)
    entropy_B = -torch.linalg.vecdot(floored_BV.exp(), floored_BV)
    best = logprobs_BV.topk(min(num_alternatives, logprobs_BV.shape[-1]), dim=-1)
    return Evidence(logprobs_BV, entropy_B, best.indices, best.values)


class Judgement(NamedTuple):
    """What became of B rows, still on the device."""

    columns_BF: Tensor
    """All that the engine must know, float64: it holds token ids exactly."""
    logprobs_BV: Tensor
    """Of the model that was run, T = 1."""


def as_table(columns: Seq[Tensor]) -> Tensor:
    """Columns (B,) or (B, A) side by side, (B, F) float64."""
    wide = [column[:, None] if column.dim() == 1 else column for column in columns]
    return torch.cat([column.double() for column in wide], 1)


def to_host(columns: Seq[Tensor]) -> list[list[float]]:
    """Columns (B,) or (B, A) to one list of numbers per row, in one copy."""
    rows: list[list[float]] = as_table(columns).tolist()
    return rows
