"""Loading: what is accepted, what is refused and how, and what a model card says against counted work."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoConfig

from navtoken.checkpoints import (
    CheckpointError,
    CheckpointNotFoundError,
    LoadedModel,
    ModelPair,
    PairMismatchError,
    PickledCheckpointError,
    UnsupportedModelError,
    check_supported,
    load_model,
    load_pair,
    resolve_folder,
)
from tiny_models import CONTEXT, EOS, KINDS, PADDED_VOCAB_SIZE, VOCAB_SIZE, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    loaded = tiny_model("qwen3", dtype=torch.float32)
    loaded.model.save_pretrained(tmp_path / "tiny")
    loaded.tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_folder_loads_with_tokenizer_card_and_fingerprint(folder: Path) -> None:
    pair = load_pair(str(folder), str(folder), dtype="float64")
    assert pair.vocab_size == pair.slm.vocab_size == VOCAB_SIZE
    assert pair.slm.eos_token_ids == {EOS}
    assert pair.llm.card.context == CONTEXT
    assert next(pair.slm.model.parameters()).dtype == torch.float64
    assert pair.slm.fingerprint == pair.llm.fingerprint
    before = load_model(str(folder)).fingerprint
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert load_model(str(folder)).fingerprint != before


def test_fingerprints_of_models_in_memory_follow_their_weights() -> None:
    assert tiny_model("llama", seed=1).fingerprint == tiny_model("llama", seed=1).fingerprint
    assert tiny_model("llama", seed=1).fingerprint != tiny_model("llama", seed=2).fingerprint


def test_pickled_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(PickledCheckpointError, match="safe_serialization"):
        load_model(str(folder))


@pytest.mark.parametrize("reference", ["no-such-folder", "embedded:tiny", "a/b/c"])
def test_references_to_nothing_are_refused(reference: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match=reference):
        load_model(reference)


def test_a_dtype_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="'int8'"):
        load_model(str(folder), dtype="int8")


def test_tokenizers_that_differ_name_the_first_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    path.write_text(json.dumps(tokenizer))
    other = load_model(str(folder))
    with pytest.raises(PairMismatchError, match=f"'A' has id {vocab['B']} in .*{vocab['A']}.*one family"):
        ModelPair(tiny_model("qwen3"), other)


@pytest.mark.parametrize("model_type", ["mamba", "rwkv", "t5", "qwen3_next", "recurrent_gemma", "jamba"])
def test_models_whose_past_is_no_kv_cache_are_refused(model_type: str) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = CONFIG_MAPPING[model_type]()
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    with pytest.raises(UnsupportedModelError, match=f"{model_type}.*give a "):
        check_supported(config, model_class, "somewhere")


@pytest.mark.parametrize("kind", KINDS)
def test_cards_count_parameters_and_flops(kind: str) -> None:
    loaded = tiny_model(kind, dtype=torch.float32)
    card = loaded.card
    assert card.parameters == loaded.model.num_parameters()
    assert card.embedding_parameters == card.head_parameters == PADDED_VOCAB_SIZE * 32
    assert card.tied == (kind == "qwen2")
    assert card.weight_bytes == 4 * card.parameters
    assert card.kv_bytes == 2 * 2 * 2 * 8 * 4
    idle = 2 * 4 * (3 * 32 * 24) if kind == "qwen3_moe" else 0
    assert card.active_parameters == card.parameters - idle
    if kind == "qwen3_moe":
        return
    length = 16
    loaded.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loaded.model(torch.ones(1, length, dtype=torch.long), use_cache=False)
    counted = counter.get_total_flops()
    assert card.flops(length, length * length, length) == pytest.approx(counted, rel=0.02)


def test_bytes_of_a_pass_are_weights_once_and_each_rows_cache() -> None:
    card = tiny_model("qwen2", dtype=torch.float32).card
    assert card.tied
    assert card.bytes_per_pass(3, 100) == card.weight_bytes + 3 * 101 * card.kv_bytes
    untied = tiny_model("llama", dtype=torch.float32).card
    assert (
        untied.bytes_per_pass(1, 0) == untied.weight_bytes - 4 * untied.embedding_parameters + untied.kv_bytes
    )


def test_a_loaded_model_is_in_eval_mode_without_gradients() -> None:
    loaded: LoadedModel = tiny_model("gemma2")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert AutoConfig.for_model("llama").model_type == "llama"


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(CheckpointError, match="'nonsense' is not to be had here"):
        load_model("embedded:slm", device="nonsense")


def test_broken_files_name_the_checkpoint(tmp_path):
    shutil.copytree(resolve_folder("embedded:slm"), tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="torn' cannot be loaded"):
        load_model(str(tmp_path / "torn"))
    (tmp_path / "torn" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="torn' cannot be loaded"):
        load_model(str(tmp_path / "torn"))


def test_weights_that_are_not_there_are_not_made_up(folder: Path) -> None:
    """`transformers` would warn and draw them at random."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(
        CheckpointError, match="lacks 1 weights of its model, first model.layers.1.mlp.up_proj.weight"
    ):
        load_model(str(folder))


def test_the_type_may_be_the_checkpoints_own(folder: Path) -> None:
    pair = load_pair(str(folder), str(folder), dtype="bfloat16", llm_dtype="auto")
    assert (pair.slm.model.dtype, pair.llm.model.dtype) == (torch.bfloat16, torch.float32)
    assert pair.slm.card.weight_bytes * 2 == pair.llm.card.weight_bytes


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_follow_the_batch_are_refused(kind):
    config = AutoConfig.from_pretrained(resolve_folder("embedded:slm"))
    config.rope_parameters = {**config.rope_parameters, "rope_type": kind, "factor": 2.0}
    with pytest.raises(UnsupportedModelError, match=f"rope_type {kind}"):
        check_supported(config, None, "some/model")
