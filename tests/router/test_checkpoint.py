"""Routers on disk: whole or refused, never a pickle, thresholds and all."""

import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from navtoken.engine import SamplingParams
from navtoken.router import (
    RouterFileError,
    StoredThreshold,
    features_of,
    load_card,
    load_router,
    open_router,
    save_router,
)
from navtoken.router.checkpoint import CARD, WEIGHTS, Router
from tiny_models import VOCAB_SIZE, tiny_pair
from tiny_routers import random_drafts, random_network, tiny_router

THRESHOLDS = (
    StoredThreshold("countdown", 0.41, share=0.13, realised_share=0.128, num_problems=200),
    StoredThreshold("countdown", 0.52, temperature=1.0, share=0.13),
    StoredThreshold("countdown", 0.53, temperature=1.0, top_p=0.95, share=0.13),
    StoredThreshold("countdown", 0.2, recall=0.13),
    StoredThreshold("all", 0.3, share=0.13),
)


def test_a_router_is_what_was_saved(tmp_path: Path) -> None:
    about = {"provenance": {"seed": 3}, "report": {"pr_area": 0.7}, "thresholds": THRESHOLDS}
    card = tiny_router(tmp_path, tiny_pair(), **about)
    router = load_router(tmp_path)
    assert router.card == card == load_card(tmp_path)
    assert card.thresholds == THRESHOLDS and card.report == {"pr_area": 0.7}
    features = features_of(random_drafts(6, VOCAB_SIZE, 32), card.shape)
    embedding_BE = torch.randn(6, 32)
    with torch.no_grad():
        expected = random_network(card.shape)(features, embedding_BE)
        assert torch.equal(router.on("cpu")(features, embedding_BE), expected)
    assert not router.on("cpu").training


def test_there_are_two_files_and_neither_is_a_pickle(tmp_path: Path) -> None:
    tiny_router(tmp_path, tiny_pair())
    tiny_router(tmp_path, tiny_pair(), seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CARD, WEIGHTS])
    json.loads((tmp_path / CARD).read_text())
    for path in tmp_path.iterdir():
        with pytest.raises(pickle.UnpicklingError):
            pickle.loads(path.read_bytes())


def test_a_pickle_in_the_weights_place_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    tiny_router(tmp_path, tiny_pair())
    torch.save({"state_dict": Trap()}, tmp_path / WEIGHTS)
    with pytest.raises(RouterFileError, match="two routers"):
        load_router(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_and_card_of_two_routers_are_refused(tmp_path: Path) -> None:
    """What a crash between the two renames leaves behind."""
    tiny_router(tmp_path, tiny_pair())
    card = (tmp_path / CARD).read_text()
    tiny_router(tmp_path, tiny_pair(), seed=1)
    (tmp_path / CARD).write_text(card)
    with pytest.raises(RouterFileError, match="interrupted"):
        load_router(tmp_path)


def test_a_router_trained_again_is_read_again(tmp_path: Path) -> None:
    tiny_router(tmp_path, tiny_pair())
    first = open_router(tmp_path)
    assert open_router(tmp_path) == first
    assert open_router(tmp_path).on("cpu") is first.on("cpu")
    tiny_router(tmp_path, tiny_pair(), seed=1)
    second = open_router(tmp_path)
    assert second != first
    assert not torch.equal(second.on("cpu").head.weight, first.on("cpu").head.weight)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / CARD).unlink(), "holds no router"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no router.safetensors"),
        (lambda folder: (folder / CARD).write_text("{"), "no router's card"),
        (lambda folder: (folder / CARD).write_text("[]"), "no router's card"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]), "sha256"),
        (lambda folder: change(folder, format=7), "format is 7"),
        (lambda folder: change(folder, kind="word"), "kind 'word'"),
        (lambda folder: change(folder, shape={"width": 3}), "does not fit"),
        (lambda folder: change(folder, weight="abc"), "weight"),
    ],
)
def test_files_that_are_not_whole_are_refused(tmp_path: Path, spoil, named: str) -> None:
    tiny_router(tmp_path, tiny_pair())
    spoil(tmp_path)
    with pytest.raises(RouterFileError, match=named):
        load_router(tmp_path)


def change(folder: Path, **fields: object) -> None:
    (folder / CARD).write_text(json.dumps(json.loads((folder / CARD).read_text()) | fields))


def test_weights_that_do_not_fit_the_shape_are_refused(tmp_path: Path) -> None:
    card = tiny_router(tmp_path, tiny_pair())
    change(tmp_path, shape=replace(card.shape, depth=card.shape.depth + 1).as_json())
    with pytest.raises(RouterFileError, match="does not fit its card"):
        load_router(tmp_path)


def test_a_network_is_saved_with_its_own_card(tmp_path: Path) -> None:
    card = tiny_router(tmp_path, tiny_pair())
    with pytest.raises(RouterFileError, match="as one"):
        save_router(tmp_path, random_network(replace(card.shape, width=8)), card)


def test_a_router_in_memory_is_ready_for_inference(tmp_path: Path) -> None:
    card = tiny_router(tmp_path, tiny_pair())
    network = random_network(card.shape).train()
    assert Router(card, network=network).on("cpu") is network
    assert not network.training


@pytest.mark.parametrize(
    ("task", "sampling", "share", "threshold"),
    [
        ("countdown", SamplingParams(), 0.13, 0.41),
        ("countdown", SamplingParams(top_p=0.9), 0.13, 0.41),
        ("countdown", SamplingParams(temperature=1.0), 0.13, 0.52),
        ("countdown", SamplingParams(temperature=1.0, top_p=0.95), 0.13, 0.53),
        ("countdown", SamplingParams(temperature=0.6), 0.13, None),
        ("countdown", SamplingParams(temperature=1.0, top_k=20), 0.13, None),
        ("countdown", SamplingParams(temperature=1.0, min_p=0.1), 0.13, None),
        ("countdown", SamplingParams(repetition_penalty=1.1), 0.13, None),
        ("countdown", SamplingParams(fork_threshold=0.5, fork_temperature=2.0), 0.13, None),
        ("countdown", SamplingParams(logit_bias=((3, 1.0),)), 0.13, None),
        ("countdown", SamplingParams(), 0.2, None),
        ("knights", SamplingParams(), 0.13, None),
        ("all", SamplingParams(), 0.13, 0.3),
    ],
)
def test_a_stored_threshold_is_that_of_task_sampling_and_share(
    tmp_path: Path, task: str, sampling: SamplingParams, share: float, threshold: float | None
) -> None:
    tiny_router(tmp_path, tiny_pair(), thresholds=THRESHOLDS)
    card = load_card(tmp_path)
    assert card.threshold_for(task, asdict(sampling), share) == threshold
    # As a trace or a configuration file has them.
    assert card.threshold_for(task, json.loads(json.dumps(asdict(sampling))), share) == threshold
