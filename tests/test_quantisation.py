"""Quantised checkpoints: loaded through what is installed, counted rightly, refused early where they cannot work."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from navtoken.checkpoints import LoadedModel, ModelPair, PickledCheckpointError, load_model
from navtoken.engine import Engine
from navtoken.model_card import ModelCard
from navtoken.policies import make_policy
from navtoken.quantisation import QuantisationError, check_quantisation, quantisation_of
from tiny_models import prompts, tiny_model

WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
"""Kernels of 4-bit weights work on blocks of 32 to 64."""


@pytest.fixture
def plain(tmp_path: Path) -> str:
    """A checkpoint in bfloat16."""
    return save(tiny_model("qwen3", 2, torch.bfloat16, **WIDE), tmp_path / "plain")


def save(loaded: LoadedModel, folder: Path) -> str:
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def quantised_copy(plain: str, folder: Path, config: Any) -> str:
    """The checkpoint quantised by `transformers` and saved again as safetensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            plain, dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"}
        )
    return save(LoadedModel(model, tiny_model("qwen3").tokenizer, "in memory"), folder)


def config_of(method: str, **more: Any) -> Any:
    """A model config of a checkpoint quantised so."""
    config = AutoConfig.for_model("qwen3", quantization_config={"quant_method": method, **more})
    config.dtype = torch.bfloat16
    return config


def check_quantised_llm(folder: str, plain: str, method: str, dtype: str = "auto") -> ModelCard:
    """Its card is the plain one's but for bytes, it routes with a plain SLM, and it stays near the plain model."""
    quantised, reference = load_model(folder, dtype=dtype), load_model(plain, dtype="bfloat16")
    assert quantised.quantisation == method
    assert reference.quantisation is None
    card, whole = quantised.card, reference.card
    same = {"weight_bytes": 0, "held_bytes": 0}
    assert replace(card, **same) == replace(whole, **same)
    assert card.held_bytes == card.weight_bytes < whole.weight_bytes
    stored = sum(t.numel() * t.element_size() for t in load_file(Path(folder) / "model.safetensors").values())
    assert card.weight_bytes == pytest.approx(stored, rel=0.02)
    ids = torch.tensor([prompts(1)[0]])
    with torch.inference_mode():
        near, exact = (each.model(ids).logits.float() for each in (quantised, reference))
    assert 0 < (near - exact).abs().mean() < 0.5 * exact.abs().mean()
    engine = Engine(ModelPair(tiny_model("qwen3", 1, torch.float32), quantised), make_policy("random:0.5"))
    rows = [engine.add(prompt, max_tokens=8) for prompt in prompts(3)]
    list(engine.run())
    assert {len(row.response_ids) for row in rows} <= set(range(1, 9))
    assert engine.ledger.written[1] > 0
    return card


