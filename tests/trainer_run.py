"""What each rank does in the test of training on several: `torchrun ... trainer_run.py FOLDER`, by gloo.

FOLDER gets one `rank-N.json` of each rank. Problems go to ranks in turns of a rank's part of the batch; which are informative is
such that the first rank has all that it needs at once and the second has nothing, at first or for good.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard

from navtoken.engine import EngineOptions, SamplingParams
from navtoken.rlvr import trainer as trainer_module
from navtoken.rlvr.groups import DynamicSamplingOptions
from navtoken.rlvr.rollouts import EngineRollouts, shadow_of
from navtoken.rlvr.selection import SelectionOptions, TokenColumns, select
from rlvr_runs import FixedRollouts, Sizes, graded, our_trainer, rows_fed, trained_model
from tiny_models import tiny_tokenizer

SIZES = Sizes(rows=4, accumulated=2, updates=1, steps=2)
"""On each rank two problems per batch, and two batches."""
KINDS = ["mixed", "mixed", "right", "wrong", *["mixed", "right"] * 30]
RANK = int(os.environ.get("RANK", "0"))


def only_the_first_rank(**columns: Any) -> list[float | None]:
    """Outcomes that differ on the first rank alone."""
    scores = graded(**columns)
    return scores if RANK == 0 else [1.0] * len(scores)


CASES: dict[str, dict[str, Any]] = {
    "batch": {"selection": SelectionOptions("top_entropy:0.2", ties="exact")},
    "mini": {"selection": SelectionOptions("random:0.3", "mini")},
    "never": {
        "selection": SelectionOptions("top_entropy:0.2", ties="exact"),
        "outcome": only_the_first_rank,
        "dynamic": DynamicSamplingOptions(max_rounds=1),
    },
    "never, micro": {
        "selection": SelectionOptions("top_entropy:0.5", "micro", ties="exact"),
        "outcome": only_the_first_rank,
        "dynamic": DynamicSamplingOptions(max_rounds=1),
    },
}


def trained(folder: Path, case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A run of two batches, and what became of it."""
    pools: list[dict[str, Any]] = []

    def recorded(columns: TokenColumns, options: SelectionOptions) -> Any:
        found = select(columns, options)
        names = ("entropy_N", "noise_N")
        pools.append(
            {name: getattr(columns, name).tolist() for name in names} | {"weights": found.weight_N.tolist()}
        )
        return found

    trainer_module.select = recorded
    rollouts = FixedRollouts()
    trainer = our_trainer(folder, KINDS, SIZES, rollouts=rollouts, **case)
    trainer.train()
    return trainer, {
        "steps": trainer.state.global_step,
        "forwards": len(trainer.losses),
        "rows": [len(inputs["advantages"]) for inputs in trainer.fed],
        "informative": [len(rows_fed(inputs)) for inputs in trainer.fed],
        "draws": [len(call) for call in rollouts.calls],
        "prompts": rollouts.calls,
        "pools": pools,
        "own": [own_weights(inputs) for inputs in trainer.fed],
        "drawn": vars(trainer.drawn),
        "weights": [weight.detach().flatten()[:5].tolist() for weight in trainer.model.parameters()],
        "moved": any((gradient != 0).any().item() for gradient in trainer.gradients[0].values()),
        "logged": trainer.logged[:2],
    }


def own_weights(inputs: dict[str, Any]) -> list[list[float]]:
    """Advantages of the tokens that count, row by row."""
    counted_BT = inputs["completion_mask"] * inputs["tool_mask"] > 0
    advantages = inputs["advantages"]
    values_BT = (
        advantages.expand_as(counted_BT)
        if advantages.dim() == 2
        else advantages[:, None].expand_as(counted_BT)
    )
    return [values[counted].tolist() for values, counted in zip(values_BT, counted_BT, strict=True)]


def shared_weights(trainer: Any) -> bool:
    """Does an engine on every rank get all of a model whose weights lie in shards?"""
    whole, sharded = trained_model(seed=7), trained_model(seed=7)
    rollouts = EngineRollouts(
        shadow_of(trained_model(seed=1), tiny_tokenizer(), "tiny"),
        SamplingParams(temperature=1.0),
        4,
        EngineOptions(max_rows=2, cache_gib=0.01),
    )
    trainer.model = trainer.model_wrapped = fully_shard(sharded, reshard_after_forward=True)
    local = next(sharded.parameters()).to_local()
    trainer.sync(rollouts)
    theirs = dict(whole.named_parameters())
    same = (torch.equal(mine, theirs[name]) for name, mine in rollouts.pair.llm.model.named_parameters())
    return local.numel() < next(whole.parameters()).numel() and all(same)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    result: dict[str, Any] = {}
    for name, case in CASES.items():
        trainer, result[name] = trained(folder / name, case)
    result["shared"] = shared_weights(trainer)
    (folder / f"rank-{RANK}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()
