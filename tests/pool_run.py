"""What each rank does in the test of pools: `torchrun ... pool_run.py FOLDER`, by gloo.

FOLDER gets one `rank-N.json` of each rank. Ranks hold different numbers of tokens, rank 0 none at all in `empty`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from navtoken.rlvr.pool import gather_columns
from navtoken.rlvr.selection import SelectionOptions, TokenColumns, select

LENGTHS = {"unequal": (7, 40), "empty": (0, 33), "other way": (29, 0), "nobody": (0, 0)}
"""Tokens of each rank, by the name of the case."""
SELECTIONS = (
    SelectionOptions("top_entropy:0.2", ties="exact"),
    SelectionOptions("bottom_entropy:0.3", ties="exact", normaliser="all"),
    SelectionOptions("random:0.25"),
    SelectionOptions("all"),
)


def columns_of(case: str, rank: int) -> Tensor:
    """(3, L), different on each rank. Entropies have ties within and across ranks, and none of them is 0, as padding is."""
    generator = torch.Generator().manual_seed(100 * len(case) + rank)
    eighths_CL = torch.randint(1, 60, (3, LENGTHS[case][rank]), generator=generator)
    return eighths_CL / 8


def noise_of(case: str) -> Tensor:
    generator = torch.Generator().manual_seed(len(case))
    return torch.rand(sum(LENGTHS[case]), generator=generator, dtype=torch.float64)


def weights_of(columns_CN: Tensor, case: str) -> list[Tensor]:
    return [select(TokenColumns(*columns_CN, noise_of(case)), options).weight_N for options in SELECTIONS]


def found(accelerator: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for case in LENGTHS:
        pool = gather_columns(columns_of(case, accelerator.process_index), accelerator)
        own = [pool.own_part(weight_N).tolist() for weight_N in weights_of(pool.columns_CN, case)]
        out[case] = {"pool": pool.columns_CN.tolist(), "weights": own}
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = found(Accelerator(cpu=True))
    Path(sys.argv[1], f"rank-{os.environ['RANK']}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()