def test_torchao_int8_weights_are_read_from_safetensors(plain: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed (pip install 'navtoken[quant]')")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    folder = quantised_copy(plain, tmp_path / "int8", TorchAoConfig(Int8WeightOnlyConfig()))
    card = check_quantised_llm(folder, plain, "torchao")
    matrices = card.parameters - 2 * 104 * 128 - (2 * (2 * 128 + 2 * 32) + 128)
    rows = 2 * (128 + 64 + 64 + 128 + 256 + 256 + 128)
    assert card.weight_bytes == 2 * (card.parameters - matrices) + matrices + (4 + 1) * rows
    with pytest.raises(
        QuantisationError, match="by torchao to compute in bfloat16, not float32; give dtype bfloat16"
    ):
        load_model(folder)


def test_torchao_int4_weights_count_half_a_byte(plain: str) -> None:
    """Packed for the CPU in memory: transformers cannot save this layout, and torchao's others need an accelerator."""
    pytest.importorskip("torchao", reason="torchao is not installed (pip install 'navtoken[quant]')")
    int4 = pytest.importorskip(
        "torchao.prototype.quantization.int4", reason="this torchao packs no int4 on CPU"
    )
    from transformers import TorchAoConfig

    config = TorchAoConfig(int4.PrototypeInt4WeightOnlyConfig(group_size=32))
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16, quantization_config=config)
    card, whole = ModelCard.of(model), load_model(plain, dtype="bfloat16").card
    assert card.parameters == whole.parameters
    matrices = 2 * (128 * (128 + 64 + 64) + 128 * 128 + 3 * 128 * 256)
    scales_and_zeros = 2 * 2 * matrices // 32
    assert card.weight_bytes == whole.weight_bytes - 2 * matrices + matrices // 2 + scales_and_zeros
    with torch.inference_mode():
        assert model(torch.tensor([prompts(1)[0]])).logits.isfinite().all()


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_weights_are_read_from_safetensors(plain: str, tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, **(four if bits == 4 else {}))
    folder = quantised_copy(plain, tmp_path / "bnb", config)
    card = check_quantised_llm(folder, plain, "bitsandbytes")
    matrices = 2 * (128 * (128 + 64 + 64) + 128 * 128 + 3 * 128 * 256)
    assert card.weight_bytes < 2 * (card.parameters - matrices) + matrices * (bits / 8 + 0.2)


@pytest.mark.parametrize(
    ("method", "missing"),
    [
        ("torchao", "accelerate torchao"),
        ("gptq", "accelerate optimum gptqmodel"),
        ("awq", "accelerate gptqmodel"),
        ("bitsandbytes", "accelerate bitsandbytes"),
    ],
)
def test_missing_packages_are_named_as_pip_knows_them(
    method: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("navtoken.quantisation.find_spec", lambda _: None)
    with pytest.raises(
        QuantisationError, match=f"'some/model' is quantised by {method}.*pip install {missing}$"
    ):
        check_quantisation(config_of(method), torch.bfloat16, "some/model")


def test_types_that_the_kernels_do_not_take_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("navtoken.quantisation.find_spec", lambda _: object())
    for method in ("gptq", "awq"):
        with pytest.raises(
            QuantisationError, match="do not compute in float32; give dtype float16, bfloat16 or auto"
        ):
            check_quantisation(config_of(method), torch.float32, "some/model")
        check_quantisation(config_of(method), torch.float16, "some/model")
        check_quantisation(config_of(method), "auto", "some/model")
    check_quantisation(config_of("torchao"), torch.bfloat16, "some/model")
    check_quantisation(config_of("bitsandbytes", load_in_4bit=True), torch.float32, "some/model")


def test_weights_that_ranks_cannot_share_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("navtoken.quantisation.find_spec", lambda _: object())
    with pytest.raises(QuantisationError, match="by torchao, whose weights ranks cannot share; give tp 1"):
        check_quantisation(config_of("torchao"), torch.bfloat16, "some/model", tp=2)
    check_quantisation(config_of("fp8"), torch.bfloat16, "some/model", tp=2)


def test_a_method_unknown_to_transformers_is_refused(plain: str) -> None:
    """`transformers` would warn and begin from random weights."""
    path = Path(plain) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": {"quant_method": "magic"}}))
    with pytest.raises(QuantisationError, match="by 'magic', which this transformers does not know"):
        load_model(plain, dtype="bfloat16")


def test_bitsandbytes_is_known_by_its_flags() -> None:
    assert quantisation_of(AutoConfig.for_model("qwen3")) is None
    config = AutoConfig.for_model("qwen3", quantization_config={"load_in_8bit": True})
    found = quantisation_of(config)
    assert found is not None and found["quant_method"] == "bitsandbytes"


def test_quantised_weights_in_pickles_are_refused(plain: str) -> None:
    path = Path(plain) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": {"quant_method": "torchao"}}))
    (Path(plain) / "model.safetensors").rename(Path(plain) / "pytorch_model.bin")
    with pytest.raises(PickledCheckpointError, match="safe_serialization"):
        load_model(plain, dtype="bfloat16")
