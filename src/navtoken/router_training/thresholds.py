"""Thresholds for wanted LLM shares, found by routed generation on validation problems.

Labels lie on responses that the LLM wrote alone. Where the SLM writes most tokens it goes where the LLM never went, so a share of
labels is not the share in generation. Here the router decodes, again and again, until the share of tokens that the LLM
wrote is the one asked for. What was measured is kept in a file, so an interrupted search goes on where it stopped.

All shares of all tasks use each other's runs: a run at one threshold is a point of every curve of share against threshold that
its tasks belong to.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.engine import Sequence as Row
from navtoken.engine.options import DEFAULTS
from navtoken.policies import derive_seed
from navtoken.policies.router import RouterPolicy
from navtoken.router import ALL_TASKS, StoredThreshold
from navtoken.router_training.examples import PromptOf

TOLERANCE = 0.004
"""How close a realised LLM share must be to the one asked for."""
MAX_RUNS = 6
"""Routed runs per threshold at most; near a jump in share none may be close enough, and the closest is taken."""
NEVER = 1.0
"""A threshold that no probability is above."""
NUM_LEVELS = 200


class ThresholdError(ValueError):
    """Thresholds that cannot be looked for."""


@dataclass(frozen=True)
class Counted:
    """What routed generation of one task's problems came to."""

    llm: int
    """Tokens that the LLM wrote."""
    total: int
    levels: tuple[float, ...]
    """Quantiles of what the router said, from the highest down, a token counting once: a guess at other shares' thresholds."""

    @property
    def share(self) -> float:
        return self.llm / max(1, self.total)


class RunKey(NamedTuple):
    """Names what was measured."""

    task: str
    digest: str
    """Of router, sampling, problems and seed."""
    threshold: float


def together(parts: Iterable[Counted]) -> Counted:
    """Several tasks as one."""
    parts = list(parts)
    values = np.concatenate([part.levels for part in parts])
    weights = np.concatenate([np.full(len(part.levels), part.total / len(part.levels)) for part in parts])
    return Counted(
        sum(part.llm for part in parts), sum(part.total for part in parts), _levels(values, weights)
    )


