"""Import a router of the official R2R code (thu-nics/R2R), as published beside the paper.

Its checkpoints are pickles: they are read by `torch.load(weights_only=True)`, which builds tensors and plain values and runs
no code. The one architecture they have is read, `HiddenStatesTokenLMHeadLogitsClassifier`: logits through a linear layer, then
hidden state, token embedding and those through two more, six residual blocks, an output. Nothing non-linear lies between the first
three, so they become the one linear layer that our network has: the same function, with a tenth fewer parameters.

The official code also reads logits of padded rows of the LM head, if they are among the largest, and calls the LLM at
p >= threshold, where we do at p > threshold.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from navtoken.checkpoints import LoadedModel
from navtoken.model_card import text_config
from navtoken.router.checkpoint import PairNames, RouterCard, RouterFileError
from navtoken.router.network import RouterNetwork
from navtoken.router.shape import RouterShape

ARCHITECTURE = "HiddenStatesTokenLMHeadLogitsClassifier"
EMBEDDING = "token_embeddings.weight"
"""A copy of the SLM's, in some files: ours comes from the SLM."""
DEFAULT_DROPOUT, DEFAULT_EXPANSION, DEFAULT_TOP_K = 0.3, 4, 100
"""The official code's own, where a checkpoint does not say."""


def import_official(
    path: Path, slm: LoadedModel, pair: PairNames, provenance: Mapping[str, Any] | None = None
) -> tuple[RouterNetwork, RouterCard]:
    """An official checkpoint as a router of ours, to be saved by `save_router`: the same probabilities, its threshold as default.

    Raises `RouterFileError` for another architecture, another SLM's sizes, or a file with more than weights in it.
    """
    found = _read(path)
    arguments, common = dict(found.get("init_args") or {}), dict(found.get("common_args") or {})
    shape = _shape(path, arguments, slm)
    network = RouterNetwork(shape)
    tensors = {name: tensor.double() for name, tensor in found["state_dict"].items() if name != EMBEDDING}
    try:
        network.load_state_dict(_translated(tensors, shape))
    except (KeyError, RuntimeError) as error:
        raise RouterFileError(f"'{path}' does not hold the weights of its architecture ({error})") from error
    threshold = common.get("threshold")
    card = RouterCard(
        kind="token",
        pair=pair,
        shape=shape,
        default_threshold=None if threshold is None else float(threshold),
        provenance={
            **(provenance or {}),
            "imported_from": path.name,
            "trained_for": arguments.get("pretrained_model_name"),
        },
    )
    return network.eval().requires_grad_(False), card


def _read(path: Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RouterFileError(f"'{path}' is no file; give the official router's .pt") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise RouterFileError(
            f"'{path}' cannot be read as weights and plain values alone ({str(error).splitlines()[0]}); other pickles can "
            "run code and are not read"
        ) from error
    if not isinstance(found, dict) or not {"model_type", "state_dict"} <= found.keys():
        raise RouterFileError(
            f"'{path}' is no official router: it lacks model_type or state_dict; give the .pt that the official "
            "training wrote"
        )
    if str(found["model_type"]).lower() != ARCHITECTURE.lower():
        raise RouterFileError(f"'{path}' is a {found['model_type']}; only {ARCHITECTURE} can be imported")
    return found


def _shape(path: Path, arguments: Mapping[str, Any], slm: LoadedModel) -> RouterShape:
    hidden, embedding = text_config(slm.model).hidden_size, slm.model.get_input_embeddings().embedding_dim
    asked = arguments.get("hidden_states_size", hidden)
    if asked != hidden:
        raise RouterFileError(
            f"'{path}' reads hidden states of {asked}, '{slm.reference}' has {hidden}; it was trained for "
            f"{arguments.get('pretrained_model_name', 'another SLM')}: give that as --slm"
        )
    widths = list(arguments.get("hidden_dims") or [])
    if not widths or len(set(widths)) != 1 or arguments.get("use_position_embedding"):
        raise RouterFileError(
            f"'{path}' has blocks of {widths or 'unsaid'} widths"
            f"{' and position embeddings' if arguments.get('use_position_embedding') else ''}; only blocks of one width, "
            "without position embeddings, can be imported"
        )
    return RouterShape(
        slm_hidden=hidden,
        embedding_size=embedding,
        vocab_size=slm.vocab_size,
        inputs=("logits", "embedding", "hidden"),
        top_k=int(arguments.get("logits_size", DEFAULT_TOP_K)),
        norm="softmax" if arguments.get("normalize_input") else "none",
        width=int(widths[0]),
        depth=len(widths),
        expansion=int(arguments.get("expansion_factor", DEFAULT_EXPANSION)),
        dropout=float(arguments.get("dropout_rate", DEFAULT_DROPOUT)),
    )


def _translated(theirs: Mapping[str, Tensor], shape: RouterShape) -> dict[str, Tensor]:
    """Their weights under our names, float32, the three linear layers of the inputs made one (in float64)."""
    ours = {"project.weight": _project(theirs, shape), "project.bias": _project_bias(theirs, shape)}
    names = {"output_layer.0": "norm", "output_layer.1": "head"}
    for block in range(shape.depth):
        names |= {
            f"blocks.{block}.layer_norm": f"blocks.{block}.norm",
            f"blocks.{block}.mlp.0": f"blocks.{block}.up",
            f"blocks.{block}.mlp.3": f"blocks.{block}.down",
        }
    pairs = [(f"backbone.{their_name}", our_name) for their_name, our_name in names.items()]
    if shape.norm == "softmax":
        pairs += [("layer_norm_hidden_states", "norms.hidden"), ("layer_norm_token", "norms.embedding")]
    for their_name, our_name in pairs:
        for part in ("weight", "bias"):
            ours[f"{our_name}.{part}"] = theirs[f"{their_name}.{part}"]
    return {name: tensor.float() for name, tensor in ours.items()}


def _project(theirs: Mapping[str, Tensor], shape: RouterShape) -> Tensor:
    """Theirs reads hidden state, embedding, logits; ours logits, embedding, hidden state."""
    whole = theirs["backbone.input_projection.weight"] @ theirs["combined_projection.weight"]
    hidden, embedding, logits = whole.split([shape.slm_hidden, shape.embedding_size, shape.slm_hidden], dim=1)
    return torch.cat([logits @ theirs["logits_projection.weight"], embedding, hidden], dim=1)


def _project_bias(theirs: Mapping[str, Tensor], shape: RouterShape) -> Tensor:
    of_logits = (
        theirs["combined_projection.weight"][:, -shape.slm_hidden :] @ theirs["logits_projection.bias"]
    )
    inner = of_logits + theirs["combined_projection.bias"]
    return theirs["backbone.input_projection.weight"] @ inner + theirs["backbone.input_projection.bias"]
