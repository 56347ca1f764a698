"""What more samples and longer responses buy: routing, training on forking tokens, and both together, on one axis.

    .venv/bin/python experiments/test_time_scaling.py train     # the SLM on its forking tokens, and a router for it
    .venv/bin/python experiments/test_time_scaling.py draw      # every response of every arm
    .venv/bin/python experiments/test_time_scaling.py labels    # does the router still find where the models part?
    .venv/bin/python experiments/test_time_scaling.py report    # tables and pictures of what is there

The large models come from `experiments/rlvr.py arms` (in a clone, whose committed results would do: `--out build/rlvr_again --learning-rate 3e-4`),
which has to run first. Each stage goes on where it stopped; `--part 0/2` and
`--part 1/2` share the arms of `draw` between two processes. `report` writes `experiments/test_time_scaling/`: `scale.json` (rows,
differences, LLM shares, labels, provenance), `table.md`, `readme.md`, and a picture per question. What was fixed before the first draw, and
why, is in `PLAN`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console

from navtoken.analysis.plain import plain
from navtoken.analysis.ranking import Resampling
from navtoken.checkpoints import ModelPair
from navtoken.commands import label, train_router
from navtoken.commands.label_inputs import RESPONSES
from navtoken.commands.scale import MEASUREMENTS, ScaleOptions, measurements
from navtoken.engine import SamplingParams
from navtoken.evaluation import EvaluateOptions, evaluate
from navtoken.evaluation.measurements import Measurements
from navtoken.generation import GenerationOptions, ModelOptions
from navtoken.generation.options import FAMILIES
from navtoken.policies.router import embedded_router
from navtoken.report.markup import write_whole
from navtoken.rlvr.train import train_rl
from navtoken.router import ALL_TASKS, open_router
from navtoken.router_training.build import ThresholdOptions, embedding_of
from navtoken.router_training.examples import gather
from navtoken.router_training.quality import qualities
from navtoken.router_training.training import TrainingOptions, predict
from rlvr import SEEDS, planned_run, tuned_rate

PLAN = """\
Written before the first draw.

* Everything is drawn at T = 1. 64 samples a problem, or 16 where pass@64 is not the question; every smaller k follows from them.
* Policies: 50 test problems of each of the three families, mean over families. LLM shares asked for: 10, 15 and 20 %, with the thresholds
  that ship. Speculative decoding draws from the LLM's own distribution: its accuracy should be the LLM's, its cost is what is measured.
* Training: the base, and the runs of `experiments/rlvr.py` on all tokens, the top 20 % and a random 20 %, three seeds each, on 100 problems of
  countdown, which they were trained on; on all three families seed 0 only.
* Both halves: the router that ships, with the base and with the base trained on forks (seed 0) as LLM, at the same thresholds; and the SLM
  trained on its own forks (30 steps, as the arms), with a router trained for it from labels made likewise.
* A difference is taken problem by problem, with a 95 % bootstrap interval over problems, and claimed where that leaves out 0. Seeds are
  averaged within a problem, and shown one by one.
* Expected: with 150 problems the interval of a difference of 3 points or less will hold 0, mostly.

Changed after the first draw, which had been looked at:

* A share asked for with another LLM finds thresholds of its own. Routers on trained LLMs were drawn again, by the thresholds over all
  families that ship for 10, 15 and 20 %, so that all LLMs meet the same ones.
