"""Training: weighted binary cross-entropy on the train part, the checkpoint picked on the validation part.

Divergent tokens are few, so they weigh more in the loss (as in the paper); afterwards the output is shifted by the logarithm of
that weight, which sets right what the weight put wrong: p(divergent) is a probability again.

All that an interrupted training needs lies in one safetensors file, written anew after every epoch. Order and noise of
an epoch follow from the seed and its number alone, so a training that was killed ends in the same weights as one that was not.

Shapes: N examples, B a batch of them.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from navtoken.analysis.ranking import Ranked, Resampling
from navtoken.router.network import RouterNetwork
from navtoken.router.shape import RouterShape
from navtoken.router_training.examples import Examples, Target

STATE = "state.safetensors"
PREDICTION_BATCH = 8192
WARMUP = 0.03
"""Share of all steps in which the learning rate rises."""
LAST_RATE = 0.02
"""Of the learning rate, at the end."""


class TrainingError(ValueError):
    """A training that cannot be begun, or gone on with, as asked."""


@dataclass(frozen=True)
class TrainingOptions:
    """How the network is trained."""

    target: Target = "divergent"
    """What the router learns to find: tokens that part the paths, or all at which the models are different."""
    epochs: int = 30
    """Passes over the train part at most."""
    patience: int = 5
    """Stop after so many epochs without a better area under precision and recall on the validation part."""
    batch_size: int = 1024
    """Labels per step."""
    learning_rate: float = 2e-3
    """Highest rate of AdamW; it rises for a few steps, then falls along a cosine over all epochs."""
    weight_decay: float = 0.01
    """Of AdamW."""
    pos_weight: float | None = None
    """Weight of a label that is to be found; None takes the square root of how many times fewer those are."""
    training_seed: int = 0
    """Fixes first weights, order and dropout."""

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise TrainingError(f"{name} is {value}; give at least 1")
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise TrainingError(
                f"learning_rate is {self.learning_rate}, weight_decay {self.weight_decay}; give a rate above 0 and a decay of "
                "at least 0"
            )
        if self.pos_weight is not None and not self.pos_weight > 0:
            raise TrainingError(f"pos_weight is {self.pos_weight}; give a weight above 0, or leave it out")


@dataclass(frozen=True)
class Epoch:
    """What one pass over the train part came to."""

    number: int
    """From 1."""
    loss: float
    """Mean weighted cross-entropy over the train part, while training."""
    validation_loss: float
    """The same, over the validation part, after it."""
    validation_pr: float
    """Area under precision and recall on the validation part."""
    seconds: float


@dataclass(frozen=True, eq=False)
class Trained:
    """A network whose output is a probability, and how it came about."""

    network: RouterNetwork
    history: tuple[Epoch, ...]
    best: int
    """Number of the epoch whose weights these are."""
    pos_weight: float


@dataclass(eq=False)
class _Progress:
    """A training under way."""

    network: RouterNetwork
    optimizer: torch.optim.AdamW
    history: list[Epoch] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """Number of the best epoch so far; 0 before the first."""
        return max(self.history, key=lambda each: each.validation_pr).number if self.history else 0

    def stopped(self, options: TrainingOptions) -> bool:
        done = len(self.history)
        return done >= options.epochs or done - self.best >= options.patience


def train(
    examples: Examples,
    shape: RouterShape,
    embedding: nn.Module | None,
    options: TrainingOptions,
    folder: Path,
    identity: str = "",
    device: torch.device | str = "cpu",
    tell: Callable[[Epoch | None], object] = lambda _: None,
) -> Trained:
    """Train a router of this shape, or go on where `folder` has one under way.

    `embedding` is the SLM's, on its own device. `identity` names the labels and everything else that the weights follow from; a
    folder with another one is refused. `tell` hears of every step (None) and of every epoch. Raises `TrainingError`.
    """
    identity = json.dumps([identity, shape.as_json(), asdict(options)], sort_keys=True)
    weight = options.pos_weight or _balance(examples, options.target)
    progress = _begin(shape, options, device)
    _load(progress, folder / STATE, identity)
    loop = _Loop(examples, embedding, options, weight, torch.device(device))
    for epoch in progress.history:
        tell(epoch)
    while not progress.stopped(options):
        epoch = loop.run(progress, lambda: tell(None))
        progress.history.append(epoch)
        if progress.best == epoch.number:
            progress.best_weights = _copied(progress.network)
        _save(progress, folder / STATE, identity)
        tell(epoch)
    progress.network.load_state_dict(progress.best_weights)
    network = progress.network.eval().requires_grad_(False)
    network.shift(-math.log(weight))
    return Trained(network, tuple(progress.history), progress.best, weight)


@torch.no_grad()
def predict(
    network: RouterNetwork,
    examples: Examples,
    index_N: NDArray[np.int64],
    embedding: nn.Module | None,
    device: torch.device | str = "cpu",
) -> NDArray[np.float64]:
    """Logits of p(divergent) of some examples, (N,)."""
    network.eval()
    parts = [
        _logits(network, examples, index_N[start : start + PREDICTION_BATCH], embedding, torch.device(device))
        for start in range(0, len(index_N), PREDICTION_BATCH)
    ]
    return torch.cat(parts).double().cpu().numpy() if parts else np.empty(0)


def pr_area(signal_N: NDArray[Any], wanted_N: NDArray[np.bool_], problem_N: NDArray[np.int32]) -> float:
    """Area under precision and recall, without an interval."""
    return Ranked.of(signal_N, wanted_N, problem_N).areas(Resampling(num=0)).pr.value


@dataclass(frozen=True, eq=False)
class _Loop:
    """What all epochs share."""

    examples: Examples
    embedding: nn.Module | None
    options: TrainingOptions
    pos_weight: float
    device: torch.device

    def run(self, progress: _Progress, stepped: Callable[[], object]) -> Epoch:
        """One epoch: all of the train part once, then a look at the validation part."""
        number, started = len(progress.history) + 1, perf_counter()
        train_N = self.examples.of("train")
        seed = np.random.SeedSequence([self.options.training_seed, number])
        order_N = np.random.default_rng(seed).permutation(train_N)
        batches = self._batches(order_N)
        total = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed.generate_state(1)[0]))
            progress.network.train()
            for step, index_B in enumerate(batches):
                _set_rate(progress.optimizer, self._rate((number - 1) * len(batches) + step, len(batches)))
                total += self._step(progress, index_B) * len(index_B)
                stepped()
        loss, area = self._validated(progress.network)
        return Epoch(number, total / len(order_N), loss, area, perf_counter() - started)

    def num_steps(self) -> int:
        return len(self._batches(self.examples.of("train")))

    def _batches(self, order_N: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        size = self.options.batch_size
        batches = [order_N[start : start + size] for start in range(0, len(order_N), size)]
        # One draft alone has no spread to be standardised by.
        return [np.sort(batch) for batch in batches if len(batch) > 1]

    def _rate(self, step: int, per_epoch: int) -> float:
        total = per_epoch * self.options.epochs
        warmup = max(1, round(WARMUP * total))
        if step < warmup:
            return self.options.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, total - warmup)
        fallen = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2
        return self.options.learning_rate * fallen

    def _step(self, progress: _Progress, index_B: NDArray[np.int64]) -> float:
        logit_B = _logits(progress.network, self.examples, index_B, self.embedding, self.device)
        loss = self._loss(logit_B, self._wanted(index_B))
        progress.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(progress.network.parameters(), 1.0)
        progress.optimizer.step()
        if not math.isfinite(value := float(loss.detach())):
            raise TrainingError(
                f"the loss is {value} at learning_rate {self.options.learning_rate}; give a lower one, and another folder"
            )
        return value

    def _validated(self, network: RouterNetwork) -> tuple[float, float]:
        index_N = self.examples.of("validation")
        logit_N = predict(network, self.examples, index_N, self.embedding, self.device)
        wanted_N = self.examples.wanted(self.options.target)[index_N]
        loss = self._loss(torch.from_numpy(logit_N), torch.from_numpy(wanted_N).double())
        return float(loss), pr_area(logit_N, wanted_N, self.examples.problem_N[index_N])

    def _wanted(self, index_B: NDArray[np.int64]) -> Tensor:
        label_B = self.examples.label_N[index_B]
        least = 2 if self.options.target == "divergent" else 1
        return torch.from_numpy(label_B >= least).to(self.device).float()

    def _loss(self, logit_B: Tensor, wanted_B: Tensor) -> Tensor:
        weight = logit_B.new_tensor(self.pos_weight)
        return functional.binary_cross_entropy_with_logits(logit_B, wanted_B, pos_weight=weight)


def steps_per_epoch(examples: Examples, options: TrainingOptions) -> int:
    """How often `tell` hears None in an epoch."""
    return _Loop(examples, None, options, 1.0, torch.device("cpu")).num_steps()


def _logits(
    network: RouterNetwork,
    examples: Examples,
    index_B: NDArray[np.int64],
    embedding: nn.Module | None,
    device: torch.device,
) -> Tensor:
    features = examples.features(index_B)
    embedding_BE = None
    if embedding is not None:
        with torch.no_grad():
            table: Tensor = next(embedding.parameters())
            embedding_BE = embedding(features.token_ids_B.to(table.device)).to(device)
    logit_B: Tensor = network(features.to(device), embedding_BE)
    return logit_B


def _balance(examples: Examples, target: Target) -> float:
    """Between no weight and one that makes both kinds count alike: that much would drown precision at the top."""
    wanted_N = examples.wanted(target)[examples.of("train")]
    return math.sqrt((len(wanted_N) - wanted_N.sum()) / wanted_N.sum())


def _begin(shape: RouterShape, options: TrainingOptions, device: torch.device | str) -> _Progress:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.training_seed)
        network = RouterNetwork(shape).to(device)
    optimizer = torch.optim.AdamW(
        _groups(network, options.weight_decay), lr=options.learning_rate, betas=(0.9, 0.98)
    )
    return _Progress(network, optimizer)


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms do not."""
    matrices = [weight for weight in network.parameters() if weight.dim() > 1]
    others = [weight for weight in network.parameters() if weight.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


# ---- the file -------------------------------------------------------------------------------------------------


def _save(progress: _Progress, path: Path, identity: str) -> None:
    """Everything that the next epoch needs, written aside and renamed."""
    tensors = {f"network.{name}": tensor for name, tensor in progress.network.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best_weights.items()}
    tensors |= dict(_moments(progress.optimizer))
    history = json.dumps([asdict(epoch) for epoch in progress.history])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, temporary, metadata={"identity": identity, "history": history})
    os.replace(temporary, path)


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's state by names: index of the weight, and what is kept of it."""
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            yield f"optimizer.{index}.{name}", torch.as_tensor(value).clone()


