"""Sizes of weights that are not stored as they are multiplied: what real packages' layers hold, without the packages."""

from math import ceil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from navtoken.checkpoints import LoadedModel
from navtoken.model_card import ModelCard
from navtoken.weights import features_of, stored_bytes, weights_of
from tiny_models import tiny_model

GROUP = 16


class PackedLinear(nn.Module):
    """Buffers of a GPTQ or AWQ layer as gptqmodel registers them: no parameter at all."""

    def __init__(self, linear: nn.Linear, bits: int, awq: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = linear.in_features, linear.out_features, bits
        inputs, outputs = linear.in_features, linear.out_features
        groups, packed = ceil(inputs / GROUP), outputs * bits // 32
        shape = (inputs, packed) if awq else (inputs * bits // 32, outputs)
        self.register_buffer("qweight", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(groups, packed, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(groups, outputs, dtype=torch.float16))
        if not awq:
            self.register_buffer("g_idx", torch.arange(inputs, dtype=torch.int32) // GROUP)
        if linear.bias is not None:
            self.register_buffer("bias", torch.zeros(outputs, dtype=torch.float16))


def packed_bytes(inputs: int, outputs: int, bits: int, awq: bool) -> int:
    """By hand: `bits` per weight, a zero point of as many and a float16 scale per group, an index per GPTQ input."""
    groups = ceil(inputs / GROUP)
    return (
        inputs * outputs * bits // 8
        + groups * outputs * bits // 8
        + 2 * groups * outputs
        + (0 if awq else 4 * inputs)
    )


def quantise(loaded: LoadedModel, make: Any) -> list[nn.Linear]:
    """Replace all linear layers but the head as quantisers do; returns what was replaced."""
    linears = [
        (name, module)
        for name, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]
    for name, linear in linears:
        loaded.model.set_submodule(name, make(linear))
    return [linear for _, linear in linears]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize(("awq", "bits"), [(False, 4), (False, 8), (True, 4)])
def test_packed_buffers_count_as_the_layers_they_stand_for(kind: str, awq: bool, bits: int) -> None:
    loaded = tiny_model(kind, dtype=torch.float16)
    before = ModelCard.of(loaded.model)
    replaced = quantise(loaded, lambda linear: PackedLinear(linear, bits, awq))
    after = ModelCard.of(loaded.model)
    assert len(replaced) == 14
    assert after.parameters == before.parameters
    assert after.body_parameters == before.body_parameters
    saved = sum(
        2 * layer.weight.numel() - packed_bytes(layer.in_features, layer.out_features, bits, awq)
        for layer in replaced
    )
    assert after.weight_bytes == before.weight_bytes - saved < before.weight_bytes
    table = 0 if after.tied else 2 * after.embedding_parameters
    assert after.bytes_per_pass(1, 0) == after.weight_bytes - table + after.kv_bytes
    assert after.kv_bytes == before.kv_bytes


def test_four_bit_blocks_in_a_flat_parameter_count_by_their_layer() -> None:
    """bitsandbytes: uint8 pairs, statistics of blocks that are themselves quantised, codes, an offset."""

    def make(linear: nn.Linear) -> nn.Linear:
        number = linear.weight.numel()
        flat = nn.Parameter(torch.zeros(number // 2, 1, dtype=torch.uint8), requires_grad=False)
        nested = SimpleNamespace(absmax=torch.zeros(3), code=torch.zeros(256), offset=None)
        flat.quant_state = SimpleNamespace(  # type: ignore[attr-defined]
            absmax=torch.zeros(number // 64, dtype=torch.uint8),
            code=torch.zeros(16),
            offset=torch.tensor(0.0),
            state2=nested,
            shape=linear.weight.shape,
        )
        new = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        new.weight = flat
        return new

    loaded = tiny_model("qwen3", dtype=torch.float16)
    before = ModelCard.of(loaded.model)
    replaced = quantise(loaded, make)
    after = ModelCard.of(loaded.model)
    assert after.parameters == before.parameters
    sizes = [layer.weight.numel() for layer in replaced]
    statistics = 4 * (3 + 256 + 16 + 1)
    stored = sum(size // 2 + size // 64 + statistics for size in sizes)
    assert after.weight_bytes == before.weight_bytes - 2 * sum(sizes) + stored


def test_scales_of_quantised_weights_are_bytes_and_not_parameters() -> None:
    """FP8: weights keep their shape in one byte each, with a scale per block beside them; 8-bit rows hang theirs on."""
    loaded = tiny_model("qwen3", dtype=torch.float16)
    before = ModelCard.of(loaded.model)
    layer = loaded.model.model.layers[0].mlp.up_proj
    number = layer.weight.numel()
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    layer.register_parameter("weight_scale_inv", nn.Parameter(torch.ones(3, 2), requires_grad=False))
    loaded.model.config.quantization_config = {"quant_method": "fp8"}
    after = ModelCard.of(loaded.model)
    assert after.parameters == before.parameters
    assert after.weight_bytes == before.weight_bytes - number + 4 * 6
    rows = nn.Parameter(torch.zeros(5, 7, dtype=torch.int8), requires_grad=False)
    rows.SCB = torch.zeros(5)  # type: ignore[attr-defined]
    assert stored_bytes(rows) == (35 + 20, 35 + 20)


def test_a_norm_named_like_a_scale_counts_in_a_plain_model() -> None:
    module = nn.Module()
    module.register_parameter("layer_scale", nn.Parameter(torch.zeros(6)))
    assert [weight.parameters for weight in weights_of(module)] == [6]


def test_tied_weights_count_once_and_offloaded_ones_are_not_held() -> None:
    tied = tiny_model("qwen2", dtype=torch.float32)
    names = [weight.name for weight in weights_of(tied.model)]
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    away = nn.Linear(4, 3, device="meta")
    assert [(weight.bytes, weight.held_bytes) for weight in weights_of(away)] == [(48, 0), (12, 0)]


def test_layers_are_known_by_their_features() -> None:
    old = nn.Module()
    old.infeatures, old.outfeatures = 4, 8  # type: ignore[assignment]
    assert features_of(old) == (4, 8)
    assert features_of(nn.Linear(3, 5)) == (3, 5)
    assert features_of(nn.Embedding(3, 5)) is None