@dataclass(eq=False)
class RoutedRuns:
    """Routed generation by one router, with what it came to kept by task, sampling and threshold."""

    pair: ModelPair
    policy: RouterPolicy
    prompts: Mapping[str, Sequence[PromptOf]]
    """By task."""
    max_tokens: int | None = None
    seed: int = 0
    options: EngineOptions = DEFAULTS
    path: Path | None = None
    """File of what was measured; None keeps it in memory only."""
    tell: Callable[[str], object] = lambda _: None
    """Hears of every run before it begins."""
    known: dict[RunKey, Counted] = field(default_factory=dict)
    """All that was ever measured: a run that goes on looks here before it decodes."""
    looked_at: dict[RunKey, Counted] = field(default_factory=dict)
    """What this search has seen so far. Only from that it goes on, so it takes the same way as one that was not interrupted."""

    def __post_init__(self) -> None:
        if not self.prompts or not all(self.prompts.values()):
            raise ThresholdError("there are no validation problems to route; label more problems")
        if self.path and self.path.exists():
            self.known = {
                RunKey(*key): Counted(each["llm"], each["total"], tuple(each["levels"]))
                for *key, each in json.loads(self.path.read_text())
            }

    def counted(self, tasks: Sequence[str], sampling: SamplingParams, threshold: float) -> Counted:
        """What these tasks come to at a threshold: measured now, if it is not known yet."""
        missing = [task for task in tasks if self._key(task, sampling, threshold) not in self.known]
        if missing:
            self.tell(f"{', '.join(missing)} at T={sampling.temperature:g}, threshold {threshold:.4g}")
            for task, found in self._run(missing, sampling, threshold).items():
                self.known[self._key(task, sampling, threshold)] = found
            self._keep()
        keys = [self._key(task, sampling, threshold) for task in tasks]
        self.looked_at |= {key: self.known[key] for key in keys}
        return together(self.known[key] for key in keys)

    def thresholds(self, tasks: Sequence[str], sampling: SamplingParams) -> list[float]:
        """At which all of these tasks were looked at."""
        digest = self._digest(sampling)
        by_task = [
            {key.threshold for key in self.looked_at if (key.task, key.digest) == (task, digest)}
            for task in tasks
        ]
        return sorted(set[float].intersection(*by_task)) if by_task else []

    def _run(self, tasks: Sequence[str], sampling: SamplingParams, threshold: float) -> dict[str, Counted]:
        """Decode all problems of some tasks in one batch."""
        engine = Engine(self.pair, self.policy.with_threshold(threshold), self.options)
        rows: dict[str, list[Row]] = {task: [] for task in tasks}
        for task in tasks:
            for prompt in self.prompts[task]:
                seed = derive_seed(self.seed, prompt.task, prompt.problem_id)
                rows[task].append(engine.add(prompt.prompt_ids, sampling, self.max_tokens, seed))
        for _ in engine.run():
            pass
        return {task: counted(of_task) for task, of_task in rows.items()}

    def _key(self, task: str, sampling: SamplingParams, threshold: float) -> RunKey:
        return RunKey(task, self._digest(sampling), threshold)

    def _digest(self, sampling: SamplingParams) -> str:
        """Of all but task and threshold that a run follows from."""
        return _sha256([self._constant, asdict(sampling)])

    @cached_property
    def _constant(self) -> str:
        """Of what all runs have in common."""
        problems = {
            task: [(prompt.problem_id, prompt.prompt_ids) for prompt in own]
            for task, own in self.prompts.items()
        }
        models = [(each.fingerprint, str(each.model.dtype)) for each in (self.pair.slm, self.pair.llm)]
        router = [self.policy.name, self.policy.router.weights]
        return _sha256([router, models, self.max_tokens, self.seed, problems])

    def _keep(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(json.dumps([[*key, asdict(each)] for key, each in self.known.items()]))
        os.replace(temporary, self.path)


def _sha256(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def counted(rows: Sequence[Row]) -> Counted:
    """What finished rows came to. A router that is asked once per response counts for all of its tokens."""
    values, weights, written = [], [], []
    for row in rows:
        said = np.array(row.record.p_divergent)
        there = said[~np.isnan(said)]
        values.append(there)
        weights.append(np.full(len(there), len(said) / max(1, len(there))))
        written += row.record.writer
    levels = _levels(np.concatenate(values), np.concatenate(weights))
    return Counted(sum(written), len(written), levels)


def find(
    runs: RoutedRuns,
    tasks: Sequence[str],
    sampling: SamplingParams,
    share: float,
    tolerance: float = TOLERANCE,
    max_runs: int = MAX_RUNS,
) -> tuple[float, Counted]:
    """The threshold at which the LLM writes this share of these tasks' tokens, and what it came to."""
    runs.counted(tasks, sampling, NEVER)
    for _ in range(max_runs):
        known = _points(runs, tasks, sampling)
        best = min(known, key=lambda point: abs(point[1] - share))
        if abs(best[1] - share) <= tolerance:
            break
        proposed = _proposed(runs, tasks, sampling, known, share)
        if proposed in [point[0] for point in known]:
            break
        runs.counted(tasks, sampling, proposed)
    threshold, _ = min(_points(runs, tasks, sampling), key=lambda point: abs(point[1] - share))
    return threshold, runs.counted(tasks, sampling, threshold)


def stored_thresholds(
    runs: RoutedRuns,
    samplings: Sequence[SamplingParams],
    shares: Sequence[float],
    recalls: Mapping[float, float],
    groups: Mapping[str, Sequence[str]] | None = None,
) -> list[StoredThreshold]:
    """Thresholds for all shares, over all tasks and for each, and what thresholds for recalls (recall -> threshold) come to.

    `groups` are the names under which thresholds are stored, each with its tasks, where not all of them are wanted.
    """
    tasks = list(runs.prompts)
    groups = groups or {ALL_TASKS: tasks, **{task: [task] for task in tasks}}
    found = []
    for sampling in samplings:
        for name, group in groups.items():
            for share in shares:
                threshold, got = find(runs, group, sampling, share)
                found.append(_stored(runs, name, group, sampling, threshold, got, share=share))
        for recall, threshold in recalls.items():
            got = runs.counted(tasks, sampling, threshold)
            found.append(_stored(runs, ALL_TASKS, tasks, sampling, threshold, got, recall=recall))
    return found


def spread_prompts(prompts: Sequence[PromptOf], num: int) -> dict[str, list[PromptOf]]:
    """At most `num` problems of each task, by task, drawn without regard to the order in which they were read.

    Problems without labels are read last, and responses may lie in the order in which they ended.
    """
    found: dict[str, list[PromptOf]] = {prompt.task: [] for prompt in prompts}
    for prompt in sorted(prompts, key=_place):
        own = found[prompt.task]
        if len(own) < num:
            own.append(prompt)
    return found


def _place(prompt: PromptOf) -> bytes:
    return hashlib.sha256(f"calibration|{prompt.problem_id}".encode()).digest()


def _stored(
    runs: RoutedRuns,
    name: str,
    tasks: Sequence[str],
    sampling: SamplingParams,
    threshold: float,
    got: Counted,
    **wanted: float,
) -> StoredThreshold:
    return StoredThreshold(
        task=name,
        threshold=threshold,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        realised_share=got.share,
        num_problems=sum(len(runs.prompts[task]) for task in tasks),
        max_tokens=runs.max_tokens,
        **wanted,
    )


def _points(runs: RoutedRuns, tasks: Sequence[str], sampling: SamplingParams) -> list[tuple[float, float]]:
    """Known (threshold, share), thresholds rising."""
    return [(each, runs.counted(tasks, sampling, each).share) for each in runs.thresholds(tasks, sampling)]


def _proposed(
    runs: RoutedRuns,
    tasks: Sequence[str],
    sampling: SamplingParams,
    known: Sequence[tuple[float, float]],
    share: float,
) -> float:
    """Where to look next: between the nearest points on both sides, else where the nearest run's own signals say."""
    above = [point for point in known if point[1] > share]
    below = [point for point in known if point[1] < share and point[0] < NEVER]
    if above and below:
        low, high = max(above), min(below)
        if low[0] < high[0]:
            return _rounded(_between(low, high, share))
    threshold, _ = min(known, key=lambda point: abs(point[1] - share))
    levels = runs.counted(tasks, sampling, threshold).levels
    return _rounded(levels[min(len(levels) - 1, round(share * (len(levels) - 1)))])


def _between(low: tuple[float, float], high: tuple[float, float], share: float) -> float:
    """Straight between two points, in log-odds of the threshold: probabilities crowd at both ends."""
    ends = [_log_odds(point[0]) for point in (low, high)]
    part = (low[1] - share) / (low[1] - high[1])
    # Never quite an end: a curve with a jump would be asked for the same point for ever.
    part = min(max(part, 0.05), 0.95)
    return 1 / (1 + math.exp(-(ends[0] + part * (ends[1] - ends[0]))))


def _log_odds(p: float) -> float:
    p = min(max(p, 1e-9), 1 - 1e-9)
    return math.log(p / (1 - p))


def _rounded(threshold: float) -> float:
    """Six digits, as references spell it."""
    return float(f"{threshold:.6g}")


def _levels(values: np.ndarray, weights: np.ndarray) -> tuple[float, ...]:
    """Evenly spaced quantiles from the highest down."""
    if not len(values):
        return (0.0,)
    order = np.argsort(-values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    places = np.searchsorted(reached, np.linspace(0, 1, NUM_LEVELS + 1) - 1e-12)
    return tuple(float(value) for value in values[order][np.minimum(places, len(values) - 1)])
