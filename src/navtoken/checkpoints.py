"""Load a pair of checkpoints that can decode together, and know what each costs.

Everything that could go wrong later is refused here: tokenizers that disagree, pickled weights, recurrent state,
attention that the engine cannot serve, heads that ranks cannot share. Weights are read from safetensors only, quantised
ones too; no code of a checkpoint is run.
"""

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from navtoken.checkpoint_errors import (
    CheckpointError,
    CheckpointNotFoundError,
    PairMismatchError,
    PickledCheckpointError,
    PromptTooLongError,
    UnsupportedModelError,
)
from navtoken.model_card import ModelCard
from navtoken.packed_linear import can_pack, pack_linears
from navtoken.placement import Placement, check_shards
from navtoken.quantisation import check_quantisation, quantisation_of
from navtoken.supported import check_supported

EMBEDDED = ("slm", "llm", "base")
"""Checkpoints that ship in the package, as `embedded:NAME`."""


@dataclass(eq=False)
class LoadedModel:
    """A causal LM ready for inference, with its tokenizer and card."""

    model: Any
    """The `transformers` model, in eval mode."""
    tokenizer: Any
    """Its `transformers` tokenizer."""
    reference: str
    """How it was asked for."""
    folder: Path | None = None
    """Where its files are; None for a model made in memory."""
    card: ModelCard = field(init=False)
    """Sizes and costs."""

    def __post_init__(self) -> None:
        check_supported(self.model.config, type(self.model), self.reference)
        if any(name.endswith(".sinks") for name, _ in self.model.named_parameters()):
            raise UnsupportedModelError(
                f"'{self.reference}' ({self.model.config.model_type}) has attention sinks, which the engine does not serve; "
                "give a model with plain, sliding-window or soft-capped attention"
            )
        self.model.eval().requires_grad_(False)
        self.card = ModelCard.of(self.model)

    @property
    def device(self) -> torch.device:
        """Where its inputs go and its logits come: the model's own `device` is `meta` where parts are offloaded."""
        where = getattr(self.model, "hf_device_map", None)
        if where is None:
            return self.model.get_input_embeddings().weight.device
        computing = [device for device in where.values() if device not in ("cpu", "disk")]
        return torch.device(computing[0] if computing else "cpu")

    @property
    def is_whole(self) -> bool:
        """Do all its weights stay on one device of one process? Only then may a graph of it be captured."""
        return not hasattr(self.model, "hf_device_map") and self.card.shards == 1

    @property
    def quantisation(self) -> str | None:
        """The method that quantised it; None where its weights are plain."""
        found = quantisation_of(self.model.config)
        return None if found is None else found["quant_method"]

    @property
    def vocab_size(self) -> int:
        """Token ids that the tokenizer knows: rows of the LM head from here on are padding."""
        return 1 + max(self.tokenizer.get_vocab().values())

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a response: the generation config's list, else the model's, else the tokenizer's."""
        sources = (getattr(self.model, "generation_config", None), self.model.config, self.tokenizer)
        for source in sources:
            eos = getattr(source, "eos_token_id", None)
            if eos is not None:
                return frozenset([eos] if isinstance(eos, int) else eos)
        return frozenset()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the safetensors and the config: which weights made a trace."""
        return fingerprint(self.folder) if self.folder else _memory_fingerprint(self.model)


@dataclass(eq=False)
class ModelPair:
    """An SLM and an LLM that share one tokenizer. Building one checks that they do."""

    slm: LoadedModel
    llm: LoadedModel

    def __post_init__(self) -> None:
        check_tokenizers(self.slm, self.llm)

    @property
    def tokenizer(self) -> Any:
        """The LLM's tokenizer, which the SLM's agrees with."""
        return self.llm.tokenizer

    @cached_property
    def vocab_size(self) -> int:
        """Token ids that either may write."""
        return min(self.slm.vocab_size, self.llm.vocab_size)

    @property
    def shards(self) -> int:
        """Ranks that decode together, and must decide alike."""
        return max(self.slm.card.shards, self.llm.card.shards)

    def __getitem__(self, index: int) -> LoadedModel:
        """The model of a `Writer`: 0 is the SLM, 1 the LLM."""
        return (self.slm, self.llm)[index]


def load_pair(
    slm: str = "embedded:slm",
    llm: str = "embedded:llm",
    device: str | Placement = "cpu",
    dtype: str = "float32",
    llm_device: str | Placement | None = None,
    llm_dtype: str | None = None,
) -> ModelPair:
    """Load two checkpoints by reference, the LLM elsewhere or as another type where that is given.

    Raises `CheckpointError`s that name what does not fit.
    """
    small = load_model(slm, device, dtype)
    return ModelPair(small, load_model(llm, llm_device or device, llm_dtype or dtype))


def load_model(reference: str, device: str | Placement = "cpu", dtype: str = "float32") -> LoadedModel:
    """Load `embedded:NAME`, a local folder, or a hub id `org/name@revision`; safetensors only.

    `device` is the name of a torch device or a `Placement`; `dtype` `auto` is the type that the checkpoint names. On a CPU
    bfloat16 weights are packed for inference: `packed_linear.unpack_linears` undoes it, before training or a change of dtype.
    """
    placement = device if isinstance(device, Placement) else Placement(device)
    folder = resolve_folder(reference)
    if not any(folder.glob("*.safetensors")):
        raise PickledCheckpointError(
            f"'{reference}' has no .safetensors file; pickled weights can run code and are not read: convert it "
            "with `save_pretrained(folder, safe_serialization=True)`"
        )
    try:
        model = _read_model(folder, reference, placement, _dtype(dtype))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise CheckpointError(
            f"'{reference}' cannot be loaded ({error}); check that its files are whole and of one checkpoint"
        ) from error
    loaded = LoadedModel(model, tokenizer, reference, folder)
    if loaded.is_whole and loaded.quantisation is None and can_pack(model.dtype, loaded.device):
        pack_linears(model)
    return loaded


def _read_model(folder: Path, reference: str, placement: Placement, dtype: torch.dtype | str) -> Any:
    """The model where it is to run, after everything that its config alone can refuse."""
    target = placement.torch_device()
    config = AutoConfig.from_pretrained(folder)
    check_supported(config, None, reference)
    check_quantisation(config, dtype, reference, placement.tp)
    check_shards(config, placement.tp, reference)
    where = placement.loading_arguments()
    if not where and quantisation_of(config):
        # Packed weights are read to where they stay: some kernels lay them out for their device.
        where = {"device_map": {"": target}}
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **where
    )
    if missing := sorted(loading["missing_keys"]):
        raise CheckpointError(
            f"'{reference}' lacks {len(missing)} weights of its model, first {missing[0]}; check that its files are "
            "whole and of one checkpoint"
        )
    return model if where else model.to(target)


def resolve_folder(reference: str) -> Path:
    """The local folder of a reference; hub checkpoints are downloaded into the hub's cache."""
    if reference.startswith("embedded:"):
        return _embedded_folder(reference)
    if Path(reference).is_dir():
        return Path(reference)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference):
        raise CheckpointNotFoundError(
            f"'{reference}' is neither a folder here nor a hub id; give embedded:slm, embedded:llm, a folder "
            "or org/name@revision"
        )
    from huggingface_hub import snapshot_download

    name, _, revision = reference.partition("@")
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except OSError as error:
        raise CheckpointNotFoundError(
            f"'{reference}' could not be had from the hub ({error}); check the name, the network and access rights"
        ) from error


