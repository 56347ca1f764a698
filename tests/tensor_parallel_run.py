"""What each rank does in the test of tensor parallelism: `torchrun ... tensor_parallel_run.py FOLDER KIND...`.

FOLDER holds a pair per kind (`KIND/slm`, `KIND/llm`) and gets one `rank-N.json` of each rank. Last, every rank runs one
command on the first kind's pair, as `torchrun -m navtoken.cli` would. One process runs the same, for what to compare with.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from navtoken.checkpoints import ModelPair, load_pair
from navtoken.cli import main
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.placement import Placement, agree, num_ranks
from navtoken.policies import make_policy
from tiny_models import prompts

POLICIES = ("llm", "random:0.3")
MAX_TOKENS = 12


def load(folder: Path, kind: str, tp: int, slm_tp: int) -> ModelPair:
    slm, llm = (str(folder / kind / name) for name in ("slm", "llm"))
    return load_pair(slm, llm, Placement(tp=slm_tp), "float64", Placement(tp=tp))


def decode(pair: ModelPair, policy: str) -> list[list[int]]:
    """Responses to prompts of mixed lengths, some sampled."""
    engine = Engine(pair, make_policy(policy), EngineOptions(max_rows=3, llm_min_rows=2))
    rows = [
        engine.add(prompt, SamplingParams(temperature=index % 2), MAX_TOKENS, seed=index)
        for index, prompt in enumerate(prompts(5))
    ]
    list(engine.run())
    return [row.response_ids for row in rows]


def decoded(folder: Path, kinds: list[str], tp: int) -> dict[str, Any]:
    """Everything that must not depend on the number of ranks, and the cards, which say how it is shared."""
    out: dict[str, Any] = {"tokens": {}, "cards": {}, "devices": {}}
    for kind in kinds:
        for slm_tp in sorted({1, tp}):
            pair = load(folder, kind, tp, slm_tp)
            for policy in POLICIES:
                out["tokens"][f"{kind} {policy} slm_tp={slm_tp == tp}"] = decode(pair, policy)
            cards = {"slm": asdict(pair.slm.card), "llm": asdict(pair.llm.card)}
            out["cards"][f"{kind} slm_tp={slm_tp == tp}"] = cards
            out["devices"][kind] = [str(pair.slm.device), str(pair.llm.device), pair.llm.is_whole]
    pid = os.getpid()
    return out | {"pid": pid, "agreed": agree(pid), "most": agree(pid, max), "shards": pair.shards}


def command(folder: Path, kind: str, tp: int, out: str) -> list[str]:
    """Arguments of a run that resumes where `few` problems are done, and adds some."""
    slm, llm = (str(folder / kind / name) for name in ("slm", "llm"))
    return (
        f"generate --slm {slm} --llm {llm} --tp {tp} --dtype float64 --task arithmetic --policy random:0.3 "
        f"--policy llm --num 3 --max-tokens 5 --out {folder / out} --json"
    ).split()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kinds = Path(sys.argv[1]), sys.argv[2:]
    result = decoded(folder, kinds, num_ranks())
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(result))
    sys.exit(main(command(folder, kinds[0], num_ranks(), "sharded")))