def _load(progress: _Progress, path: Path, identity: str) -> None:
    """Take up what is there, if it is the same training."""
    if not path.exists():
        return
    try:
        with safe_open(path, "pt") as file:
            kept = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise TrainingError(f"'{path}' cannot be read ({error}); remove it to train anew") from error
    if kept.get("identity") != identity:
        raise TrainingError(
            f"'{path.parent}' holds a training with other labels or options ({_difference(kept.get('identity'), identity)}); "
            "name another folder with --out"
        )
    progress.history = [Epoch(**each) for each in json.loads(kept["history"])]
    progress.network.load_state_dict(_under("network.", tensors))
    progress.best_weights = _under("best.", tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        index, part = name.split(".")
        state.setdefault(int(index), {})[part] = tensor
    groups = progress.optimizer.state_dict()["param_groups"]
    progress.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _difference(before: str | None, now: str) -> str:
    """What two identities differ in, in words."""
    try:
        (old_labels, old_shape, old_options), (labels, shape, options) = (
            json.loads(before or ""),
            json.loads(now),
        )
    except ValueError:
        return "of another version"
    pairs: Sequence[tuple[str, Any, Any]] = [
        *([("labels", "others", "these")] if old_labels != labels else []),
        *((name, old_shape.get(name), shape[name]) for name in shape),
        *((name, old_options.get(name), options[name]) for name in options),
    ]
    return ", ".join(f"{name} {old} there, {new} now" for name, old, new in pairs if old != new)
