"""Load a pair of checkpoints that can decode together, and know what each costs.

Everything that could go wrong later is refused here: tokenizers that disagree, pickled weights, recurrent state,
attention that the engine cannot serve. Weights are read from safetensors only; no code of a checkpoint is run.
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

from navtoken.model_card import ModelCard

EMBEDDED = ("slm", "llm", "base")
"""Checkpoints that ship in the package, as `embedded:NAME`."""

ATTENTION_KINDS = frozenset(("full_attention", "sliding_attention"))
"""Kinds of layers whose past is a KV cache that the engine can keep."""


BATCH_DEPENDENT_ROPE = frozenset(("dynamic", "longrope"))
"""Position scalings whose frequencies follow the longest row of a batch."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


class CheckpointNotFoundError(CheckpointError):
    """A reference that names no checkpoint."""


class PickledCheckpointError(CheckpointError):
    """A checkpoint without safetensors."""


class UnsupportedModelError(CheckpointError):
    """A model whose past is not an attention KV cache, or whose attention the engine cannot reach."""


class PairMismatchError(CheckpointError):
    """Two checkpoints whose tokenizers map tokens to different ids."""


class PromptTooLongError(ValueError):
    """A prompt that leaves no room for a response in a model's context."""


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

    def __getitem__(self, index: int) -> LoadedModel:
        """The model of a `Writer`: 0 is the SLM, 1 the LLM."""
        return (self.slm, self.llm)[index]


def load_pair(
    slm: str = "embedded:slm", llm: str = "embedded:llm", device: str = "cpu", dtype: str = "float32"
) -> ModelPair:
    """Load two checkpoints by reference. Raises `CheckpointError`s that name what does not fit."""
    return ModelPair(load_model(slm, device, dtype), load_model(llm, device, dtype))


def load_model(reference: str, device: str = "cpu", dtype: str = "float32") -> LoadedModel:
    """Load `embedded:NAME`, a local folder, or a hub id `org/name@revision`; safetensors only."""
    folder = resolve_folder(reference)
    if not any(folder.glob("*.safetensors")):
        raise PickledCheckpointError(
            f"'{reference}' has no .safetensors file; pickled weights can run code and are not read: convert it "
            "with `save_pretrained(folder, safe_serialization=True)`"
        )
    target = _device(device)
    try:
        config = AutoConfig.from_pretrained(folder)
        check_supported(config, None, reference)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=_dtype(dtype), use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"'{reference}' cannot be loaded ({error}); check that its files are whole and of one checkpoint"
        ) from error
    return LoadedModel(model.to(target), tokenizer, reference, folder)


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


def check_supported(config: Any, model_class: type | None, reference: str) -> None:
    """Raise `UnsupportedModelError` unless the model's whole past is an attention KV cache the engine can keep."""
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"'{reference}' ({config.model_type}) has an encoder; give a decoder-only model"
        )
    odd = set(getattr(text, "layer_types", None) or ()) - ATTENTION_KINDS
    if odd or getattr(model_class, "_is_stateful", False) or not hasattr(text, "num_attention_heads"):
        raise UnsupportedModelError(
            f"'{reference}' ({config.model_type}) keeps {', '.join(sorted(odd)) or 'recurrent'} state, which cannot "
            "be rolled back or caught up like a KV cache; give a model with full or sliding-window attention only"
        )
    scaled = {kind for kind in rope_types(text) if kind in BATCH_DEPENDENT_ROPE}
    if scaled:
        raise UnsupportedModelError(
            f"'{reference}' ({config.model_type}) scales its positions by the longest row of a batch "
            f"(rope_type {', '.join(sorted(scaled))}), so a row would depend on its neighbours; set another rope_type in its config"
        )
    if model_class is not None and not getattr(model_class, "_supports_attention_backend", False):
        raise UnsupportedModelError(
            f"'{reference}' ({config.model_type}) does not route its attention through transformers' attention "
            "interface, so its KV cache cannot be served; give a model that does (Llama, Qwen, Gemma, Granite, ...)"
        )


def rope_types(text_config: Any) -> set[str]:
    """Kinds of position scaling that a config asks for; some models have one per kind of layer."""
    found: Any = (
        getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    )
    nested = [found, *(value for value in found.values() if isinstance(value, dict))]
    return {str(each["rope_type"]) for each in nested if "rope_type" in each}


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


def _device(name: str) -> torch.device:
    """Raises `CheckpointError` where this machine or this build of torch has no such device."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device '{name}' is not to be had here ({error}); give cpu") from error
    return device


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise CheckpointError(
            f"'{name}' is no floating-point dtype; give float32, bfloat16, float16 or float64"
        )
    return dtype


def _memory_fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
