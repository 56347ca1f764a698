"""What a model's weights are and what they take: logical sizes, and bytes of what is really stored.

The two part ways where weights are quantised: four-bit weights lie eight to an integer in buffers (GPTQ, AWQ), in one
flat parameter whose shape is kept beside it (bitsandbytes), or inside a tensor subclass that shows the shape of what it
stands for (torchao). And where ranks share a model, a `DTensor` shows the whole and holds a part.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

AUXILIARY = re.compile(r"(scales?|scales?_inv|zeros|zero_points?|absmax)$")
"""Names of parameters that belong to quantised ones and are none of the model's own."""


class Weight(NamedTuple):
    """One matrix or vector of a model, with whatever its storage needs besides."""

    name: str
    parameters: int
    """As the layer multiplies with it."""
    bytes: int
    """Stored, on all ranks together."""
    held_bytes: int
    """Stored on this process's devices."""


class Stored(NamedTuple):
    """Bytes of a tensor."""

    total: int
    """On all ranks together."""
    held: int
    """On this process's devices; nothing where `accelerate` keeps it elsewhere."""


def weights_of(model: nn.Module) -> list[Weight]:
    """Every weight once, tied ones where they come first."""
    quantised = getattr(getattr(model, "config", None), "quantization_config", None) is not None
    seen: set[int] = set()
    weights: list[Weight] = []
    for prefix, module in model.named_modules():
        own = {name: p for name, p in module._parameters.items() if p is not None and id(p) not in seen}
        seen.update(map(id, own.values()))
        if _is_packed(module):
            weights += _packed(prefix, module)
            continue
        for name, parameter in own.items():
            number = 0 if quantised and AUXILIARY.search(name) else parameter.numel()
            stored = stored_bytes(parameter)
            weights.append(Weight(_join(prefix, name), number, stored.total, stored.held))
    return weights


def stored_bytes(tensor: Any) -> Stored:
    """Bytes of a tensor as it is stored: the parts of a tensor subclass, and what hangs on a quantised parameter."""
    if hasattr(tensor, "to_local"):
        local = tensor.to_local()
        held = stored_bytes(local).held
        return Stored(held * tensor.numel() // max(1, local.numel()), held)
    if hasattr(tensor, "__tensor_flatten__"):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    else:
        parts = []
    parts += _attached(tensor)
    inside = [stored_bytes(part) for part in parts]
    outside = 0 if hasattr(tensor, "__tensor_flatten__") else tensor.numel() * tensor.element_size()
    total = outside + sum(stored.total for stored in inside)
    return Stored(total, 0 if tensor.device.type == "meta" else total)


def features_of(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer, whatever package made it; None for other modules."""
    for names in (("in_features", "out_features"), ("infeatures", "outfeatures")):
        found = tuple(getattr(module, name, None) for name in names)
        if all(isinstance(number, int) for number in found):
            return found  # type: ignore[return-value]
    return None


def _is_packed(module: nn.Module) -> bool:
    """Is this a linear layer whose matrix is not a tensor of its size?"""
    features = features_of(module)
    if features is None or any(module.children()):
        return False
    weight = getattr(module, "weight", None)
    return not isinstance(weight, Tensor) or weight.numel() != features[0] * features[1]


def _packed(prefix: str, module: nn.Module) -> Iterator[Weight]:
    """The matrix of a packed layer with all that decodes it, and its bias."""
    features = features_of(module)
    assert features is not None
    tensors = {**module._parameters, **module._buffers}
    bias = tensors.pop("bias", None)
    stored = [stored_bytes(tensor) for tensor in tensors.values() if tensor is not None]
    total, held = sum(each.total for each in stored), sum(each.held for each in stored)
    yield Weight(_join(prefix, "weight"), features[0] * features[1], total, held)
    if bias is not None:
        yield Weight(_join(prefix, "bias"), bias.numel(), *stored_bytes(bias))


def _attached(tensor: Any) -> list[Tensor]:
    """Tensors that bitsandbytes hangs on its parameters: statistics of 4-bit blocks, scales of 8-bit rows."""
    state = getattr(tensor, "quant_state", None)
    nested = getattr(state, "state2", None)
    found = [getattr(tensor, "SCB", None)]
    found += [getattr(each, name, None) for each in (state, nested) for name in ("absmax", "code", "offset")]
    return [each for each in found if isinstance(each, Tensor)]


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
