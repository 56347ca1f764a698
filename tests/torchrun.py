"""Runs a script of this folder as gloo ranks, and reads what each of them found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_ranks(script: str, folder: Path, *arguments: str, ranks: int = 2, timeout: float = 240) -> list[Any]:
    """What `script FOLDER ARGUMENT...` wrote as `rank-N.json` on each rank. A rank that hangs fails the test."""
    here = Path(__file__).parent
    launch = ["--standalone", "--nproc-per-node", str(ranks), "--", str(here / script), str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launch, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
