"""Routers of the official code say the same here as there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from navtoken.policies import PairView, make_policy
from navtoken.policies.router import p_divergent
from navtoken.router import RouterFileError, features_of, import_official, load_router, save_router
from tiny_models import VOCAB_SIZE, tiny_pair
from tiny_routers import names_of, random_drafts

HIDDEN, WIDTH, DEPTH, EXPANSION, TOP_K, SIZE = 32, 24, 6, 4, 50, 64


def linear(name: str, inside: int, outside: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.randn(outside, inside) * (1.5 / inside) ** 0.5,
        f"{name}.bias": 0.3 * torch.randn(outside),
    }


def layer_norm(name: str, size: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1.0 + 0.3 * torch.randn(size), f"{name}.bias": 0.3 * torch.randn(size)}


def official(seed: int = 0, normalize: bool = False, **changes: Any) -> dict[str, Any]:
    """A checkpoint as the official training writes it, with random weights."""
    torch.manual_seed(seed)
    state = linear("logits_projection", TOP_K, HIDDEN)
    state |= linear("combined_projection", 3 * HIDDEN, WIDTH)
    state |= linear("backbone.input_projection", WIDTH, WIDTH)
    for block in range(DEPTH):
        name = f"backbone.blocks.{block}"
        state |= layer_norm(f"{name}.layer_norm", WIDTH)
        state |= linear(f"{name}.mlp.0", WIDTH, WIDTH * EXPANSION)
        state |= linear(f"{name}.mlp.3", WIDTH * EXPANSION, WIDTH)
    state |= layer_norm("backbone.output_layer.0", WIDTH)
    state |= linear("backbone.output_layer.1", WIDTH, 1)
    # So that it says one thing of one draft and another of another: sorted logits are much alike.
    state["logits_projection.weight"] *= 0.2
    state["backbone.output_layer.1.weight"] *= 3.0
    if normalize:
        state |= layer_norm("layer_norm_hidden_states", HIDDEN) | layer_norm("layer_norm_token", HIDDEN)
    arguments = {
        "hidden_states_size": HIDDEN,
        "logits_size": TOP_K,
        "hidden_dims": [WIDTH] * DEPTH,
        "expansion_factor": EXPANSION,
        "dropout_rate": 0.1,
        "use_position_embedding": False,
        "freeze_lm_head": True,
        "normalize_input": normalize,
        "pretrained_model_name": "some/slm",
    }
    return {
        "model_type": "HiddenStatesTokenLMHeadLogitsClassifier",
        "init_args": arguments | changes,
        "common_args": {"threshold": 0.37, "input_type": ["hidden_states", "token", "logits"]},
        "model_specific_args": {},
        "state_dict": state,
    }


def reference_p(
    checkpoint: Mapping[str, Any], hidden_BD: Tensor, embedding_BD: Tensor, logits_BV: Tensor
) -> Tensor:
    """What the official network computes, one layer after the other, in float32."""
    weights = checkpoint["state_dict"]

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    logits_BK = logits_BV.sort(dim=-1, descending=True).values[:, :TOP_K]
    if checkpoint["init_args"]["normalize_input"]:
        hidden_BD = norm("layer_norm_hidden_states", hidden_BD)
        embedding_BD = norm("layer_norm_token", embedding_BD)
        logits_BK = logits_BK.softmax(-1)
    features = torch.cat([hidden_BD, embedding_BD, dense("logits_projection", logits_BK)], -1)
    x = dense("backbone.input_projection", dense("combined_projection", features))
    for block in range(DEPTH):
        name = f"backbone.blocks.{block}"
        x = x + dense(f"{name}.mlp.3", functional.gelu(dense(f"{name}.mlp.0", norm(f"{name}.layer_norm", x))))
    logit_B1 = dense("backbone.output_layer.1", norm("backbone.output_layer.0", x))
    return 1.0 / (1.0 + torch.exp(-logit_B1[:, 0]))


def saved(path: Path, checkpoint: Any) -> Path:
    torch.save(checkpoint, path / "router.pt")
    return path / "router.pt"


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_probabilities_are_those_of_the_official_network(tmp_path: Path, normalize: bool, seed: int) -> None:
    pair, checkpoint = tiny_pair(), official(seed, normalize)
    network, card = import_official(saved(tmp_path, checkpoint), pair.slm, names_of(pair))
    drafts = random_drafts(SIZE, VOCAB_SIZE, HIDDEN, seed)
    embedding_BD = torch.randn(SIZE, HIDDEN)
    expected = reference_p(checkpoint, drafts.hidden_BD, embedding_BD, drafts.logits_BV)
    assert expected.std() > 0.05
    with torch.no_grad():
        ours = network(features_of(drafts, card.shape), embedding_BD).sigmoid()
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_it_routes_as_a_router_of_ours_with_its_own_threshold(tmp_path: Path) -> None:
    pair, checkpoint = tiny_pair(), official()
    # Some files bring the SLM's embedding along: the SLM's own is taken.
    checkpoint["state_dict"]["token_embeddings.weight"] = torch.full((9, HIDDEN), torch.nan)
    embedding = pair.slm.model.get_input_embeddings()
    drafts = random_drafts(SIZE, VOCAB_SIZE, HIDDEN)
    embedding_BD = embedding(drafts.token_ids_B).float()
    expected = reference_p(checkpoint, drafts.hidden_BD, embedding_BD, drafts.logits_BV)
    threshold = checkpoint["common_args"]["threshold"] = round(float(expected.median()), 4)
    network, card = import_official(
        saved(tmp_path, checkpoint), pair.slm, names_of(pair), {"created": "today"}
    )
    save_router(tmp_path / "ours", network, card)
    policy = make_policy(f"router:{tmp_path / 'ours'}")
    policy = policy.joined(
        PairView(0.1, VOCAB_SIZE, "tiny", lambda: pair.slm.fingerprint, slm_embedding=lambda: embedding)
    )
    with torch.inference_mode():
        verdicts = policy.judge_drafts(drafts)
    torch.testing.assert_close(verdicts.p_divergent_B, expected, atol=1e-5, rtol=0)
    assert verdicts.actions_B.tolist() == (expected > threshold).long().tolist()
    assert 0 < int(verdicts.actions_B.sum()) < SIZE
    loaded = load_router(tmp_path / "ours")
    assert torch.equal(p_divergent(loaded, embedding, drafts), verdicts.p_divergent_B)
    provenance = loaded.card.provenance
    assert (provenance["imported_from"], provenance["trained_for"], provenance["created"]) == (
        "router.pt",
        "some/slm",
        "today",
    )


def test_it_has_fewer_parameters_than_the_original(tmp_path: Path) -> None:
    pair, checkpoint = tiny_pair(), official()
    network, _ = import_official(saved(tmp_path, checkpoint), pair.slm, names_of(pair))
    assert network.num_parameters < sum(tensor.numel() for tensor in checkpoint["state_dict"].values())


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    path = saved(tmp_path, official() | {"extra": Trap()})
    with pytest.raises(RouterFileError, match="weights and plain values alone"):
        import_official(path, tiny_pair().slm, names_of(tiny_pair()))
    assert not (tmp_path / "ran").exists()


def without(checkpoint: dict[str, Any], name: str) -> dict[str, Any]:
    state = {key: tensor for key, tensor in checkpoint["state_dict"].items() if key != name}
    return checkpoint | {"state_dict": state}


@pytest.mark.parametrize(
    ("checkpoint", "named"),
    [
        ([1, 2], "no official router"),
        ({"state_dict": {}}, "lacks model_type"),
        (official() | {"model_type": "LogitsClassifier"}, "is a LogitsClassifier"),
        (official(hidden_states_size=1536), "1536.*has 32.*some/slm"),
        (official(hidden_dims=[24, 48, 24]), "one width"),
        (official(use_position_embedding=True), "position embeddings"),
        (without(official(), "combined_projection.bias"), "combined_projection.bias"),
        (official(expansion_factor=2), "size mismatch"),
        (official(logits_size=40), "size mismatch"),
    ],
)
def test_other_checkpoints_are_refused(tmp_path: Path, checkpoint: Any, named: str) -> None:
    with pytest.raises(RouterFileError, match=f"(?s){named}"):
        import_official(saved(tmp_path, checkpoint), tiny_pair().slm, names_of(tiny_pair()))


def test_a_missing_file_and_one_that_is_no_pickle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    for name, named in (("none.pt", "is no file"), ("text.pt", "cannot be read")):
        with pytest.raises(RouterFileError, match=named):
            import_official(tmp_path / name, tiny_pair().slm, names_of(tiny_pair()))
