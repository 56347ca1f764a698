"""Packed layers give what dense ones give, and no one can train, copy or reload them into something else."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from navtoken.lm_head import LMHead
from navtoken.model_card import ModelCard
from navtoken.packed_linear import (
    PackedLinear,
    PackedTrainingError,
    can_pack,
    pack_linears,
    unpack_linears,
)
from tiny_models import prompts, tiny_model

pytestmark = pytest.mark.skipif(
    not can_pack(torch.bfloat16, "cpu"), reason="this machine or build of torch has no oneDNN for bfloat16"
)

TOLERANCE = 4 * torch.finfo(torch.bfloat16).eps
"""Both sum in float32 in their own order, and round once."""


def dense_layer(seed: int = 0, bias: bool = True, inputs: int = 80, outputs: int = 33) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs, bias, dtype=torch.bfloat16).requires_grad_(False)


def tiny(seed: int = 0, kind: str = "qwen3", **overrides: object) -> nn.Module:
    model: nn.Module = tiny_model(kind, seed, torch.bfloat16, **overrides).model
    return model


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    output: Tensor = model(input_ids=torch.tensor(prompts(4, shortest=9, longest=9))).logits
    return output.float()


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    scale = expected.float().abs().max() if expected.numel() else 1.0
    assert torch.all((actual.float() - expected.float()).abs() <= tolerance * scale)


def test_packs_only_what_was_measured_to_pay() -> None:
    assert can_pack(torch.bfloat16, torch.device("cpu"))
    assert not can_pack(torch.float32, "cpu")
    assert not can_pack(torch.bfloat16, "meta")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(80,), (0, 80), (1, 80), (2, 80), (130, 80), (2, 3, 80), (2, 1, 4, 80)])
def test_gives_what_linear_gives(shape: tuple[int, ...], bias: bool) -> None:
    layer = dense_layer(bias=bias)
    x = torch.randn(shape, dtype=torch.bfloat16)
    expected = layer(x)
    packed = PackedLinear(layer)
    assert_near(packed(x), expected)
    with torch.inference_mode():
        assert_near(packed(x.clone()), expected)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(80, 5).bfloat16().t(),
        torch.randn(5, 160).bfloat16()[:, ::2],
        torch.randn(5, 81).bfloat16()[:, 1:],
        torch.randn(1, 80).bfloat16().expand(5, 80),
        torch.randn(3, 4, 80).bfloat16().transpose(0, 1),
    ],
    ids=["transposed", "strided", "unaligned", "expanded", "swapped"],
)
def test_takes_what_is_not_contiguous(x: Tensor) -> None:
    layer = dense_layer()
    expected = layer(x)
    assert_near(PackedLinear(layer)(x), expected)


def test_packed_in_inference_mode_serves_outside_it() -> None:
    layer = dense_layer()
    x = torch.randn(3, 80).bfloat16()
    expected = layer(x)
    with torch.inference_mode():
        packed = PackedLinear(layer, keep_dense=True)
        assert_near(packed(x), expected)
    assert_near(packed(x), expected)


def test_weight_is_opaque_and_comes_back_bit_for_bit() -> None:
    layer = dense_layer()
    dense = layer.weight.clone()
    packed = PackedLinear(layer)
    assert packed.weight.layout == torch._mkldnn, "the dense weight is still in memory"
    assert packed.weight.numel() == dense.numel() and packed.weight.dtype == dense.dtype
    assert torch.equal(packed.dense_weight(), dense)
    assert torch.equal(packed.unpack().weight, dense)
    with pytest.raises(RuntimeError, match="mkldnn"):
        packed.weight.copy_(dense)


def test_refuses_to_train() -> None:
    packed = PackedLinear(dense_layer())
    x = torch.randn(3, 80, dtype=torch.bfloat16, requires_grad=True)
    with pytest.raises(PackedTrainingError, match="unpack_linears"):
        packed(x)
    with torch.no_grad():
        packed(x)


@pytest.mark.parametrize("keep_dense", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_loading_a_state_dict_packs_it(keep_dense: bool, assign: bool) -> None:
    other = dense_layer(seed=1)
    packed = PackedLinear(dense_layer(), keep_dense)
    packed.load_state_dict(other.state_dict(), assign=assign)
    x = torch.randn(3, 80).bfloat16()
    assert_near(packed(x), other(x))
    assert torch.equal(packed.state_dict()["weight"], other.weight)


def test_kept_weight_is_packed_again_when_written_into_or_replaced() -> None:
    packed = PackedLinear(dense_layer(), keep_dense=True)
    x = torch.randn(3, 80).bfloat16()
    second, third = dense_layer(seed=1, bias=False), dense_layer(seed=2, bias=False)
    packed.bias = None
    with torch.no_grad():
        packed.weight.copy_(second.weight)
    assert_near(packed(x), second(x))
    packed.weight = third.weight
    assert_near(packed(x), third(x))


@pytest.mark.parametrize("keep_dense", [True, False])
def test_copies_and_pickles(keep_dense: bool) -> None:
    packed = PackedLinear(dense_layer(), keep_dense)
    x = torch.randn(3, 80).bfloat16()
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(twin(x), packed(x))
        assert torch.equal(twin.dense_weight(), packed.dense_weight())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma2"])
def test_a_packed_model_gives_the_same_logits(kind: str, tied: bool) -> None:
    model = tiny(kind=kind, tie_word_embeddings=tied, initializer_range=0.1)
    expected = logits(model)
    assert pack_linears(model) == 2 * 7 + 1
    assert not any(type(module) is nn.Linear for module in model.modules())
    # Roundings of two layers add up; a wrong weight would be off by the logits' own size.
    assert_near(logits(model), expected, 0.03)
    assert unpack_linears(model) == 2 * 7 + 1
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_card_head_and_state_dict_stay_those_of_the_dense_model(tied: bool) -> None:
    model = tiny(tie_word_embeddings=tied)
    card, head = ModelCard.of(model), LMHead.of(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pack_linears(model)
    assert ModelCard.of(model) == card
    assert torch.equal(LMHead.of(model).weight_VD, head.weight_VD)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())


def test_reloading_a_packed_model_gives_the_new_weights() -> None:
    model, trained = tiny(seed=1, tie_word_embeddings=True), tiny(seed=2, tie_word_embeddings=True)
    before, expected = logits(model), logits(trained)
    pack_linears(model)
    model.load_state_dict(trained.state_dict())
    assert_near(logits(model), expected, 0.05)
    assert (logits(model) - before).abs().max() > 0.5, "the two models say the same; the test shows nothing"


def test_leaves_alone_what_it_cannot_replace() -> None:
    class Quantised(nn.Linear):
        pass

    hooked, offloaded = dense_layer(), dense_layer()
    hooked.register_forward_hook(lambda *_: None)
    offloaded.forward = hooked.forward  # type: ignore[method-assign]
    other = Quantised(4, 4, dtype=torch.bfloat16)
    model = nn.Sequential(hooked, offloaded, other, nn.Linear(4, 4), nn.Linear(4, 4, device="meta"))
    kept = list(model)
    assert pack_linears(model) == 0
    assert list(model) == kept


def test_a_layer_in_two_places_stays_one() -> None:
    layer = dense_layer(inputs=16, outputs=16)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert pack_linears(model) == 1
    assert model[0] is model[2]
