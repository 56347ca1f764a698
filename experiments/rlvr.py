"""Does gradient from forking tokens alone train a better reasoner? Four arms, three seeds each, on the embedded base.

    .venv/bin/python experiments/rlvr.py base          # the base itself, tested as the runs will be
    .venv/bin/python experiments/rlvr.py tune          # the learning rate, on arm `all` only
    .venv/bin/python experiments/rlvr.py arms          # all, top 20 %, bottom 80 %, random 20 %
    .venv/bin/python experiments/rlvr.py fractions     # top 10 and 50 %, next to 20 and 100
    .venv/bin/python experiments/rlvr.py length        # the runs of all and top 20 % go on, with a larger length limit and without
    .venv/bin/python experiments/rlvr.py report        # tables and pictures of what is there

Each run resumes where it stopped, and when it ends writes `experiments/rlvr/runs/NAME.json`: losses and metrics of every step, accuracy on
held-out problems problem by problem, drift, provenance. `--part 0/2` and `--part 1/2` share a stage's runs between two
processes. Results that are there (those that are committed, in a clone) are not made again: `--out build/rlvr_again --learning-rate 3e-4`
makes models and results anew beside them. What was fixed before the first run, and why, is in `PLAN`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

from navtoken.checkpoints import ModelPair, load_model
from navtoken.engine import Engine, EngineOptions
from navtoken.policies.rules import LLMPolicy
from navtoken.provenance import provenance
from navtoken.report.markup import write_whole
from navtoken.rlvr.held_out import HeldOut, HeldOutOptions
from navtoken.rlvr.journal import Journal
from navtoken.rlvr.options import RolloutOptions, TrainRLOptions, UpdateOptions, WatchOptions
from navtoken.rlvr.problems import ProblemSet
from navtoken.rlvr.selection import SelectionOptions
from navtoken.rlvr.train import train_rl

PLAN = """\
Written before the first run of any arm.

* Start: `embedded:base`, countdown. At T = 1 it has about 55 % there, so there is headroom.
* An arm differs from `all` in its selection only: pool batch, normaliser kept, ties threshold. Batches of 16 problems x 8
  responses, dynamic sampling, one update a batch, clip 0.2 / 0.28, no KL, soft overlong punishment, responses of up to 160 tokens.
* Learning rate: the best of 1e-4, 3e-4 and 1e-3 for arm `all`, one run of 20 steps each with a seed that no arm has, by accuracy at T = 1 on
  problems that no arm is tested on. All arms take it.
* 30 steps; seeds 0, 1 and 2. On two cores a run takes a quarter of an hour.
* Test: 500 countdown problems, 4 responses each at T = 1, and the same greedily; 250 problems of each other family, 2 responses each, as
  out-of-domain. The same problems and noise for every run, once, after the last step.
* Compared: mean over seeds of each problem's accuracy, arm less arm, problem by problem. With 500 problems x 4 x 3 the standard error
  of a difference is expected to be about 1.1 points from problems alone; seeds add to it, and three tell little of how much. A difference
  of less than about 3 points cannot be seen here.
