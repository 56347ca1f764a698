"""Options that every stage with responses shares: which models, which problems, how to decode."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

from navtoken.checkpoints import ModelPair, load_model, load_pair
from navtoken.engine import EngineOptions, SamplingParams
from navtoken.engine.options import OptionError
from navtoken.placement import Placement, check_launch
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
    slm_device: str | None = None
    """Torch device of the SLM; None is device."""
    llm_device: str | None = None
    """Torch device of the LLM; None is device."""
    llm_device_map: str | None = None
    """For an LLM larger than one device: auto, balanced, balanced_low_0, sequential, or a JSON object of parts and
    devices, cpu and disk among them. Needs accelerate."""
    llm_max_memory: str | None = None
    """What the map may fill with weights, such as 0=20GiB,cpu=100GiB; leave room for the caches."""
    offload_folder: Path | None = None
    """Where parts on disk go that cannot be read from the checkpoint's own files."""
    tp: int = 1
    """Ranks that share each layer of both models (tensor parallelism); start as many with torchrun."""
    slm_tp: int | None = None
    """Ranks that share the SLM: tp, as where left out, or 1, which gives each rank a whole one."""
    dtype: str = "float32"
    """Floating-point type of both models; auto takes each checkpoint's own."""
    llm_dtype: str | None = None
    """Floating-point type of the LLM; None is dtype."""
    threads: int | None = None
    """Torch threads on the CPU; None is one for a pair as small as the embedded one, else torch's choice."""

    def load(self) -> ModelPair:
        """Load the pair; sets the process's torch threads. Raises `CheckpointError`s."""
        slm, llm = self._checked_placements()
        return self._with_threads(load_pair(self.slm, self.llm, slm, self.dtype, llm, self.llm_dtype))

    def load_alone(self, reference: str) -> ModelPair:
        """Load one model, placed and typed as the LLM, as both halves of a pair: for policies that run one model only."""
        _, placement = self._checked_placements()
        loaded = load_model(reference, placement, self.llm_dtype or self.dtype)
        return self._with_threads(ModelPair(loaded, loaded))

    def _checked_placements(self) -> tuple[Placement, Placement]:
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"threads is {self.threads}; give at least 1, or leave it out")
        placements = self.placements()
        check_launch(self.tp)
        return placements

    def _with_threads(self, pair: ModelPair) -> ModelPair:
        small = pair.llm.card.parameters < SMALL and "OMP_NUM_THREADS" not in os.environ
        threads = self.threads or (1 if small else None)
        if threads is not None:
            torch.set_num_threads(threads)
        return pair

    def placements(self) -> tuple[Placement, Placement]:
        """Where the SLM and the LLM run. Raises `PlacementError` and `OptionError` for what does not go together."""
        slm_tp = self.tp if self.slm_tp is None else self.slm_tp
        if slm_tp not in (1, self.tp):
            raise OptionError(f"slm_tp is {slm_tp}; give 1, or {self.tp} as tp is")
        slm = Placement(self.slm_device or self.device, tp=slm_tp)
        return slm, Placement(
            self.llm_device or self.device,
            self.llm_device_map,
            self.llm_max_memory,
            self.offload_folder,
            self.tp,
        )


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
        if self.engine.when_unprofitable != "route":
            raise OptionError(
                f"when_unprofitable is {self.engine.when_unprofitable}: responses would depend on load; it is for "
                "serving only, leave it out"
            )
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
