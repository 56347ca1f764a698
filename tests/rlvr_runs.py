"""Tiny trainers: rollouts that are fixed beforehand, rewards that are known, and records of all that a run computed."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from navtoken.rlvr.groups import DynamicSamplingOptions, Rollout
from navtoken.rlvr.rewards import Outcome
from navtoken.rlvr.selection import SelectionOptions
from navtoken.rlvr.trainer import NavigationTrainer
from tiny_models import EOS, VOCAB_SIZE, tiny_model, tiny_tokenizer
from tiny_models import prompts as random_prompts

# Trainers collect garbage; with all that was imported for one, each time takes longer than the training.
gc.freeze()

FIRST = 10
"""First token of a group's first response; the next response begins with the next token, so all differ."""
EPSILON_LOW, EPSILON_HIGH = 0.2, 0.28


def problem_rows(kinds: Sequence[str]) -> list[dict[str, Any]]:
    """One problem per kind, with the columns of `ProblemSet.rows`; `answer` is the kind, which `graded` goes by."""
    return [
        {"prompt": f"<{index}>", "prompt_ids": ids, "task": "tiny", "problem_id": str(index)}
        | {"question": str(index), "answer": kind}
        for index, (ids, kind) in enumerate(zip(random_prompts(len(kinds), seed=4), kinds, strict=True))
    ]


GRADES = {
    "mixed": lambda first: float(first % 2),
    "right": lambda first: 1.0,
    "wrong": lambda first: 0.0,
    "noise": lambda first: 0.1 + 0.2 if first % 2 else 0.3,
    "unscored": lambda first: None,
    "half": lambda first: [None, 1.0, 0.0, None][first % 4],
}
"""By the kind of a problem: the outcome of a response by its first token."""


def graded(completions: Any, completion_ids: Any, answer: Any, **columns: Any) -> list[float | None]:
    return [GRADES[kind](ids[0]) for kind, ids in zip(answer, completion_ids, strict=True)]


Key = tuple[tuple[int, ...], tuple[int, ...]]
"""A row by its prompt and its response; all that `FixedRollouts` answer to different prompts differ."""


class Scores(NamedTuple):
    """Of each token of a response, from a forward over its row alone."""

    logprobs: list[float]
    entropies: list[float]


@torch.no_grad()
def plain_scores(model: nn.Module, prompt: Sequence[int], response: Sequence[int]) -> Scores:
    logits_TV = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()
    logp_TV = logits_TV - torch.log(torch.exp(logits_TV).sum(-1, keepdim=True))
    entropy_T = -(torch.exp(logp_TV) * logp_TV).sum(-1)
    logprobs = [float(logp_TV[place, token]) for place, token in enumerate(response)]
    return Scores(logprobs, entropy_T.tolist())


class FixedRollouts:
    """Responses that depend on the prompt and the seed given here, and on nothing else.

    With `tells_scores` their scores are those of the synced model, log-probabilities off by up to `off` nats, as if an older
    policy had drawn them.
    """

    def __init__(self, tells_scores: bool = True, off: float = 0.0, longest: int = 7, seed: int = 0) -> None:
        self.tells_scores = tells_scores
        self.off = off
        self.longest = longest
        self.seed = seed
        self.calls: list[list[list[int]]] = []
        """Prompts of each draw."""
        self.given: dict[Key, Rollout] = {}
        """All that was drawn."""
        self._model: Any = None

    def sync(self, model: nn.Module, gathered: Any) -> None:
        self._model = model

    def draw(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], num: int) -> list[list[Rollout]]:
        self.calls.append([list(prompt) for prompt in prompts])
        drawn = [[self._rollout(prompt, sample) for sample in range(num)] for prompt in prompts]
        for prompt, group in zip(prompts, drawn, strict=True):
            self.given |= {(tuple(prompt), tuple(rollout.token_ids)): rollout for rollout in group}
        return drawn

    def ids(self, prompt: Sequence[int], sample: int) -> list[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, tuple(prompt), sample)) % 2**31)
        length = int(torch.randint(0, self.longest, (1,), generator=generator))
        rest = torch.randint(FIRST, VOCAB_SIZE, (length,), generator=generator).tolist()
        ends = [EOS] if sample % 3 else []
        return [FIRST + sample, *rest, *ends]

    def _rollout(self, prompt: Sequence[int], sample: int) -> Rollout:
        ids = self.ids(prompt, sample)
        if not self.tells_scores:
            return Rollout(ids)
        scores = plain_scores(self._model, prompt, ids)
        generator = torch.Generator().manual_seed(sum(ids))
        off_T = self.off * (2 * torch.rand(len(ids), generator=generator) - 1)
        logprobs = [value + float(off) for value, off in zip(scores.logprobs, off_T, strict=True)]
        return Rollout(ids, logprobs, scores.entropies)


