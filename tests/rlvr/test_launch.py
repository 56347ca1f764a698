"""`accelerate launch -m navtoken.rlvr` on two CPU processes: one run, one folder, the model of both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from navtoken.rlvr.journal import Journal
from tiny_models import tiny_model

HERE = Path(__file__).parents[1]
EXAMPLES = HERE.parent / "examples"


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    loaded = tiny_model("qwen3", 3, torch.float32, max_position_embeddings=512)
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "run"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(EXAMPLES / "accelerate_cpu.yaml")]
    run = f"--model {tmp_path / 'model'} --task arithmetic --num 12 --steps 2 --reward python:made_up_rewards.long_enough"
    sizes = "--rollout-prompts 4 --num-generations 4 --max-tokens 8 --forward-rows 4 --learning-rate 1e-3 --select random:0.5"
    watch = "--held-out-num 3 --drift-num 2 --save-every 1 --device cpu"
    done = subprocess.run(
        [sys.executable, *launch, "-m", "navtoken.rlvr", *run.split(), *sizes.split(), *watch.split()]
        + ["--out", str(out), "--json"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # One process speaks, and its last line is the result.
    result = json.loads(done.stdout.splitlines()[-1])
    assert sum(line.startswith("{") for line in done.stdout.splitlines()) == 1
    assert result["steps"] == 2
    journal = Journal(out)
    assert [each["step"] for each in journal.records("train")] == [1, 2]
    assert result["provenance"]["ranks"] == 2
    # The pool is both ranks' tokens: more than one rank's 8 responses could have.
    assert journal.records("train")[0]["selection/pool_tokens"] > 8 * 8
    assert result["after"]["num_problems"] == 3
    assert (out / "model" / "model.safetensors").exists()