* Reported whatever comes out, runs that diverge included.
"""

ARMS = {
    "all": "all",
    "top20": "top_entropy:0.2",
    "bottom80": "bottom_entropy:0.8",
    "random20": "random:0.2",
}
FRACTIONS = {"top10": "top_entropy:0.1", "top50": "top_entropy:0.5"}
LONGER_ARMS = ("all", "top20")
SEEDS = (0, 1, 2)
RATES = (1e-4, 3e-4, 1e-3)
STEPS, TUNE_STEPS, LONGER_STEPS = 30, 20, 10
TOKENS, LONGER_TOKENS = 160, 280
TUNE_SEED = 100
TEST_SEED = 7
Stage = Literal["base", "tune", "arms", "fractions", "length", "report"]


@dataclass(frozen=True)
class Options:
    """What is run."""

    stage: tyro.conf.Positional[Stage]
    """Which runs; `report` makes tables and pictures of those that have ended."""
    part: str = "0/1"
    """Which of the stage's runs: of N processes the i-th, counted from 0, as i/N."""
    run: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Names of runs (`top20_0`) in place of all of the stage; may be repeated."""
    steps: int | None = None
    """Steps of a run in place of those planned: what is compared with the first steps of a longer one."""
    learning_rate: float | None = None
    """In place of the tuned one."""
    num: int = 500
    """Test problems of countdown, half as many of each other family; 0 leaves the test out."""
    out: Path = Path("experiments/rlvr")
    """Folder of the results, with the runs that have ended in `runs/`."""
    work: Path = Path("build/rlvr")
    """Folder of the runs themselves, with checkpoints and models."""


@dataclass(frozen=True)
class Planned:
    """One run, and what it is called."""

    name: str
    options: TrainRLOptions
    test_tokens: int = TOKENS
    """Length limit of its test on countdown."""


def main(options: Options) -> None:
    console = Console()
    if options.stage == "report":
        # Below, so that runs need nothing of it.
        from rlvr_report import report

        report(options.out / "runs", options.out, console)
        return
    if options.stage == "base":
        base_tested(options)
        return
    part, _, parts = options.part.partition("/")
    for planned in asked(options)[int(part) :: int(parts)]:
        _run(planned, options, console)
        if options.stage == "length":
            _tested_longer(planned, options, console)


def asked(options: Options) -> list[Planned]:
    """The stage's runs, or those of them that were named."""
    runs = list(_runs(options))
    if unknown := set(options.run) - {each.name for each in runs}:
        known = ", ".join(each.name for each in runs)
        raise SystemExit(f"{options.stage} has no run {', '.join(sorted(unknown))}; it has {known}")
    chosen = [each for each in runs if not options.run or each.name in options.run]
    if options.steps is None:
        return chosen
    return [replace(each, options=replace(each.options, steps=options.steps)) for each in chosen]


def _runs(options: Options) -> Iterator[Planned]:
    """A stage's runs, seeds outside: when time ends, whole sets of arms are there."""
    stage, work = options.stage, options.work
    if stage == "tune":
        for rate in RATES:
            yield planned_run(f"tune_{rate:g}", "all", TUNE_SEED, rate, work, TUNE_STEPS)
        return
    rate = tuned_rate(options.out / "runs") if options.learning_rate is None else options.learning_rate
    arms = FRACTIONS if stage == "fractions" else ARMS
    for seed in SEEDS:
        for arm, select in arms.items():
            planned = planned_run(f"{arm}_{seed}", select, seed, rate, work)
            if stage != "length":
                yield planned
            elif arm in LONGER_ARMS:
                yield _gone_on(planned, "longer", LONGER_TOKENS)
                yield _gone_on(planned, "more", TOKENS)


def planned_run(name: str, select: str, seed: int, rate: float, work: Path, steps: int = STEPS) -> Planned:
    """One arm's run with one seed, as all are run."""
    tuning = seed == TUNE_SEED
    options = TrainRLOptions(
        model="embedded:base",
        task=("countdown",),
        steps=steps,
        seed=seed,
        selection=SelectionOptions(select=select),
        rollout=RolloutOptions(rollout_prompts=16, num_generations=8, max_tokens=TOKENS, rollout_rows=192),
        update=UpdateOptions(learning_rate=rate),
        watch=WatchOptions(
            held_out_num=150,
            held_out_temperature=1.0,
            held_out_every=10,
            held_out_seed=TUNE_SEED if tuning else TEST_SEED,
            drift_num=0 if tuning else 100,
            drift_every=10,
            save_every=10,
        ),
        out=work / name,
    )
    return Planned(name, options)


def _gone_on(planned: Planned, suffix: str, tokens: int) -> Planned:
    """More steps with a length limit; the test has the larger one whatever it is."""
    name = f"{planned.name}_{suffix}"
    options = replace(
        planned.options,
        continue_from=planned.options.out,
        steps=LONGER_STEPS,
        rollout=replace(planned.options.rollout, max_tokens=tokens),
        out=planned.options.out.with_name(name),
    )
    return Planned(name, options, LONGER_TOKENS)


