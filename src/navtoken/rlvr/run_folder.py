"""A run's folder: whose it is, where the run in it goes on, and where one that continues another begins.

A checkpoint counts once its last file is there: a kill while one is written leaves an older one to go on from.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig

from navtoken.report.markup import write_whole
from navtoken.rlvr.options import TrainRLError, TrainRLOptions
from navtoken.rlvr.trainer import STATE
from navtoken.rlvr.trl_arguments import CHECKPOINTS

RUN, RESULT, MODEL = "run.json", "result.json", "model"
"""What the run was asked for, what came of it, and the trained model."""
MAY_CHANGE = frozenset(("steps", "out", "threads", "device", "report_to", "save_every", "save_total"))
"""Options that may differ when a run goes on: its batches and updates do not depend on them."""
KEPT = ("model", "task", "num", "seed", "learning_rate", "weight_decay", "warmup_steps")
"""Options that a run which continues another has in common with it: they are in the optimiser's state, or in the order of problems."""


class Claim(NamedTuple):
    """Where a run begins."""

    checkpoint: str | None
    """What it goes on from."""
    start: int
    """Updates that another run had made before."""


def claim(options: TrainRLOptions, record: dict[str, Any], args: GRPOConfig) -> Claim:
    """Take the folder for this run, or find it again. Raises `TrainRLError` where it belongs to a run with other options."""
    path = options.out / RUN
    # On every machine the folder is the same one, so only one process of all goes first.
    with args.main_process_first(local=False, desc="claiming the folder"):
        if path.exists():
            check_same(options, json.loads(path.read_text()), record)
        elif args.process_index == 0:
            start = _bring_over(options) if options.continue_from is not None else 0
            write_whole(path, json.dumps(record | {"start": start}, indent=1, default=str) + "\n")
    checkpoint = last_checkpoint(options.out)
    return Claim(None if checkpoint is None else str(checkpoint), json.loads(path.read_text())["start"])


def check_same(options: TrainRLOptions, before: dict[str, Any], record: dict[str, Any]) -> None:
    """Raise `TrainRLError` naming the first option that differs."""
    asked, had = flat(record["arguments"]), flat(before["arguments"])
    for name in (each for each in asked if each not in MAY_CHANGE and asked[each] != had.get(each)):
        raise TrainRLError(
            f"{options.out} holds a run with {name} {had.get(name)!r}, asked for is {asked[name]!r}; give another --out, or "
            "the options that it began with"
        )
    if before["fingerprints"] != record["fingerprints"]:
        raise TrainRLError(f"{options.out} holds a run of another '{options.model}'; give another --out")
    if before["ranks"] != record["ranks"]:
        raise TrainRLError(
            f"{options.out} holds a run of {before['ranks']} processes, these are {record['ranks']}: batches would be others; "
            "start as many, or give another --out"
        )


def flat(arguments: dict[str, Any]) -> dict[str, Any]:
    """Names of groups left out, as on the command line; values as JSON keeps them."""
    found: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(arguments, default=str)).items():
        found |= flat(value) if isinstance(value, dict) else {name: value}
    return found


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole."""
    found = [
        path for path in (folder / CHECKPOINTS).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (path / STATE).exists()
    ]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path | str | None) -> int:
    """Updates before a checkpoint; 0 where there is none."""
    return 0 if checkpoint is None else int(str(checkpoint).rpartition("-")[2])


def _bring_over(options: TrainRLOptions) -> int:
    """Copy another run's last checkpoint; returns its step. Raises `TrainRLError` where there is none, or the run is too different."""
    assert options.continue_from is not None
    found = last_checkpoint(options.continue_from)
    if found is None:
        raise TrainRLError(
            f"{options.continue_from} holds no checkpoint of a run; name the folder that --out named then"
        )
    _check_continues(options)
    target = options.out / CHECKPOINTS / found.name
    partial = target.with_name(f".{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(found, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return step_of(found)


def _check_continues(options: TrainRLOptions) -> None:
    assert options.continue_from is not None
    had = flat(json.loads((options.continue_from / RUN).read_text())["arguments"])
    asked = flat(asdict(options))
    for name in (each for each in KEPT if asked[each] != had.get(each)):
        raise TrainRLError(
            f"the run in {options.continue_from} had {name} {had.get(name)!r}, asked for is {asked[name]!r}: what continues it "
            "keeps its optimiser and its problems; give the same"
        )