def check_tokenizers(slm: LoadedModel, llm: LoadedModel) -> None:
    """Raise `PairMismatchError` naming the first token that the two tokenizers map differently."""
    if slm.tokenizer is llm.tokenizer:
        return
    ours, theirs = slm.tokenizer.get_vocab(), llm.tokenizer.get_vocab()
    for token in sorted(
        ours.keys() | theirs.keys(), key=lambda t: (min(ours.get(t, 2**62), theirs.get(t, 2**62)), t)
    ):
        if ours.get(token) != theirs.get(token):
            raise PairMismatchError(
                f"token {token!r} has id {ours.get(token)} in '{slm.reference}' and {theirs.get(token)} in "
                f"'{llm.reference}'; a pair must share one tokenizer: take two models of one family"
            )


def check_prompt(num_tokens: int, models: list[LoadedModel]) -> None:
    """Raise `PromptTooLongError` unless each model has room for the prompt and one more token."""
    for model in models:
        if num_tokens >= model.card.context:
            raise PromptTooLongError(
                f"the prompt has {num_tokens} tokens, '{model.reference}' takes {model.card.context} with the "
                "response; shorten the prompt or take a model with a longer context"
            )


def fingerprint(folder: Path) -> str:
    """sha256 over names and contents of a folder's safetensors files and its config.json."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _embedded_folder(reference: str) -> Path:
    name = reference.removeprefix("embedded:")
    if name not in EMBEDDED:
        raise CheckpointNotFoundError(f"'{reference}' is not in the package; there are {', '.join(EMBEDDED)}")
    folder = Path(str(resources.files("navtoken"))) / "embedded" / name
    if not (folder / "config.json").exists():
        raise CheckpointNotFoundError(f"'{reference}' is missing from {folder}; reinstall the package")
    return folder


def _dtype(name: str) -> torch.dtype | str:
    if name == "auto":
        return name
    dtype = getattr(torch, name, None)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise CheckpointError(
            f"'{name}' is no floating-point dtype; give float32, bfloat16, float16, float64 or auto"
        )
    return dtype


def _memory_fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