def tuned_rate(runs: Path) -> float:
    """The learning rate of the run that was best after tuning's steps, the smaller one of equals."""
    found = {rate: runs / f"tune_{rate:g}.json" for rate in RATES}
    if missing := [str(path) for path in found.values() if not path.exists()]:
        raise SystemExit(f"{missing[0]} is missing; run `experiments/rlvr.py tune` first")
    scores = {
        rate: record["accuracy"]
        for rate, path in found.items()
        for record in json.loads(path.read_text())["held_out"]
        if record["step"] == TUNE_STEPS
    }
    return max(scores, key=lambda rate: scores[rate])


def _run(planned: Planned, options: Options, console: Console) -> None:
    """Train, test, and write what came of it; nothing where that is there already."""
    path = options.out / "runs" / f"{planned.name}.json"
    if path.exists():
        console.print(f"{planned.name}: done")
        return
    console.print(f"{planned.name}: {planned.options.selection.select}, seed {planned.options.seed}")
    started = perf_counter()
    result = train_rl(planned.options, console)
    journal = Journal(planned.options.out)
    untested = planned.name.startswith("tune") or not options.num
    tested = {} if untested else test(result["model"], planned.test_tokens, options.num)
    record = {
        "name": planned.name,
        "select": planned.options.selection.select,
        "seed": planned.options.seed,
        "train": [_figures(each) for each in journal.records("train")],
        "held_out": journal.records("held_out"),
        "drift": journal.records("drift"),
        "test": tested,
        "seconds_of_last_start": round(perf_counter() - started),
        "provenance": result["provenance"],
    }
    write_whole(path, json.dumps(record, default=str) + "\n")


def _tested_longer(longer: Planned, options: Options, console: Console) -> None:
    """What a run goes on from, with the larger length limit: so much does the limit alone."""
    start = longer.options.continue_from
    assert start is not None
    path = options.out / "runs" / f"{start.name}_limit.json"
    if path.exists() or not options.num:
        return
    console.print(f"{start.name}: tested with {LONGER_TOKENS} tokens")
    record = {
        "name": path.stem,
        "select": longer.options.selection.select,
        "seed": longer.options.seed,
        "drift": [],
        "test": test(str(start / "model"), longer.test_tokens, options.num),
        "provenance": provenance({}, model=str(start / "model"), max_tokens=LONGER_TOKENS),
    }
    write_whole(path, json.dumps(record, default=str) + "\n")


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    """A step's metrics in five digits: the files are committed."""
    return {
        name: float(f"{value:.5g}") if isinstance(value, float) else value
        for name, value in record.items()
        if name not in ("time", "kind", "epoch")
    }


def test(model: str, limit: int, num: int) -> dict[str, Any]:
    """Accuracy problem by problem, at T = 1 on all families and greedily on the one that was trained on."""
    loaded = load_model(model)
    pair = ModelPair(loaded, loaded)
    tests = {
        "countdown": ("countdown", num, HeldOutOptions(4, 1.0, limit, TEST_SEED)),
        "countdown, greedy": ("countdown", num, HeldOutOptions(1, 0.0, limit, TEST_SEED)),
        "knights": ("knights", num // 2, HeldOutOptions(2, 1.0, 400, TEST_SEED)),
        "arithmetic": ("arithmetic", num // 2, HeldOutOptions(2, 1.0, 400, TEST_SEED)),
    }
    found = {}
    for name, (task, size, how) in tests.items():
        held_out = HeldOut(ProblemSet.load((task,), "test", size, TEST_SEED), how)
        engine = Engine(pair, LLMPolicy(), EngineOptions(max_rows=192))
        found[name] = held_out.evaluate(engine).as_record()
    return found


def base_tested(options: Options) -> None:
    """The base itself, tested as the runs are."""
    record = {"name": "base", "test": test("embedded:base", TOKENS, options.num)}
    write_whole(options.out / "runs" / "base.json", json.dumps(record) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Options, description=__doc__))
