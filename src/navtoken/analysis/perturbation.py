"""Decode with forking tokens at one temperature and all others at another: which of the two bear heat?

The experiment of "Beyond the 80/20 Rule". One curve sweeps the forking tokens' temperature with the others' at 1, one the
others' with the forking tokens' at 1; they meet at (1, 1), which is decoded once and which all points are compared with.

Beyond the paper: it works under any policy (a token forks by the entropy of the model that draws it); all points answer the
same problems with the same noise, so changes are compared problem by problem; and the threshold may be a percentile of a
pilot run, whose responses are the first ones of (1, 1). A policy given by LLM share is calibrated at (1, 1) and then kept.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from navtoken.checkpoints import ModelPair
from navtoken.engine import Costs, EngineOptions, SamplingParams
from navtoken.entropy import exact_quantile
from navtoken.evaluation.metrics import Row, Tally, mean_and_error
from navtoken.generation import Cell, GenerateOptions, GenerationOptions, ModelOptions, generate
from navtoken.generation.run import ENDLESS_NUM, FIXED, run_provenance
from navtoken.policies import Policy, Writer, make_policy
from navtoken.tasks import load_task
from navtoken.trace import Trace, TraceWriter, read_traces

PAPER = (0.0, 0.05, 0.3, 0.6, 1.0, 2.0, 3.0, 5.0)
"""The paper's temperatures."""
ENTROPIES = ("entropy_slm", "entropy_llm")
PILOT = "pilot.json"


class PerturbError(ValueError):
    """Options that make no experiment."""


class Point(NamedTuple):
    """Two temperatures."""

    fork: float
    """Of forking tokens."""
    other: float
    """Of all others."""

    @property
    def swept(self) -> str:
        """Which curve it is on: `forking`, `others`, or `both`."""
        if self == BASE:
            return "both"
        return "forking" if self.other == BASE.other else "others"

    @property
    def folder(self) -> str:
        # 2 and 2.0 are one temperature, and have one folder.
        return f"forking-{float(self.fork)}-others-{float(self.other)}"

    def sampling(self, plain: SamplingParams, threshold: float | None) -> SamplingParams:
        """`plain` at these temperatures; (1, 1) needs no threshold."""
        if self == BASE:
            return replace(plain, temperature=self.other)
        return replace(plain, temperature=self.other, fork_threshold=threshold, fork_temperature=self.fork)


BASE = Point(1.0, 1.0)


def _generation() -> GenerationOptions:
    # The page shows what else a token might have been.
    engine = EngineOptions(num_alternatives=5)
    return GenerationOptions(task=("countdown",), policy=("llm",), samples=4, engine=engine)


@dataclass(frozen=True)
class PerturbOptions:
    """Decode with forking tokens at one temperature and the others at another, each swept with the other at 1: countdown
    under llm, 4 samples a problem, where nothing else is said. Run again, it goes on where it stopped."""

    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair."""
    generation: GenerationOptions = field(default_factory=_generation)
    """Problems, policies and sampling."""
    model: str | None = None
    """One model in place of the pair, decoding alone under policy llm: embedded:llm, a local folder, or
    org/name@revision."""
    temperatures: tuple[float, ...] = PAPER
    """Temperatures that each sweep goes through; 0 takes the most probable token."""
    threshold: float | None = None
    """Entropy in nats above which a token forks; None takes the percentile of a pilot run."""
    percentile: float = 80.0
    """Percentile of the pilot run's entropies above which a token forks."""
    pilot_num: int = 100
    """Problems of the pilot run: one response each at temperature 1, which count in the experiment too."""
    out: Path = Path("out/perturb")
    """Folder of the page (index.html), the result (perturb.json) and the traces."""

    def __post_init__(self) -> None:
        for temperature in self.temperatures:
            if not (isfinite(temperature) and temperature >= 0):
                raise PerturbError(f"temperatures has {temperature}; give numbers of at least 0")
            if self.temperatures.count(temperature) > 1:
                raise PerturbError(f"temperatures has {temperature:g} twice; leave one out")
        if self.threshold is not None and not 0 < self.threshold < float("inf"):
            raise PerturbError(f"threshold is {self.threshold}; give a number of nats above 0")
        if not 0 < self.percentile < 100:
            raise PerturbError(f"percentile is {self.percentile}; give a number between 0 and 100")
        if self.pilot_num < 1:
            raise PerturbError(f"pilot_num is {self.pilot_num}; give at least 1")

    def load(self) -> ModelPair:
        """The pair, or the one model as both of its halves. Raises `CheckpointError`s."""
        if self.model is None:
            return self.models.load()
        return self.models.load_alone(self.model)


@dataclass(frozen=True)
class Outcome:
    """What became of one point."""

    point: Point
    metrics: Row
    """Accuracy with its standard error over problems, LLM share, lengths, costs."""
    fork_share: float
    """Of the tokens that were written, how many were forking ones."""
    accuracies: dict[str, float]
    """Per problem, the share of its samples that are right."""
    cell: Cell
    folder: Path
    """Of its traces."""


