"""Turn an asked LLM share into a threshold.

Signals collected on the SLM's own responses give a wrong threshold: once the LLM writes some tokens, the text changes
and so does the share. So signals are collected again on routed runs until the realised share is right.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from navtoken.checkpoints import ModelPair
from navtoken.engine.engine import Engine
from navtoken.engine.options import DEFAULTS, GREEDY, EngineOptions, SamplingParams
from navtoken.policies import Policy, PolicyError, ThresholdPolicy


@dataclass(frozen=True)
class CalibrationOptions:
    """How hard to try."""

    max_iterations: int = 4
    """Routed runs at most; each decodes all prompts once."""
    tolerance: float = 0.005
    """Stop once the realised LLM share is so close to the asked one."""
    max_tokens: int | None = None
    """Response tokens per prompt; None decodes to the end."""
    seed: int = 0
    """Seed of the runs, where sampling is not greedy."""


def calibrate(
    policy: Policy,
    pair: ModelPair,
    prompts: Seq[Seq[int]],
    sampling: SamplingParams = GREEDY,
    options: CalibrationOptions | None = None,
    engine_options: EngineOptions = DEFAULTS,
) -> Policy:
    """The policy with a threshold at which the LLM writes its `share` of the tokens of these prompts.

    `prompts` are token ids and must come from the training split. A policy that needs no calibration is returned as
    it is. The best of the runs' thresholds is taken: near a jump in share, none may be within tolerance.
    """
    if not isinstance(policy, ThresholdPolicy) or policy.threshold is not None:
        return policy
    if not prompts:
        raise PolicyError(f"no prompts to calibrate '{policy.reference}' on; give some of the training split")
    options = options or CalibrationOptions()
    assert policy.share is not None
    never = -torch.inf if not policy.llm_above else torch.inf
    _, signals = _routed_run(policy.with_threshold(never), pair, prompts, sampling, options, engine_options)
    best, best_error = policy.threshold_for(signals), float("inf")
    threshold = best
    for _ in range(options.max_iterations):
        run = policy.with_threshold(threshold)
        share, signals = _routed_run(run, pair, prompts, sampling, options, engine_options)
        if abs(share - policy.share) < best_error:
            best, best_error = threshold, abs(share - policy.share)
        if best_error <= options.tolerance:
            break
        threshold = policy.threshold_for(signals)
    return policy.with_threshold(best)


def _routed_run(
    policy: ThresholdPolicy,
    pair: ModelPair,
    prompts: Seq[Seq[int]],
    sampling: SamplingParams,
    options: CalibrationOptions,
    engine_options: EngineOptions,
) -> tuple[float, Tensor]:
    """Decode all prompts; returns the realised LLM share and every draft's signal."""
    signals: list[Tensor] = []
    assert policy.threshold is not None
    engine = Engine(pair, policy.with_threshold(policy.threshold, signals.append), engine_options)  # type: ignore[arg-type]
    for index, prompt_ids in enumerate(prompts):
        engine.add(prompt_ids, sampling, options.max_tokens, seed=options.seed + index)
    for _ in engine.run():
        pass
    return engine.ledger.llm_share, torch.cat(signals)