class Recording:
    """Mixed into a trainer, keeps what it was fed and what came out, forward by forward and update by update."""

    def __init__(self, **kwargs: Any) -> None:
        self.fed: list[dict[str, Any]] = []
        """Inputs of each forward's loss, and as `mask` what TRL's hook for one gave."""
        self._mask: Tensor | None = None
        self.losses: list[float] = []
        self.gradients: list[dict[str, Tensor]] = []
        """Of each update."""
        self.weights: list[dict[str, Tensor]] = []
        """Those that each update began with."""
        self.logged: list[dict[str, float]] = []
        super().__init__(**kwargs)
        self.add_callback(_Recorder(self))  # type: ignore[attr-defined]

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        loss = super()._compute_loss(model, inputs)  # type: ignore[misc]
        self.fed.append(dict(inputs) | {"mask": self._mask})
        self.losses.append(float(loss.detach()))
        return loss

    def get_high_entropy_mask(self, *args: Any, **kwargs: Any) -> Any:
        self._mask = super().get_high_entropy_mask(*args, **kwargs)  # type: ignore[misc]
        return self._mask

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs, *args, **kwargs)  # type: ignore[misc]
        self.logged.append(logs)

    def update_losses(self) -> list[float]:
        """Summed over the forwards of each update."""
        per_update = self.args.gradient_accumulation_steps  # type: ignore[attr-defined]
        return [sum(self.losses[i : i + per_update]) for i in range(0, len(self.losses), per_update)]


class _Recorder(TrainerCallback):
    def __init__(self, trainer: Recording) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        weights = {name.removeprefix("module."): weight for name, weight in model.named_parameters()}
        self.trainer.gradients.append({name: weight.grad.clone() for name, weight in weights.items()})
        self.trainer.weights.append({name: weight.detach().clone() for name, weight in weights.items()})


class Ours(Recording, NavigationTrainer):
    """The trainer under test."""


class Stock(Recording, GRPOTrainer):
    """TRL's own, made to answer with given rollouts."""

    def __init__(self, rollouts: FixedRollouts, **kwargs: Any) -> None:
        self._fixed = rollouts
        self._ids = {row["prompt"]: row["prompt_ids"] for row in kwargs["train_dataset"]}
        super().__init__(**kwargs)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[Any, None, dict[str, Any]]:
        return [self._ids[prompt] for prompt in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> tuple[Any, None]:
        return [
            self._fixed.ids(ids, index % self.num_generations) for index, ids in enumerate(prompt_ids)
        ], None


class Sizes(NamedTuple):
    """Of a run. A rollout batch has `rows x accumulated x updates` responses on each rank."""

    rows: int = 4
    """Responses per forward."""
    accumulated: int = 2
    """Forwards per update."""
    updates: int = 1
    """Updates per rollout batch."""
    group: int = 4
    """Responses per problem."""
    steps: int = 1
    """Updates in all."""

    @property
    def problems(self) -> int:
        return self.rows * self.accumulated * self.updates // self.group


def arguments(folder: Path, sizes: Sizes, **trl: Any) -> GRPOConfig:
    """Updates are plain SGD without clipping, which shows a gradient's size; problems come in their order."""
    given = {
        "output_dir": str(folder),
        "max_steps": sizes.steps,
        "per_device_train_batch_size": sizes.rows,
        "gradient_accumulation_steps": sizes.accumulated,
        "steps_per_generation": sizes.accumulated * sizes.updates,
        "num_generations": sizes.group,
        "max_completion_length": 16,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "loss_type": "dapo",
        "beta": 0.0,
        "epsilon": EPSILON_LOW,
        "epsilon_high": EPSILON_HIGH,
        "shuffle_dataset": False,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return GRPOConfig(**(given | trl))


def trained_model(seed: int = 0, **shape: Any) -> Any:
    """A tiny model that takes gradients. float32: TRL scores tokens in that whatever the model's type."""
    return tiny_model("qwen3", seed, torch.float32, **shape).model.requires_grad_(True).train()


def rows_fed(inputs: dict[str, Any]) -> list[Key]:
    """The rows of one forward that its loss counts."""
    counted_BT = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    rows = []
    for row in counted_BT.any(1).nonzero()[:, 0].tolist():
        prompt, response = (
            tuple(inputs[f"{side}_ids"][row][inputs[f"{side}_mask"][row].bool()].tolist())
            for side in ("prompt", "completion")
        )
        rows.append((prompt, response))
    return rows


def our_trainer(
    folder: Path,
    kinds: Sequence[str],
    sizes: Sizes | None = None,
    selection: SelectionOptions | None = None,
    dynamic: DynamicSamplingOptions | None = None,
    rollouts: Any = None,
    outcome: Any = graded,
    further_rewards: Sequence[Any] = (),
    model: Any = None,
    trust_rollout_scores: bool = True,
    cls: Any = Ours,
    **trl: Any,
) -> Any:
    return cls(
        model=trained_model() if model is None else model,
        args=arguments(folder, sizes or Sizes(), **trl),
        train_dataset=Dataset.from_list(problem_rows(kinds)),
        processing_class=tiny_tokenizer(),
        outcome=Outcome(outcome),
        further_rewards=further_rewards,
        selection=selection,
        dynamic=dynamic,
        rollouts=FixedRollouts() if rollouts is None else rollouts,
        trust_rollout_scores=trust_rollout_scores,
    )


def stock_trainer(folder: Path, kinds: Sequence[str], sizes: Sizes | None = None, **trl: Any) -> Any:
    return Stock(
        FixedRollouts(),
        model=trained_model(),
        args=arguments(folder, sizes or Sizes(), **trl),
        train_dataset=Dataset.from_list(problem_rows(kinds)),
        processing_class=tiny_tokenizer(),
        reward_funcs=[Outcome(graded)],
    )