* Controls were added for which tokens were trained on: LLMs trained on all tokens and on a random 20 %, and an SLM trained on all tokens.
* Comparisons of different k at about as many bytes were chosen when the bytes were known.
"""

SAMPLES, FEW_SAMPLES = 64, 16
KS = (1, 4, 16, 64)
BUDGETS = (32, 64, 128)
NUM, TRAINED_NUM = 50, 100
SEED = 11
SHARES = (0.1, 0.15, 0.2)
TRAINED_ON = {"all": "all tokens", "top20": "forks", "random20": "a random 20 %"}
"""Arms of `experiments/rlvr.py`, and the tokens that they were trained on."""
SLMS = {"slm": None, "slm on forks": "top_entropy:0.2", "slm on all tokens": "all"}
"""SLMs by name, and the tokens that they were trained on; None as it ships."""
LABELLED = 100
"""Problems per family whose responses are labelled to test a router."""
ROUTER_NUM = 700
"""And to train one."""

Stage = Literal["train", "draw", "labels", "report"]
Question = Literal["policies", "training", "halves"]


@dataclass(frozen=True)
class Options:
    """What is run."""

    stage: tyro.conf.Positional[Stage]
    """Which stage."""
    part: str = "0/1"
    """Which of the arms are drawn: of N processes the i-th, counted from 0, as i/N."""
    question: tyro.conf.UseAppendAction[tuple[Question, ...]] = ()
    """Draw the arms of this question alone; may be repeated. All where left out."""
    num: int | None = None
    """Problems per family of every arm, in place of what is planned."""
    samples: int | None = None
    """Responses per problem at most, in place of what is planned."""
    rlvr: Path = Path("build/rlvr")
    """Folder of the runs of `experiments/rlvr.py`, with their models."""
    tuned: Path = Path("experiments/rlvr/runs")
    """Folder of what they came to, from which the learning rate is read."""
    work: Path = Path("build/test_time_scaling")
    """Folder of responses, labels, and what is trained here."""
    out: Path = Path("experiments/test_time_scaling")
    """Folder of the results."""


@dataclass(frozen=True)
class Arm:
    """One policy on one pair, and what is drawn of it."""

    name: str
    policy: str
    slm: str = "embedded:slm"
    llm: str = "embedded:llm"
    tasks: tuple[str, ...] = FAMILIES
    num: int = NUM
    samples: int = FEW_SAMPLES

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "_").replace("%", "percent").replace(",", "")


def main(options: Options) -> None:
    console = Console()
    if options.stage == "report":
        # Below, so that drawing needs nothing of it.
        from test_time_scaling_report import report

        report(list(arms(options)), options.work, options.out, console)
    elif options.stage == "train":
        trained_slms(options, console)
        trained_routers(options, console)
    elif options.stage == "labels":
        labels(options, console)
    else:
        part, _, parts = options.part.partition("/")
        for arm in list(arms(options))[int(part) :: int(parts)]:
            draw(arm, options.work, console)


# ---- the arms -------------------------------------------------------------------------------------------------


def arms(options: Options) -> Iterator[Arm]:
    """Those that were asked for, what needs a training of this study's own last."""
    for question, own in _questions(options):
        if not options.question or question in options.question:
            for arm in own:
                num = arm.num if options.num is None else options.num
                samples = arm.samples if options.samples is None else min(options.samples, arm.samples)
                yield replace(arm, num=num, samples=samples)


def _questions(options: Options) -> Iterator[tuple[Question, Iterator[Arm]]]:
    yield "policies", policy_arms()
    for seed in SEEDS:
        yield "training", trained_arms(options, seed)
    yield "halves", both_halves(options)


def policy_arms() -> Iterator[Arm]:
    """SLM, LLM and what lies between."""
    yield Arm("slm", "slm", samples=SAMPLES)
    yield Arm("llm", "llm", samples=SAMPLES)
    for share in SHARES:
        yield Arm(f"router {share:.0%}", f"router,share={share}", samples=SAMPLES)
    yield Arm("hindsight", "hindsight:0.1")
    yield Arm("speculative", "speculative:4")


def trained_arms(options: Options, seed: int) -> Iterator[Arm]:
    """What was trained on which tokens, on the family that it was trained on; of the first seed on all families, too."""
    models = {f"{arm} {seed}": str(options.rlvr / f"{arm}_{seed}" / "model") for arm in TRAINED_ON}
    if seed == 0:
        models = {"base": "embedded:base"} | models
    for name, model in models.items():
        yield Arm(f"{name} on countdown", "llm", llm=model, tasks=("countdown",), num=TRAINED_NUM, samples=SAMPLES)  # fmt: skip
        if seed == 0:
            yield Arm(f"{name} on all", "llm", llm=model)


def both_halves(options: Options) -> Iterator[Arm]:
    """Routers on pairs of which one model was trained: LLMs at the same thresholds, SLMs each with a router of its own."""
    llms = trained_llms(options)
    for share, threshold in shipped_thresholds().items():
        for name, model in llms.items():
            yield Arm(f"router {share:.0%} with {name}", f"router,threshold={threshold!r}", llm=model)
    for name, select in SLMS.items():
        model = slm_of(name, options.work)
        if select is not None:
            yield Arm(name, "slm", slm=model)
        for share in SHARES:
            router = options.work / "routers" / name.replace(" ", "_")
            yield Arm(f"own router {share:.0%} of {name}", f"router:{router},share={share}", slm=model)


def trained_llms(options: Options) -> dict[str, str]:
    """References of the base and of what it was trained to with the first seed, by name."""
    return {"base": "embedded:base"} | {
        f"base on {tokens}": str(options.rlvr / f"{arm}_0" / "model") for arm, tokens in TRAINED_ON.items()
    }


def shipped_thresholds() -> dict[float, float]:
    """Of the router that ships, over all families at T = 1, by the LLM share that each was found for."""
    stored = open_router(embedded_router()).card.thresholds
    return {
        share: next(
            each.threshold
            for each in stored
            if (each.share, each.temperature, each.task) == (share, 1.0, ALL_TASKS)
        )
        for share in SHARES
    }


def slm_of(name: str, work: Path) -> str:
    """Reference of an SLM of `SLMS`."""
    return "embedded:slm" if SLMS[name] is None else str(work / name.replace(" ", "_") / "model")


