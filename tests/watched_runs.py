"""A run to be watched, without a trainer: states and arguments as callbacks get them, and a tiny model in training."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.engine import EngineOptions
from navtoken.rlvr.problems import ProblemSet
from navtoken.rlvr.watch import Trained
from tiny_models import tiny_model

ALONE = SimpleNamespace(world_size=1, process_index=0)
"""Arguments of a run with one rank."""


def state_at(step: int, max_steps: int = 10, main: bool = True) -> TrainerState:
    return TrainerState(global_step=step, max_steps=max_steps, is_world_process_zero=main, epoch=0.0)


def few_problems(num: int = 3, *tasks: str) -> ProblemSet:
    return ProblemSet.load(tasks or ("arithmetic",), "test", num, seed=0)


class Training:
    """A model whose weights change when `train` says so, and what looks at it."""

    def __init__(self, model: LoadedModel | None = None, max_rows: int = 4) -> None:
        self.model = model or tiny_model("qwen3", seed=3)
        self.syncs = 0
        pair = ModelPair(self.model, self.model)
        self.trained = Trained(pair, self._sync, EngineOptions(max_rows=max_rows))

    def _sync(self) -> None:
        self.syncs += 1

    def train(self, amount: float = 0.3) -> None:
        """Move all weights, the same way each time."""
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for weight in self.model.model.parameters():
                if weight.dim() > 1:
                    noise = torch.randn(weight.shape, generator=generator).to(weight)
                    weight += amount * weight.std() * noise


def run_steps(
    callbacks: list[TrainerCallback],
    first: int,
    last: int,
    max_steps: int = 10,
    logs: Mapping[str, Any] | None = None,
    training: Training | None = None,
    args: Any = ALONE,
    main: bool = True,
    ends: bool = True,
) -> list[dict[str, Any]]:
    """Events from the beginning after step `first` through step `last`, in the trainer's order; returns what was logged."""
    control, found = TrainerControl(), []
    state = state_at(first, max_steps, main)

    def tell(event: str, **kwargs: Any) -> None:
        for callback in callbacks:
            getattr(callback, event)(args, state, control, **kwargs)

    tell("on_train_begin")
    for step in range(first + 1, last + 1):
        tell("on_step_begin")
        if training:
            training.train(0.05)
        state.global_step = step
        tell("on_step_end")
        told = dict(logs or {"loss": 0.5, "reward": 0.25})
        state.log_history.append(told | {"step": step})
        tell("on_log", logs=told)
        found.append(told)
    if ends:
        final = {"train_runtime": 1.5, "train_loss": 0.5}
        state.log_history.append(final | {"step": state.global_step})
        tell("on_log", logs=final)
        tell("on_train_end")
    return found