@dataclass(frozen=True)
class Study:
    """One policy on one task."""

    policy: str
    """As it was asked for."""
    task: str
    threshold: float
    """Nats above which a token forks."""
    outcomes: dict[Point, Outcome]

    def gap(self, point: Point, other: Point = BASE) -> tuple[float, float]:
        """Accuracy at `point` less that at `other`, and its standard error: paired, over problems."""
        ours, theirs = (self.outcomes[each].accuracies for each in (point, other))
        return mean_and_error([ours[problem] - theirs[problem] for problem in ours])

    def curve(self, swept: str) -> list[Outcome]:
        """The points of one sweep (`forking` or `others`), by the swept temperature."""
        return sorted(
            (each for each in self.outcomes.values() if each.point.swept in (swept, "both")),
            key=lambda each: each.point,
        )

    def rows(self) -> list[Row]:
        """One flat row per point."""
        return [self.row(each) for each in self.outcomes.values()]

    def row(self, outcome: Outcome) -> Row:
        """Plain numbers of one point; the change is against (1, 1)."""
        change, error = self.gap(outcome.point)
        return {
            "policy": self.policy,
            "task": self.task,
            "threshold": self.threshold,
            "swept": outcome.point.swept,
            "fork_temperature": outcome.point.fork,
            "other_temperature": outcome.point.other,
            "fork_share": outcome.fork_share,
            "change": change,
            "change_se": error,
            **outcome.metrics,
        }


@dataclass(frozen=True)
class Perturbation:
    """The whole experiment."""

    studies: list[Study]
    provenance: dict[str, Any]

    def rows(self) -> list[Row]:
        return [row for study in self.studies for row in study.rows()]


def points(temperatures: Sequence[float]) -> list[Point]:
    """All points of both sweeps, each once, (1, 1) first."""
    swept = [point for t in temperatures for point in (Point(t, 1.0), Point(1.0, t))]
    return list(dict.fromkeys([BASE, *swept]))


def perturb(
    options: PerturbOptions, pair: ModelPair | None = None, console: Console | None = None
) -> Perturbation:
    """Decode what `options.out` lacks, and measure. Progress goes to `console`.

    Raises `PerturbError` for options that contradict the sweeps, `TraceError` for a folder of another experiment, both before the
    first response, and what `generate` raises.
    """
    _check(options)
    loaded = pair or options.load()
    asked = [(policy, task) for policy in options.generation.policy for task in options.generation.task]
    runners = [_Runner(policy, task, options, loaded, console) for policy, task in asked]
    for runner in runners:
        runner.check_folders()
    return Perturbation([runner.study() for runner in runners], _provenance(options, loaded))


def deciding_entropy(trace: Trace, policy: Policy) -> NDArray[np.floating]:
    """Per token, the entropy (nats, T = 1) that decided whether it forks: that of its writer, or of the LLM where the LLM
    judges what the SLM wrote."""
    nothing = np.full(len(trace.response_ids), np.nan)
    slm, llm = (trace.columns.get(name, nothing) for name in ENTROPIES)
    return llm if policy.lossless else np.where(np.asarray(trace.writer) == Writer.LLM, llm, slm)


def traces_of(outcome: Outcome) -> Iterator[Trace]:
    """The responses of a point: of its folder those that were asked for."""
    keys = set(outcome.cell.keys)
    return read_traces(outcome.folder, keep=keys.__contains__)


def _check(options: PerturbOptions) -> None:
    """Whatever cannot work is refused before the first response, not hours later."""
    given = options.generation.sampling
    for name in ("temperature", "fork_threshold", "fork_temperature"):
        if value := getattr(given, name):
            raise PerturbError(
                f"{name} is {value}, but the sweeps set it; leave it out, and give temperatures and threshold"
            )
    for name in ("task", "policy"):
        if not getattr(options.generation, name):
            raise PerturbError(f"no {name} is given; name at least one")
    if not options.temperatures:
        raise PerturbError("no temperatures are given; name at least one")
    if options.model is not None and set(options.generation.policy) != {"llm"}:
        raise PerturbError(
            f"one model has no policy but llm, not {', '.join(options.generation.policy)}; leave policy out, or give "
            "slm and llm"
        )
    for policy in options.generation.policy:
        make_policy(policy)
    for task in options.generation.task:
        load_task(task)