def draw(arm: Arm, work: Path, console: Console) -> None:
    """Draw an arm's responses, measure them at every k and budget, and keep what they share out."""
    folder = work / "arms" / arm.folder
    table = folder / "table.json"
    if table.exists():
        check_same(arm, folder)
        console.print(f"{arm.name}: done")
        return
    for model in (arm.slm, arm.llm):
        if not model.startswith("embedded:") and not Path(model).exists():
            raise SystemExit(
                f"'{model}' is missing; make it with `experiments/rlvr.py arms --out build/rlvr_again --learning-rate 3e-4`, or with "
                "the stage `train` where it lies in --work"
            )
    console.print(f"{arm.name}: {arm.policy}, {arm.num} problems x {arm.samples} of {', '.join(arm.tasks)}")
    generation = GenerationOptions(
        task=arm.tasks,
        policy=(arm.policy,),
        num=arm.num,
        seed=SEED,
        samples=arm.samples,
        sampling=SamplingParams(temperature=1.0),
    )
    options = ScaleOptions(
        models=ModelOptions(slm=arm.slm, llm=arm.llm, threads=1),
        generation=generation,
        k=",".join(str(k) for k in KS if k <= arm.samples),
        budget=",".join(map(str, BUDGETS)),
        out=folder,
    )
    pair = options.models.load()
    measured = measurements(options, pair, console)
    write_whole(folder / MEASUREMENTS, json.dumps(measured.as_json(), allow_nan=False) + "\n")
    rows = evaluate(EvaluateOptions(options.models, generation, folder), pair, console).rows
    write_whole(table, json.dumps(plain(rows)) + "\n")


def check_same(arm: Arm, folder: Path) -> None:
    """Raise `SystemExit` where a folder holds another arm: other problems, samples, policy or models."""
    kept = Measurements.read(folder / MEASUREMENTS).provenance["arguments"]
    found = {
        "num": (kept["num"], arm.num),
        "samples": (kept["samples"], arm.samples),
        "policy": (kept["policy"], [arm.policy]),
        "task": (kept["task"], list(arm.tasks)),
        "llm": (kept["llm"], arm.llm),
    }
    for name, (had, wanted) in found.items():
        if had != wanted:
            raise SystemExit(
                f"'{folder}' was drawn with {name} {had}, not {wanted}; move it away, or give another --work"
            )


# ---- the other half of the pair -------------------------------------------------------------------------------


def trained_slms(options: Options, console: Console) -> None:
    """The SLM after as many steps as the arms had."""
    for name, select in SLMS.items():
        folder = Path(slm_of(name, options.work)).parent
        if select is not None and not (folder / "model").exists():
            planned = planned_run("slm", select, 0, tuned_rate(options.tuned), options.work)
            train_rl(replace(planned.options, model="embedded:slm", out=folder), console)


def trained_routers(options: Options, console: Console) -> None:
    """Routers of the SLM as it ships and of the trained ones, from as many labels."""
    for name in SLMS:
        place = name.replace(" ", "_")
        folder = options.work / "routers" / place
        if (folder / "router.safetensors").exists():
            continue
        models = ModelOptions(slm=slm_of(name, options.work), threads=1)
        greedy, sampled = (options.work / "router_labels" / place / draft for draft in ("greedy", "sampled"))
        again = label.LabelOptions(traces=greedy / RESPONSES, draft="sampled", out=sampled, models=models)
        label.run(label.LabelOptions(num=ROUTER_NUM, out=greedy, models=models), console)
        label.run(again, console)
        wanted = train_router.TrainRouterOptions(
            labels=(greedy, sampled),
            training=TrainingOptions(epochs=12),
            thresholds=ThresholdOptions(
                share=SHARES, recall=(0.9,), temperature=(1.0,), default_share=SHARES[-1]
            ),
            models=models,
            out=folder,
        )
        train_router.run(wanted, console)


def labels(options: Options, console: Console) -> None:
    """Where the SLM parts from each LLM on test problems, and how much of that the router that ships finds."""
    found: dict[str, Any] = {}
    for name, llm in ({"llm": "embedded:llm"} | trained_llms(options)).items():
        models = ModelOptions(llm=llm, threads=1)
        folder = options.work / "labels" / name.replace(" ", "_")
        pair = models.load()
        asked = label.LabelOptions(num=LABELLED, split="test", seed=SEED, out=folder, models=models)
        label.run(asked, console, pair)
        found[name] = [each.as_json() for each in quality_of(folder, pair, options.work)]
    write_whole(options.work / "labels.json", json.dumps(plain(found), indent=1) + "\n")


def quality_of(folder: Path, pair: ModelPair, work: Path) -> list[Any]:
    """Of the router that ships, on all labels of a folder."""
    network = open_router(embedded_router()).on("cpu")
    examples = gather([folder], pair.vocab_size, work / "examples")
    index_N = np.arange(len(examples))
    logit_N = predict(network, examples, index_N, embedding_of(pair, network.shape))
    return qualities(examples, index_N, 1 / (1 + np.exp(-logit_N)), "divergent", Resampling(300, SEED))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Options, description=__doc__))
