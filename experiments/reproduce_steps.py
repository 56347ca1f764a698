"""The steps of `reproduce.py`: one command per experiment, whole or small.

A new experiment is one entry in `FULL`, one in `QUICK` (or in `SKIPPED`, with the reason), its times in
`reproduce/times.json` and its figures in `reproduce_declared.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Size = Literal["full", "quick"]
HERE = Path(__file__).parent
TIMES = HERE / "reproduce" / "times.json"
KEPT = HERE / "reproduce" / "quick.json"
"""The small run's own figures."""


@dataclass(frozen=True)
class Step:
    """A command and where its results go."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    """`{folder}` stands for the folder of all results."""
    needs: tuple[str, ...] = ()
    """Steps without whose results this one cannot start."""
    out: str = ""
    """Folder of its results, as under `experiments/`; the step's own name where empty."""
    work: str | None = "--work"
    """The option that takes the folder of its traces; None where the script has none."""

    part: float = 1.0
    """Share of the committed run's problems."""
    leaves: Literal["results", "traces"] = "results"
    """Whether it writes into the folder of results, or of traces alone."""

    @property
    def experiment(self) -> str:
        return self.out or self.name

    def results(self, folder: Path) -> Path:
        """What must be there once it has ended."""
        return folder / ("work" if self.leaves == "traces" else "") / self.experiment

    def command(self, python: str, folder: Path) -> tuple[str, ...]:
        """All it writes lies under `folder`."""
        kept = (self.work, str(folder / "work" / self.experiment)) if self.work else ()
        arguments = (each.replace("{folder}", str(folder)) for each in self.arguments)
        return (python, str(HERE / self.script), *arguments, "--out", str(folder / self.experiment), *kept)


def _rl(name: str, *arguments: str, needs: tuple[str, ...] = (), part: float = 1.0) -> Step:
    return Step(f"rlvr {name}", "rlvr.py", arguments, needs, out="rlvr", part=part)


def _halves(stage: str, needs: tuple[str, ...] = ()) -> tuple[Step, ...]:
    """A stage's runs in two processes."""
    return tuple(_rl(f"{stage} {half + 1}/2", stage, "--part", f"{half}/2", needs=needs) for half in range(2))


_TUNED = ("rlvr tune 1/2", "rlvr tune 2/2")
_ARMS = ("rlvr arms 1/2", "rlvr arms 2/2")
_TRAINED = (
    "rlvr base",
    *(f"rlvr {stage} {half}/2" for stage in ("arms", "fractions", "length") for half in (1, 2)),
)


def _scaling(stage: str, *arguments: str, needs: tuple[str, ...] = (), part: float = 1.0) -> Step:
    given = (
        stage.partition(" ")[0],
        *arguments,
        "--rlvr",
        "{folder}/work/rlvr",
        "--tuned",
        "{folder}/rlvr/runs",
    )
    name = f"test_time_scaling {stage}"
    leaves: Literal["results", "traces"] = "results" if stage == "report" else "traces"
    out = "test_time_scaling"
    return Step(name, "test_time_scaling.py", given, needs, out=out, part=part, leaves=leaves)


def _scaling_steps() -> tuple[Step, ...]:
    """The study, which needs the trained models; what is drawn last needs what it trains itself."""
    train = _scaling("train", needs=_ARMS)
    draws = [
        _scaling(f"draw {half + 1}/2", "--part", f"{half}/2", needs=(*_ARMS, train.name)) for half in range(2)
    ]
    labels = _scaling("labels", needs=_ARMS)
    return train, *draws, labels, _scaling("report", needs=(*(draw.name for draw in draws), labels.name))


FULL = (
    Step("definitions", "definitions.py"),
    Step("embedded_pair", "embedded_pair.py", work="--traces"),
    Step("entropy_pattern", "entropy_pattern.py", work="--traces"),
    Step("perturbation", "perturbation.py", work="--traces"),
    # As many problems as the committed reports were made with; the routers themselves go beside them, not into the package.
    Step(
        "routers",
        "routers.py",
        ("--num", "1500", "--calibration-num", "150", "--weights", "{folder}/work/routers/weights"),
    ),
    Step("routing", "routing.py"),
    _rl("base", "base"),
    *_halves("tune"),
    *_halves("arms", _TUNED),
    *_halves("fractions", _TUNED),
    *_halves("length", _ARMS),
    _rl("report", "report", needs=_TRAINED),
    *_scaling_steps(),
)

GREEDY = (
    *("slm", "random:0.2", "entropy,share=0.2", "router,share=0.15", "router,share=0.18", "router,share=0.2"),
    *("hindsight:0.1", "hindsight:0.1,router=pair", "speculative:16", "llm"),
)
SAMPLED = ("slm", "router,share=0.15", "llm")
"""Policies of the small routing tables."""


def _policies(option: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for name in names for part in (option, name))


# As many samples as were committed: with fewer, the same problems would get other answers.
_FEW = ("--question", "policies", "--num", "4")

QUICK = (
    Step("definitions", "definitions.py", ("--num", "100", "--resamples", "300"), part=100 / 500),
    Step("embedded_pair", "embedded_pair.py", ("--num", "30"), work="--traces", part=30 / 200),
    Step("entropy_pattern", "entropy_pattern.py", ("--num", "250"), work="--traces", part=250 / 500),
    Step("perturbation", "perturbation.py", ("--num", "25"), work="--traces", part=25 / 500),
    Step(
        "routing",
        "routing.py",
        (
            *("--num", "20", "--samples", "2"),
            *_policies("--greedy", GREEDY),
            *_policies("--sampled", SAMPLED),
        ),
        part=20 / 250,
    ),
    _rl("base", "base", "--num", "200", part=200 / 500),
    _rl(
        "first steps",
        *("arms", "--run", "top20_0", "--steps", "4", "--learning-rate", "3e-4", "--num", "0"),
        part=200 / 500,
    ),
    _scaling("draw", *_FEW, part=4 / 50),
    _scaling("report", *_FEW, needs=("test_time_scaling draw",), part=4 / 50),
)

SKIPPED: dict[Size, dict[str, str]] = {
    "full": {
        "router_ablation": "no committed results",
    },
    "quick": {
        "routers": "a router of fewer labels is another router; the shares of labels are compared under definitions",
        "test_time_scaling, all but policies": "the trained models are not there",
        "rlvr tune, arms, fractions, length": "a shorter training is another training; the first steps of one run are compared, step by step",
    },
}


def steps_of(size: Size) -> tuple[Step, ...]:
    return FULL if size == "full" else QUICK


def estimates(size: Size) -> dict[str, float]:
    """Seconds per step, as committed; `times.json` says where they were measured."""
    times = json.loads(TIMES.read_text())[size]
    return {name: float(each["seconds"]) for name, each in times.items()}
