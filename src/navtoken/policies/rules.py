"""The simple rules: one model alone, a coin, and thresholds on what a model says about the draft.

Every threshold is given (`entropy:0.67`) or asked for by LLM share (`entropy,share=0.13`); a share becomes a threshold
by calibration on the training split. Random routing needs none: its share is its probability.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from navtoken.policies.base import BasePolicy, Drafts, Verdicts, Writer, Writes, route
from navtoken.policies.noise import Purpose


class PolicyError(ValueError):
    """A policy that cannot be made or run as asked."""


class UncalibratedError(PolicyError):
    """A policy given by LLM share whose threshold is not known yet."""


@dataclass(frozen=True)
class SLMPolicy(BasePolicy):
    """The SLM writes everything; the LLM never runs."""

    reference: str = "slm"
    models = frozenset((Writer.SLM,))

    @property
    def capturable(self) -> bool:
        return True

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        return Verdicts(torch.zeros_like(drafts.token_ids_B))


@dataclass(frozen=True)
class LLMPolicy(BasePolicy):
    """The LLM writes everything; the SLM never runs."""

    reference: str = "llm"
    models = frozenset((Writer.LLM,))

    @property
    def capturable(self) -> bool:
        return True

    def next_writer(self, state: Any) -> Writer:
        return Writer.LLM

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        raise AssertionError("policy llm has no drafts")


@dataclass(frozen=True)
class RandomPolicy(BasePolicy):
    """The LLM writes each token with the same probability: the control at equal LLM share."""

    probability: float

    def __post_init__(self) -> None:
        check_fraction("random", self.probability)

    @property
    def reference(self) -> str:
        return f"random:{spelled(self.probability)}"

    @property
    def capturable(self) -> bool:
        return True

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        return route(drafts.noise(Purpose.ROUTING) < self.probability)


@dataclass(frozen=True)
class ThresholdPolicy(BasePolicy):
    """LLM where a signal is beyond a threshold, given or found by `engine.calibrate`."""

    threshold: float | None = None
    """None until calibrated."""
    share: float | None = None
    """The LLM share asked for, where one was."""
    listener: Callable[[Tensor], None] | None = field(default=None, repr=False, compare=False)
    """Told every batch's signal; calibration listens."""

    name: ClassVar[str]
    llm_above: ClassVar[bool]
    """Does the LLM write above the threshold (entropy), or below it (margin, llm-prob)?"""

    def __post_init__(self) -> None:
        if self.threshold is None and self.share is None:
            raise PolicyError(
                f"{self.name} needs a threshold or a share; write {self.name}:0.5 or {self.name},share=0.13"
            )
        if self.share is not None:
            check_fraction(f"{self.name},share", self.share)
        if self.threshold is not None and isnan(self.threshold):
            raise PolicyError(f"{self.name} cannot compare with nan; give a number as its threshold")

    @property
    def reference(self) -> str:
        threshold = "" if self.threshold is None else f":{spelled(self.threshold)}"
        share = "" if self.share is None else f",share={spelled(self.share)}"
        return f"{self.name}{threshold}{share}"

    def check_ready(self) -> None:
        if self.threshold is None:
            raise UncalibratedError(
                f"policy '{self.reference}' has no threshold yet; turn its share into one with "
                f"navtoken.engine.calibrate on training prompts, or give it: {self.name}:THRESHOLD"
            )

    @property
    def capturable(self) -> bool:
        return self.listener is None

    def with_threshold(self, threshold: float, listener: Callable[[Tensor], None] | None = None) -> Self:
        """The same rule at another threshold."""
        # Six digits: what calibration measures is then what the reference in a trace says.
        return replace(self, threshold=float(f"{threshold:.6g}"), listener=listener)

    def threshold_for(self, signals: Tensor) -> float:
        """The threshold beyond which the asked share of `signals` lies (shape (N,))."""
        assert self.share is not None
        ordered = signals.double().sort(descending=self.llm_above).values
        num_llm = round(self.share * len(ordered))
        inside, outside = max(num_llm - 1, 0), min(num_llm, len(ordered) - 1)
        return float((ordered[inside] + ordered[outside]) / 2)

    def route_by(self, signal_B: Tensor) -> Verdicts:
        """Verdicts from the signal of each row."""
        assert self.threshold is not None, "check_ready comes before the first draft"
        if self.listener is not None:
            self.listener(signal_B)
        beyond_B = signal_B > self.threshold if self.llm_above else signal_B < self.threshold
        return route(beyond_B)


@dataclass(frozen=True)
class EntropyPolicy(ThresholdPolicy):
    """LLM where the SLM's entropy (nats, T = 1) is above the threshold."""

    name = "entropy"
    llm_above = True

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        return self.route_by(drafts.entropy_B)


@dataclass(frozen=True)
class MarginPolicy(ThresholdPolicy):
    """LLM where the SLM's two most probable tokens are closer in probability (T = 1) than the threshold."""

    name = "margin"
    llm_above = False

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        best_B2 = drafts.logprobs_BV.topk(2, dim=-1).values.exp()
        return self.route_by(best_B2[:, 0] - best_B2[:, 1])


@dataclass(frozen=True)
class LLMProbPolicy(ThresholdPolicy):
    """LLM where it gives the draft less probability (T = 1) than the threshold: runs the LLM at every token.

    An offline rule: no cost is saved, but it tells what perfect knowledge of the LLM's view would reach.
    """

    name = "llm-prob"
    llm_above = False

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        return Verdicts(torch.ones_like(drafts.token_ids_B))

    def judge_writes(self, writes: Writes) -> Verdicts:
        logprob_B = writes.logprobs_BV.gather(1, writes.draft_ids_B[:, None])[:, 0]
        return self.route_by(logprob_B.exp())


def check_fraction(what: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise PolicyError(f"{what} is {value}; give a fraction from 0 to 1")


def spelled(value: float) -> str:
    """A number as references have it: short where that is exact, and never another number."""
    short = f"{value:.6g}"
    return short if float(short) == value else repr(value)
