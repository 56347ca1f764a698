"""Options that every stage with responses shares: which models, which problems, how to decode."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
import tyro

from navtoken.checkpoints import ModelPair, load_pair
from navtoken.engine import EngineOptions, SamplingParams
from navtoken.engine.options import OptionError
from navtoken.tasks import Split
from navtoken.tasks.prompts import PromptOptions

FAMILIES = ("countdown", "knights", "arithmetic")
"""The generated tasks that the embedded pair was trained on."""
SMALL = 20_000_000
"""Parameters of an LLM below which a second thread waits more than it works; beside a busy core, by a factor."""


@dataclass(frozen=True)
class ModelOptions:
    """The pair, and where it runs."""

    slm: str = "embedded:slm"
    """The small language model: embedded:slm, a local folder, or org/name@revision of the hub."""
    llm: str = "embedded:llm"
    """The large language model, in the same grammar."""
    device: str = "cpu"
    """Torch device of both models."""
    dtype: str = "float32"
    """Floating-point type of both models."""
    threads: int | None = None
    """Torch threads on the CPU; None is one for a pair as small as the embedded one, else torch's choice."""

    def load(self) -> ModelPair:
        """Load the pair; sets the process's torch threads. Raises `CheckpointError`s."""
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"threads is {self.threads}; give at least 1, or leave it out")
        pair = load_pair(self.slm, self.llm, self.device, self.dtype)
        small = pair.llm.card.parameters < SMALL and "OMP_NUM_THREADS" not in os.environ
        threads = self.threads or (1 if small else None)
        if threads is not None:
            torch.set_num_threads(threads)
        return pair


@dataclass(frozen=True)
class GenerationOptions:
    """Which problems are answered, under which policies, and how tokens are drawn."""

    task: tyro.conf.UseAppendAction[tuple[str, ...]] = FAMILIES
    """Task reference, name[:target][,key=value...]; may be repeated. The three embedded families where left out."""
    policy: tyro.conf.UseAppendAction[tuple[str, ...]] = ("slm", "llm")
    """Policy reference such as slm, random:0.13, entropy,share=0.13; may be repeated. slm and llm where left out."""
    num: int | None = None
    """Problems per task; None takes all of a finite set and 100 of a task that generates them."""
    split: Split = "test"
    """Split that the problems come from."""
    seed: int = 0
    """Fixes problems, their order and all noise."""
    samples: int = 1
    """Responses per problem; more than one makes sense with a temperature above 0 only."""
    max_tokens: int | None = None
    """Longest response in tokens; None takes the LLM's own limit (max_new_tokens in its generation config), else the
    context."""
    calibration_num: int = 64
    """Problems of the training split on which a policy given by share= finds its threshold."""
    calibrate_on: str | None = None
    """Task whose training split calibrates; None takes each task's own."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How tokens are drawn."""
    prompts: PromptOptions = field(default_factory=PromptOptions)
    """How questions become prompts."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    """How the engine batches and what it records."""

    def __post_init__(self) -> None:
        for name in ("num", "samples", "max_tokens", "calibration_num"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; give at least 1")
        for name in ("task", "policy"):
            given = getattr(self, name)
            if twice := next((value for value in given if given.count(value) > 1), None):
                raise OptionError(f"{name} '{twice}' is given twice; leave one out")

    def limit(self, pair: ModelPair) -> int | None:
        """Longest response in tokens with this pair; None is up to the context."""
        if self.max_tokens is not None:
            return self.max_tokens
        config: Any = getattr(pair.llm.model, "generation_config", None)
        return getattr(config, "max_new_tokens", None)
