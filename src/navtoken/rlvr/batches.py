"""What one forward is fed: rows of like length together, without the padding of longer ones elsewhere.

TRL pads a whole rollout batch to its longest response and cuts it into forwards as it is shuffled. An update's loss is a sum over
its rows, so they may be dealt to its forwards in any order, and a column of padding only costs time.

Shapes: B rows, P places of prompts (padded left), T of responses (padded right).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]
"""As TRL makes it: tensors whose first dimension is rows, scalars, and None."""

PROMPT = ("prompt_ids", "prompt_mask")
RESPONSE = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "advantages",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)
"""Columns with a place for each response token, where they have two dimensions and not one value a row."""


def by_length(parts: Sequence[Batch], num_accumulated: int) -> list[Batch]:
    """Deal the rows of each update (`num_accumulated` forwards of equal size) to its forwards by length; updates keep their rows."""
    out: list[Batch] = []
    for start in range(0, len(parts), num_accumulated):
        out += _dealt(parts[start : start + num_accumulated])
    return out


def _dealt(parts: Sequence[Batch]) -> list[Batch]:
    whole = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    length_B = whole["prompt_mask"].sum(1) + whole["completion_mask"].sum(1)
    order_B = torch.argsort(length_B, stable=True)
    size = len(order_B) // len(parts)
    return [
        {name: _taken(value, rows) for name, value in whole.items()}
        for rows in (order_B[i * size : (i + 1) * size] for i in range(len(parts)))
    ]


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    return torch.cat(list(values)) if isinstance(first, Tensor) and first.dim() else first


def _taken(value: Any, rows: Tensor) -> Any:
    return value[rows.to(value.device)] if isinstance(value, Tensor) and value.dim() else value


def trimmed(batch: Batch) -> Batch:
    """The batch without columns that are padding in every row; each side keeps one column at least."""
    prompt = max(1, int(batch["prompt_mask"].sum(1).max()))
    # Not the longest sum: what is masked may stand anywhere, and of a masked row nothing is attended to.
    there_T = batch["completion_mask"].any(0).nonzero()
    response = 1 + int(there_T.max()) if len(there_T) else 1
    width = batch["completion_mask"].shape[1]

    def cut(name: str, value: Any) -> Any:
        if name in PROMPT:
            return value[:, -prompt:]
        if name in RESPONSE and isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == width:
            return value[:, :response]
        return value

    return {name: cut(name, value) for name, value in batch.items()}