@dataclass(frozen=True)
class _Runner:
    """Decodes points of one policy on one task."""

    policy: str
    task: str
    options: PerturbOptions
    pair: ModelPair
    console: Console | None

    @property
    def folder(self) -> Path:
        return self.options.out / "traces" / _slug(self.policy) / _slug(self.task)

    def check_folders(self) -> None:
        """Raise `TraceError` where a point's folder has responses of another run, before anything is decoded.

        Points other than (1, 1) can be told only where the threshold is known: given, or that of a pilot run before.
        """
        threshold = self.options.threshold or self._known_pilots().get(self._percentile)
        for point in points(self.options.temperatures):
            folder = self.folder / point.folder
            if folder.exists() and (point == BASE or threshold is not None):
                asked = self._asked(point, self.policy, threshold)
                record = run_provenance(asked.models, asked.generation, self.pair)
                TraceWriter(folder, record, fixed=FIXED)

    def study(self) -> Study:
        """All points, (1, 1) first."""
        threshold = self.options.threshold or self._pilot()
        wanted = points(self.options.temperatures)
        outcomes: dict[Point, Outcome] = {}
        routed = self.policy
        for number, point in enumerate(wanted, 1):
            self._announce(point, f"point {number} of {len(wanted)}")
            cell = self._decode(point, routed, threshold)
            # From here on the policy that was calibrated at (1, 1), if it was given by share.
            routed = cell.policy.reference
            outcomes[point] = _measured(point, cell, self.folder / point.folder, threshold, self.pair)
        return Study(self.policy, self.task, threshold, outcomes)

    def _asked(self, point: Point, policy: str, threshold: float | None, **changes: Any) -> GenerateOptions:
        sampling = point.sampling(self.options.generation.sampling, threshold)
        common: dict[str, Any] = {"policy": (policy,), "task": (self.task,), "sampling": sampling}
        wanted = replace(self.options.generation, **(common | changes))
        return GenerateOptions(_models(self.options), wanted, self.folder / point.folder)

    def _decode(self, point: Point, policy: str, threshold: float | None, **changes: Any) -> Cell:
        (cell,) = generate(self._asked(point, policy, threshold, **changes), self.pair, self.console)
        return cell

    def _pilot(self) -> float:
        """The percentile of the entropies of some responses at (1, 1), in nats.

        It is kept in a file: a larger experiment in the same folder goes on with the same threshold.
        """
        path, known = self.folder / PILOT, self._known_pilots()
        if self._percentile not in known:
            known[self._percentile] = self._pilot_threshold()
            partial = path.with_suffix(".tmp")
            partial.write_text(json.dumps(known, indent=1))
            partial.replace(path)
        return known[self._percentile]

    @property
    def _percentile(self) -> str:
        return f"{self.options.percentile:g}"

    def _known_pilots(self) -> dict[str, float]:
        """Thresholds that were found before, by percentile."""
        path = self.folder / PILOT
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _pilot_threshold(self) -> float:
        cell = self._decode(BASE, self.policy, None, num=self._pilot_size(), samples=1)
        keys = set(cell.keys)
        traces = read_traces(self.folder / BASE.folder, ENTROPIES, keys.__contains__)
        pool = [deciding_entropy(trace, cell.policy) for trace in traces]
        percentile = self.options.percentile
        threshold = exact_quantile(pool, percentile / 100)
        if not threshold > 0:
            raise PerturbError(
                f"the {percentile:g}th percentile of the pilot run's entropies is {threshold:g} nats, so that nearly all "
                "tokens would fork; give a higher percentile, or a threshold in nats"
            )
        return threshold

    def _pilot_size(self) -> int:
        """Problems of the pilot run: no more than the experiment has."""
        wanted, task = self.options.generation, load_task(self.task)
        if wanted.num is not None:
            return min(self.options.pilot_num, wanted.num)
        num = ENDLESS_NUM if task.endless else None
        problems = islice(task.problems(wanted.split, num, wanted.seed), self.options.pilot_num)
        return sum(1 for _ in problems)

    def _announce(self, point: Point, which: str) -> None:
        if self.console is not None:
            temperatures = f"forking tokens at {point.fork:g}, others at {point.other:g}"
            self.console.print(f"{self.policy} · {self.task}, {which}: {temperatures}")


def _measured(point: Point, cell: Cell, folder: Path, threshold: float, pair: ModelPair) -> Outcome:
    """One pass over a point's traces."""
    tally = Tally(Costs(pair.slm.card, pair.llm.card, cell.policy.router_parameters))
    keys, num_forking = set(cell.keys), 0
    for trace in read_traces(folder, ENTROPIES, keys.__contains__):
        tally.add(trace)
        num_forking += int((deciding_entropy(trace, cell.policy) > threshold).sum())
    accuracies = {problem: float(np.mean(verdicts)) for problem, verdicts in tally.correct.items()}
    return Outcome(point, tally.row(), num_forking / tally.tokens, accuracies, cell, folder)


def _models(options: PerturbOptions) -> ModelOptions:
    if options.model is None:
        return options.models
    return replace(options.models, slm=options.model, llm=options.model)


def _provenance(options: PerturbOptions, pair: ModelPair) -> dict[str, Any]:
    # The sampling is each point's own: what is common to all is that of (1, 1).
    sampling = BASE.sampling(options.generation.sampling, None)
    record = run_provenance(_models(options), replace(options.generation, sampling=sampling), pair)
    own = {name: value for name, value in asdict(options).items() if name not in ("models", "generation")}
    record["arguments"] |= own
    return record


def _slug(reference: str) -> str:
    """A reference as the name of a folder: no two references share one."""
    name = re.sub(r"[^\w.,=-]+", "-", reference)
    return name if name == reference else f"{name}-{hashlib.sha256(reference.encode()).hexdigest()[:8]}"
