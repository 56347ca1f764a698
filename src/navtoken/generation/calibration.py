"""Policies become ones that can run: those given by LLM share get a threshold, the oracle somebody to ask.

Thresholds are found on the training split and kept; a router brings those that were found when it was trained. A threshold is a property of pair, task and sampling. It is written into the run's folder, so that a run that goes
on after an interruption routes exactly as before, and it is part of the policy's reference in every trace.
"""

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from navtoken.checkpoints import ModelPair
from navtoken.engine import CalibrationOptions, SamplingParams, calibrate
from navtoken.generation.options import GenerationOptions
from navtoken.labeling.oracle import LiveVerdict
from navtoken.labeling.verdicts import verifier_named
from navtoken.policies import Policy, PolicyError, ThresholdPolicy, make_policy
from navtoken.policies.oracle import OraclePolicy
from navtoken.policies.router import RouterPolicy
from navtoken.router import ALL_TASKS
from navtoken.router.splits import part_of
from navtoken.tasks import Problem, Split, Task, load_task
from navtoken.tasks.base import ExhaustedError
from navtoken.tasks.finite import MissingSplitError
from navtoken.tasks.prompts import render

CACHE = "calibration.json"


class Calibrations:
    """Thresholds found so far, by what they depend on; kept in a file of `folder`, or in memory where it is None."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = folder / CACHE if folder else None
        self.references: dict[str, str] = {}
        if self.path and self.path.exists():
            self.references = json.loads(self.path.read_text())

    def keep(self, key: str, reference: str) -> None:
        self.references[key] = reference
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.references, indent=1))
        os.replace(temporary, self.path)


def needs_calibration(asked: str) -> bool:
    """Is this policy given by a share that only calibration turns into a threshold?"""
    policy = make_policy(asked)
    return isinstance(policy, ThresholdPolicy) and policy.threshold is None


def ready_policy(
    asked: str,
    pair: ModelPair,
    task: Task,
    options: GenerationOptions,
    calibrations: Calibrations | None = None,
    problems: Sequence[Problem] = (),
) -> Policy:
    """The policy that `asked` names, calibrated for `task` where it is given by share.

    `problems` are those that it will decode, which the oracle must know. Raises `PolicyError`, what a verifier says of a task that
    it cannot judge, and the task's own error where it has no training split (`calibrate_on` names another task).
    """
    policy = make_policy(asked)
    if isinstance(policy, OraclePolicy):
        return policy.with_verdict(_live_verdict(policy, pair, task, options, problems))
    if not needs_calibration(asked):
        return in_sampling(policy, pair, options.sampling)
    if options.calibrate_on is None and (stored := _stored(policy, pair, task, options)) is not None:
        return stored
    calibrations = calibrations or Calibrations()
    source = task if options.calibrate_on is None else load_task(options.calibrate_on)
    key = _key(asked, pair, source, options)
    if key not in calibrations.references:
        calibrations.keep(key, _calibrated(asked, pair, source, options).reference)
    # From its reference, so that the threshold that routes is the one that traces record, digit for digit.
    return make_policy(calibrations.references[key])


def in_sampling(policy: Policy, pair: ModelPair, sampling: SamplingParams) -> Policy:
    """The policy as it is meant at these sampling parameters: a router without a threshold or share has a default for each."""
    if not isinstance(policy, RouterPolicy):
        return policy
    return policy.in_sampling(asdict(sampling), pair.llm.fingerprint)


def live_verdict(policy: Policy) -> LiveVerdict | None:
    """Who answers an oracle; None for other policies."""
    verdict = policy.verdict if isinstance(policy, OraclePolicy) else None
    return verdict if isinstance(verdict, LiveVerdict) else None


def _stored(policy: Policy, pair: ModelPair, task: Task, options: GenerationOptions) -> Policy | None:
    """The policy with a threshold that was found before, where it brings one for this task and sampling.

    For a task without problems to calibrate on, one that was found over all the tasks that a router knew.
    """
    if not isinstance(policy, RouterPolicy):
        return None
    # Responses that get longer, or are cut off sooner, give another share at the same threshold.
    limit = options.limit(pair)
    for name in (task.name,) if _has_training_split(task) else (task.name, ALL_TASKS):
        if found := policy.stored(name, asdict(options.sampling), pair.llm.fingerprint, limit):
            return make_policy(found.reference)
    return None


def _has_training_split(task: Task) -> bool:
    try:
        return next(iter(task.problems("train", 1, 0)), None) is not None
    except MissingSplitError:
        return False


def _live_verdict(
    policy: OraclePolicy,
    pair: ModelPair,
    task: Task,
    options: GenerationOptions,
    problems: Sequence[Problem],
) -> LiveVerdict:
    verifier = verifier_named(policy.verifier)
    limit = options.limit(pair)
    return LiveVerdict(pair, task, problems, verifier, options.prompts, options.engine, max_tokens=limit)


def _calibrated(asked: str, pair: ModelPair, source: Task, options: GenerationOptions) -> Policy:
    policy = make_policy(asked)
    problems = list(_calibration_problems(policy, source, options))
    if not problems:
        raise PolicyError(
            f"'{asked}' has no problems to be calibrated on: none of '{source.name}' in 'train' was kept from the router's "
            "training; give it a threshold, or name another task with calibrate_on"
        )
    prompts = [render(pair.tokenizer, source, problem, options.prompts).ids for problem in problems]
    how = CalibrationOptions(max_tokens=options.limit(pair), seed=options.seed)
    return calibrate(policy, pair, prompts, options.sampling, how, options.engine)


def _calibration_problems(policy: Policy, source: Task, options: GenerationOptions) -> Iterator[Problem]:
    """Problems of the training split; for a router those that its weights were not learnt from, as many of them as there are.

    On what it learnt from a router is surer of itself than elsewhere, and a threshold found there gives another share.
    """
    num = options.calibration_num
    if not isinstance(policy, RouterPolicy):
        return source.problems("train", num, options.seed)
    return islice(kept_from_training(source, options.seed), num)


def kept_from_training(
    source: Task, seed: int, split: Split = "train", learnt: Collection[str] = ("train",)
) -> Iterator[Problem]:
    """All problems of a split that no router's weights were learnt from: of the splits that were `learnt` from, a part."""
    try:
        for problem in source.problems(split, None, seed):
            if split not in learnt or part_of(problem.problem_id) == "validation":
                yield problem
    except ExhaustedError:
        return


def _key(asked: str, pair: ModelPair, source: Task, options: GenerationOptions) -> str:
    policy = make_policy(asked)
    parts = {
        # As the policy names itself: a router's weights are part of that.
        "policy": policy.reference,
        "task": source.name,
        "num": options.calibration_num,
        "seed": options.seed,
        "max_tokens": options.limit(pair),
        "sampling": asdict(options.sampling),
        "prompts": asdict(options.prompts),
        "slm": pair.slm.fingerprint,
        "llm": pair.llm.fingerprint,
        "dtypes": [str(loaded.model.dtype) for loaded in (pair.slm, pair.llm)],
    }
    if isinstance(policy, RouterPolicy):
        parts["part"] = "validation"
    return json.dumps(parts)
