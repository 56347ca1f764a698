"""One pool out of the tokens of all ranks, and each rank's part back.

Ranks hold different numbers of tokens, and one may hold none: lengths go around first, then columns padded to the longest, so
that no collective waits for a rank that has nothing to say, and no padding is ever part of the pool.

Shapes: B rows and T places of this rank, N tokens of the whole pool, L tokens of this rank.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Gathered(NamedTuple):
    """A pool, and where this rank's tokens lie in it."""

    columns_CN: Tensor
    own: slice

    def own_part(self, values_N: Tensor) -> Tensor:
        """(N,) -> (L,)."""
        return values_N[self.own]


def gather_columns(columns_CL: Tensor, accelerator: Any) -> Gathered:
    """Columns (C, L) of every rank side by side, in the order of ranks. Every rank must call it, with L = 0 too."""
    if accelerator.num_processes == 1:
        return Gathered(columns_CL, slice(0, columns_CL.shape[1]))
    length = torch.tensor([columns_CL.shape[1]], device=columns_CL.device)
    lengths = accelerator.gather(length).tolist()
    longest = max(lengths)
    padded_CL = torch.nn.functional.pad(columns_CL, (0, longest - columns_CL.shape[1]))
    # The first dimension is the one that ranks are put along.
    all_RCL = accelerator.gather(padded_CL[None])
    parts = [all_RCL[rank, :, :own] for rank, own in enumerate(lengths)]
    start = sum(lengths[: accelerator.process_index])
    return Gathered(torch.cat(parts, dim=1), slice(start, start + lengths[accelerator.process_index]))


def scattered(values_L: Tensor, mask_BT: Tensor) -> Tensor:
    """(L,) values of the places where the mask is True -> (B, T), 0 elsewhere."""
    out_BT = values_L.new_zeros(mask_BT.shape)
    out_BT[mask_BT.bool()] = values_L
    return out_BT
