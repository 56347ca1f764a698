"""Ship what was trained: choose `base` among the LLM's snapshots, write the three folders and the training log."""

import bisect
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from navtoken.checkpoints import ModelPair, load_model
from navtoken.embedded.corpus import FAMILIES
from navtoken.embedded.recipe import PairOptions
from navtoken.engine import Engine, SamplingParams
from navtoken.policies import derive_seed, make_policy
from navtoken.provenance import provenance
from navtoken.tasks.prompts import render

RESPONSE_LIMIT = 400
"""Default length limit that the checkpoints state: as long as the longest training example."""


def export(options: PairOptions) -> None:
    """Write `slm`, `llm`, `base` and `training_log.json` to `options.out`."""
    snapshots = {name: sorted((options.work / name).glob("step*")) for name in ("slm", "llm")}
    log: dict[str, Any] = {"provenance": provenance(options=_plain(options)), "machine": _machine()}
    for name, found in snapshots.items():
        _ship(found[-1], options.work / "tokenizer", options.out / name)
        log[name] = [
            json.loads(line) for line in (options.work / f"{name}.log.jsonl").read_text().splitlines()
        ]
    chosen, tried = choose_base(snapshots["llm"], options)
    _ship(chosen, options.work / "tokenizer", options.out / "base")
    log["base"] = {"snapshot": chosen.name, "accuracy_at_temperature_1": tried}
    temporary = options.out / "training_log.json.tmp"
    temporary.write_text(json.dumps(log, indent=1) + "\n")
    temporary.replace(options.out / "training_log.json")


def choose_base(snapshots: list[Path], options: PairOptions) -> tuple[Path, dict[str, float]]:
    """The first snapshot that reaches `base_accuracy`, and the accuracy of each that was tried.

    Found by bisection, since accuracy grows with training. Raises `ValueError` where the last one is below.
    """
    tried: dict[str, float] = {}

    def accuracy(snapshot: Path) -> float:
        candidate = options.work / "candidate"
        _ship(snapshot, options.work / "tokenizer", candidate)
        tried[snapshot.name] = sampled_accuracy(candidate, options)
        print(f"{snapshot.name}: accuracy at T = 1 {tried[snapshot.name]:.3f}", flush=True)
        return tried[snapshot.name]

    found = bisect.bisect_left(snapshots, options.base_accuracy, key=accuracy)
    if found == len(snapshots):
        raise ValueError(
            f"no snapshot reaches base_accuracy={options.base_accuracy}: {tried}; lower it or train longer"
        )
    return snapshots[found], tried


def sampled_accuracy(folder: Path, options: PairOptions) -> float:
    """Accuracy at T = 1 on training problems, mean of the families."""
    model = load_model(str(folder))
    accuracies = []
    for task in FAMILIES:
        engine = Engine(ModelPair(model, model), make_policy("llm"))
        asked = {}
        for problem in task.problems("train", options.base_problems, options.seed):
            seed = derive_seed(options.seed, task.name, problem.problem_id)
            ids = render(model.tokenizer, task, problem).ids
            asked[engine.add(ids, SamplingParams(temperature=1.0), RESPONSE_LIMIT, seed).sequence_id] = (
                problem
            )
        right = 0
        for event in engine.run():
            if event.finish_reason:
                text = model.tokenizer.decode(event.sequence.response_ids, skip_special_tokens=True)
                right += task.verify(asked[event.sequence.sequence_id], text)
        accuracies.append(right / options.base_problems)
    return sum(accuracies) / len(accuracies)


def _ship(snapshot: Path, tokenizer: Path, target: Path) -> None:
    """Write a checkpoint in the standard layout beside its tokenizer, then rename."""
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(snapshot)
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    model.generation_config = GenerationConfig(
        eos_token_id=encoder.eos_token_id, pad_token_id=encoder.pad_token_id
    )
    model.save_pretrained(temporary)
    encoder.save_pretrained(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.replace(target)


def _plain(options: PairOptions) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def _machine() -> dict[str, Any]:
    return {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
