"""What of TRL's trainer the subclass stands on, held against the TRL that is installed.

TRL's trainer is no stable interface: methods that begin with an underscore move between releases, and an override that nobody
calls any more would train on all tokens without a word. So the version is pinned, every method that is overridden or called is
compared by its parameters, and the lines of TRL's loss that give weights their meaning are looked for.
"""

import inspect
from functools import cache

import trl
from packaging.version import Version
from trl import GRPOTrainer

LEAST, BELOW = Version("1.16"), Version("1.17")
"""Releases that this was written for."""

METHODS = {
    "_generate_and_score_completions": ("inputs",),
    "_tokenize_prompts": ("prompts",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_get_train_sampler": ("dataset",),
    "_generate_single_turn": (
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ),
    "_get_per_token_logps_and_entropies": (
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
    ),
    "get_high_entropy_mask": ("entropies", "mask", "threshold"),
    "_prepare_inputs": ("generation_batch",),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_load_from_checkpoint": ("resume_from_checkpoint",),
}
"""Methods, and the first of their parameters."""

LINES = {
    "_compute_loss": (
        "if advantages.dim() == 1:",
        "per_token_loss1 = coef_1 * advantages",
        "per_token_loss2 = coef_2 * advantages",
        "per_token_loss = -torch.min(per_token_loss1, per_token_loss2)",
        "per_token_loss = per_token_loss * entropy_mask",
        'mask = completion_mask if "tool_mask" not in inputs else completion_mask * inputs["tool_mask"]',
        'normalizer = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes',
    ),
    "_prepare_inputs": (
        "self._buffered_inputs = [unsplit_pixel_values_by_grid(batch) for batch in generation_batches]",
        "inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]",
    ),
    "_generate_and_score_completions": (
        "self._generate(prompts)",
        "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
        "old_per_token_logps, _, _ = self._get_per_token_logps_and_entropies(",
    ),
}
"""Lines of TRL's code that ours relies on."""


class InterfaceError(ImportError):
    """An installed TRL that is not the one this was written for."""


@cache
def check_interface() -> None:
    """Raise `InterfaceError` naming what moved."""
    remedy = f"install trl>={LEAST},<{BELOW}"
    if not LEAST <= Version(trl.__version__) < BELOW:
        raise InterfaceError(
            f"trl {trl.__version__} is installed, its trainer's inside is not known here; {remedy}"
        )
    for name, wanted in METHODS.items():
        method = getattr(GRPOTrainer, name, None)
        found = () if method is None else tuple(inspect.signature(method).parameters)[1:]
        if found[: len(wanted)] != wanted:
            raise InterfaceError(f"trl's GRPOTrainer.{name} takes {found} instead of {wanted}; {remedy}")
    for name, lines in LINES.items():
        source = inspect.getsource(getattr(GRPOTrainer, name))
        if missing := [line for line in lines if line not in source]:
            raise InterfaceError(f"trl's GRPOTrainer.{name} has no '{missing[0]}' any more; {remedy}")
