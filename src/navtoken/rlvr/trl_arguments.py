"""A run's options in TRL's words.

TRL counts updates where a run counts steps (rollout batches), and sizes are those of one rank.
"""

import os
from typing import Any

import torch
from trl import GRPOConfig

from navtoken.engine import SamplingParams
from navtoken.placement import num_ranks
from navtoken.rlvr.options import TrainRLError, TrainRLOptions

CHECKPOINTS = "checkpoints"
"""In a run's folder: what it resumes from, and the loggers' files."""
SIZES = frozenset(
    (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "steps_per_generation",
        "generation_batch_size",
        "num_iterations",
        "top_entropy_quantile",
    )
)
"""Follow from the options, or from what selection decides."""


class TrainerError(ValueError):
    """Sizes of batches, or options of TRL's, that do not go together."""


def arguments(
    options: TrainRLOptions, learning_rate: float = 0.0, max_tokens: int = 1, ranks: int | None = None
) -> GRPOConfig:
    """The run in TRL's words; rate and length are known once the model is. Raises `TrainRLError` for a further option that TRL does
    not know, or that this command sets itself."""
    update, watch = options.update, options.watch
    own: dict[str, Any] = {
        "output_dir": str(options.out / CHECKPOINTS),
        "seed": options.seed,
        "data_seed": options.seed,
        "use_cpu": options.device == "cpu" or not torch.accelerator.is_available(),
        "num_generations": options.rollout.num_generations,
        "max_completion_length": max_tokens,
        "temperature": options.rollout.temperature,
        "loss_type": "dapo",
        "beta": 0.0,
        "epsilon": update.epsilon_low,
        "epsilon_high": update.epsilon_high,
        "mask_truncated_completions": update.mask_truncated_completions,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": update.warmup_steps * update.updates,
        "weight_decay": update.weight_decay,
        "max_grad_norm": update.max_grad_norm,
        "bf16": update.precision == "bf16" or os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16",
        "gradient_checkpointing": update.gradient_checkpointing,
        "use_vllm": options.rollout.rollouts == "vllm",
        "max_steps": options.steps * update.updates,
        "logging_steps": update.updates,
        "save_steps": watch.save_every * update.updates,
        "save_total_limit": watch.save_total,
        "report_to": list(watch.report_to) or "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    given = _further(options, own)
    sizes = options.sizes(num_ranks() if ranks is None else ranks)
    return GRPOConfig(
        **own,
        **given,
        per_device_train_batch_size=sizes.forward_rows,
        gradient_accumulation_steps=sizes.accumulated,
        steps_per_generation=sizes.accumulated * sizes.updates,
    )


def _further(options: TrainRLOptions, own: dict[str, Any]) -> dict[str, Any]:
    given = options.further_trl()
    if unknown := sorted(set(given) - set(GRPOConfig.__dataclass_fields__)):
        raise TrainRLError(
            f"TRL's GRPOConfig has no option '{unknown[0]}'; see its documentation for their names"
        )
    if given.get("generation_kwargs") and options.rollout.rollouts == "engine":
        raise TrainRLError(
            "trl 'generation_kwargs' are for transformers and vLLM; give another rollouts, or leave them out"
        )
    if taken := sorted(set(given) & (set(own) | SIZES)):
        raise TrainRLError(f"trl '{taken[0]}' is set by options of this command; leave it out")
    return given


def sampling_of(args: GRPOConfig) -> SamplingParams:
    """How the engine draws: as TRL's own ways would."""
    return SamplingParams(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p or 0.0,
        repetition_penalty=args.repetition_penalty,
    )


def is_sharded(args: GRPOConfig) -> bool:
    """Will the trainer spread one model over several ranks?"""
    launched = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return bool(args.deepspeed or args.fsdp) or any(
        os.environ.get(name, "false").lower() == "true" for name in launched
    )


def check_arguments(args: GRPOConfig) -> None:
    """Raise `TrainerError` for batches that are cut up, and for what selection decides."""
    accumulated, drawn = args.gradient_accumulation_steps, args.steps_per_generation
    if accumulated % drawn and drawn % accumulated:
        raise TrainerError(
            f"a rollout batch of {drawn} forwards is cut up by updates of {accumulated}; make steps_per_generation a multiple of "
            "gradient_accumulation_steps, or the reverse"
        )
    own = args.per_device_train_batch_size * drawn
    if own % args.num_generations:
        raise TrainerError(
            f"a rank's part of a rollout batch has {own} responses, which are no whole groups of {args.num_generations}; make "
            "responses per rank a multiple of the group size"
        )
    if args.top_entropy_quantile != 1.0:
        raise TrainerError(
            f"top_entropy_quantile is {args.top_entropy_quantile}; which tokens carry gradient is a matter of selection: leave it out"
        )
