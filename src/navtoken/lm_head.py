"""A causal LM's last layer as plain numbers, so that logits can be made a few positions at a time.

`transformers` models make logits for every position at once, and several architectures scale or cap them on the
way; whoever multiplies hidden states with `lm_head.weight` by hand gets other entropies than the model's own.

Shapes: N positions, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


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
    layer: nn.Module | None = None
    """Makes W h + b where the weight is not there to be read: offloaded, sharded or quantised. Then `weight_VD` has no
    more than the right shape."""

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
        full = cls._of_layer(layer, config)
        valid = full.vocabulary if valid_vocabulary is None else valid_vocabulary
        if not 0 < valid <= full.vocabulary:
            raise UnknownHeadError(
                f"valid vocabulary {valid} is not in 1..{full.vocabulary}, the rows of the LM head"
            )
        if check:
            _check_head(full, model)
        bias_V = None if full.bias_V is None else full.bias_V[:valid]
        return cls(full.weight_VD[:valid], bias_V, full.scale, full.softcap, full.layer)

    @classmethod
    def _of_layer(cls, layer: Any, config: Any) -> "LMHead":
        scale, softcap = _scale_of(config), getattr(config, "final_logit_softcapping", None)
        if not _is_readable(layer):
            shape = (config.vocab_size, config.hidden_size)
            return cls(torch.empty(shape, device="meta"), None, scale, softcap, layer)
        bias = getattr(layer, "bias", None)
        return cls(layer.weight.detach(), None if bias is None else bias.detach(), scale, softcap)

    @property
    def vocabulary(self) -> int:
        return self.weight_VD.shape[0]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """(N, D) last hidden states, after the final norm -> (N, V) logits in the head's dtype."""
        logits_NV = self._product(hidden_ND)
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV

    def _product(self, hidden_ND: Tensor) -> Tensor:
        if self.layer is not None:
            logits_NV: Tensor = self.layer(hidden_ND)
            return logits_NV[:, : self.vocabulary]
        return torch.nn.functional.linear(
            hidden_ND.to(self.weight_VD.device, self.weight_VD.dtype), self.weight_VD, self.bias_V
        )


def _is_readable(layer: Any) -> bool:
    """Is `W h + b` all that the layer does, with a weight that lies here whole and plain?"""
    weight = layer.weight
    touched = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    plain = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and not weight.is_meta
    return plain and not touched


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
        embedding = model.get_input_embeddings().weight
        # Weights that are offloaded lie nowhere until they are used; their hooks take inputs from anywhere.
        device = "cpu" if embedding.is_meta else embedding.device
        ids_BT = torch.arange(1, 5, device=device)[None] % head.vocabulary
        theirs_NV = model(input_ids=ids_BT, use_cache=False).logits[0]
    finally:
        handle.remove()
    name = type(model).__name__
    hidden_BND = seen.get("hidden")
    if hidden_BND is None:
        raise UnknownHeadError(f"{name} does not give its last hidden state; it cannot be scored in chunks")
    rounding = torch.finfo(theirs_NV.dtype).eps
    theirs_NV = theirs_NV.double()
    error = (head.logits(hidden_BND[0]).to(theirs_NV) - theirs_NV).abs().max().item()
    tolerance = 16 * rounding * max(theirs_NV.abs().max().item(), 1e-6)
    if not error <= tolerance:
        raise UnknownHeadError(
            f"{name}'s logits differ from those of its LM head by {error:.3g}; "
            "teach navtoken.lm_head.LMHead what this architecture does to them"
        )
