"""What of TRL's arguments the trainer cannot go along with: found before anything is drawn."""

from trl import GRPOConfig


class TrainerError(ValueError):
    """Sizes of batches, or options of TRL's, that do not go together."""


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
