"""A causal LM's last layer as plain numbers, so that logits can be made a few positions at a time.

`transformers` models make logits for every position at once, and several architectures scale or cap them on the
way; whoever multiplies hidden states with `lm_head.weight` by hand gets other entropies than the model's own.

Shapes: N positions, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class UnknownHeadError(ValueError):
    """A model whose logits are not what `LMHead` makes of its hidden states."""


@dataclass(frozen=True)
class LMHead:
    """The last layer of a causal LM as plain numbers: z = softcap(scale * (W h + b)), padded rows left out."""

    weight_VD: Tensor
    """Rows beyond the tokenizer's vocabulary are cut off, which masks them."""
    bias_V: Tensor | None = None
    scale: float = 1.0
    """1/logits_scaling in Granite, logit_scale in Cohere."""
    softcap: float | None = None
    """Gemma's final_logit_softcapping: z becomes c tanh(z/c)."""

    @classmethod
    def of(cls, model: Any, valid_vocabulary: int | None = None, check: bool = True) -> "LMHead":
        """Read the head of a `transformers` causal LM.

        `valid_vocabulary` is the number of ids that the tokenizer knows; further rows are padding.
        With `check`, a forward over a few tokens compares the result with the model's own logits.
        Raises `UnknownHeadError` where they differ (the architecture does something else to its logits).
        """
        layer = model.get_output_embeddings()
        if layer is None or not hasattr(layer, "weight"):
            raise UnknownHeadError(f"{type(model).__name__} has no linear LM head; load it as a causal LM")
        config = model.config.get_text_config()
        rows = layer.weight.shape[0]
        valid = rows if valid_vocabulary is None else valid_vocabulary
        if not 0 < valid <= rows:
            raise UnknownHeadError(f"valid vocabulary {valid} is not in 1..{rows}, the rows of the LM head")
        bias = getattr(layer, "bias", None)
        softcap = getattr(config, "final_logit_softcapping", None)
        full = cls(layer.weight.detach(), None if bias is None else bias.detach(), _scale_of(config), softcap)
        if check:
            _check_head(full, model)
        bias_V = None if full.bias_V is None else full.bias_V[:valid]
        return cls(full.weight_VD[:valid], bias_V, full.scale, full.softcap)

    @property
    def vocabulary(self) -> int:
        return self.weight_VD.shape[0]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """(N, D) last hidden states, after the final norm -> (N, V) logits in the head's dtype."""
        logits_NV = torch.nn.functional.linear(
            hidden_ND.to(self.weight_VD.device, self.weight_VD.dtype), self.weight_VD, self.bias_V
        )
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV


def _scale_of(config: Any) -> float:
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        # HyperCLOVA X multiplies by what Granite divides by, under the same name.
        return float(scaling) if config.model_type.startswith("hyperclovax") else 1.0 / scaling
    for name in ("logit_scale", "lm_head_multiplier"):
        if (scale := getattr(config, name, None)) is not None:
            return float(scale)
    return 1.0


@torch.no_grad()
def _check_head(head: LMHead, model: Any) -> None:
    seen: dict[str, Tensor | None] = {}
    # The hidden state is taken from the same forward, so dropout in a model under training changes nothing.
    handle = model.base_model.register_forward_hook(
        lambda _module, _args, output: seen.update(hidden=getattr(output, "last_hidden_state", None))
    )
    try:
        device = model.get_input_embeddings().weight.device
        ids_BT = torch.arange(1, 5, device=device)[None] % head.vocabulary
        theirs_NV = model(input_ids=ids_BT, use_cache=False).logits[0].double()
    finally:
        handle.remove()
    name = type(model).__name__
    hidden_BND = seen.get("hidden")
    if hidden_BND is None:
        raise UnknownHeadError(f"{name} does not give its last hidden state; it cannot be scored in chunks")
    error = (head.logits(hidden_BND[0]).to(theirs_NV) - theirs_NV).abs().max().item()
    tolerance = 16 * torch.finfo(head.weight_VD.dtype).eps * max(theirs_NV.abs().max().item(), 1e-6)
    if not error <= tolerance:
        raise UnknownHeadError(
            f"{name}'s logits differ from those of its LM head by {error:.3g}; "
            "teach navtoken.lm_head.LMHead what this architecture does to them"
        )
