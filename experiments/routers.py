"""Labels, and from them the embedded pair's routers with their thresholds: what `make router` runs.

    .venv/bin/python experiments/routers.py

writes `experiments/routers/`: `labels_greedy.json` and `labels_sampled.json` (what `navtoken label` said), `router.json` and `query_router.json` (the
reports of `navtoken train-router`, with provenance); and the routers themselves, which ship with the package, to `--weights`. Run again, it goes on
where it stopped. The committed reports are of `--num 1500 --calibration-num 150`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

SHARES = (0.1, 0.13, 0.15, 0.18, 0.2)
RECALLS = (0.9, 0.95)
QUERY_SHARES = (0.1, 0.2, 0.4)
WEIGHTS = ("router.json", "router.safetensors")


@dataclass(frozen=True)
class Options:
    """The experiment's size."""

    num: int = 3000
    """Problems per family that the routers learn from: few responses that run in circles hold much of an LLM share, so it takes many."""
    calibration_num: int = 250
    """Problems per family on which thresholds are found at most."""
    out: Path = Path("experiments/routers")
    """Folder of the reports."""
    weights: Path = Path("src/navtoken/embedded")
    """Folder of the routers."""
    work: Path = Path("build")
    """Folder of labels and trainings."""


def main(options: Options) -> None:
    for arguments in commands(options):
        subprocess.run((sys.executable, "-m", "navtoken.cli", *arguments), check=True)
    work = options.work
    for name in ("router", "query_router"):
        for file in WEIGHTS:
            copy(work / name / file, options.weights / name / file)
        copy(work / name / "report.json", options.out / f"{name}.json")
    for draft in ("greedy", "sampled"):
        copy(work / "labels" / draft / "labels.json", options.out / f"labels_{draft}.json")


def commands(options: Options) -> Iterator[tuple[str, ...]]:
    """Arguments of `navtoken`, one command after the other."""
    num, calibration = ("--num", str(options.num)), str(options.calibration_num)
    labels, router = options.work / "labels", str(options.work / "router")
    greedy, sampled, slm = (str(labels / name) for name in ("greedy", "sampled", "slm"))
    responses = str(labels / "greedy" / "responses")
    yield "label", *num, "--out", greedy
    yield "label", responses, "--draft", "sampled", "--out", sampled
    yield (
        *("train-router", greedy, sampled, "--epochs", "12", "--calibration-num", calibration),
        *repeated("--share", SHARES),
        *repeated("--recall", RECALLS),
        *("--out", router),
    )
    yield "calibrate", router, "--num", calibration, "--temperature", "0"
    yield "generate", "--split", "train", "--policy", "slm", *num, "--out", slm
    yield (
        *("train-router", "--kind", "query", "--traces", slm, "--traces", responses, "--temperature", "0"),
        *("--calibration-num", calibration),
        *repeated("--share", QUERY_SHARES),
        *("--out", str(options.work / "query_router")),
    )


def repeated(option: str, values: tuple[float, ...]) -> Iterator[str]:
    for value in values:
        yield option
        yield str(value)


def copy(source: Path, target: Path) -> None:
    """Beside `target`, then renamed: nobody loads half a router."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, partial)
    os.replace(partial, target)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
