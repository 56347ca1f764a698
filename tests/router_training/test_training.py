"""Training: that it learns, goes on bit for bit, stops at the best, and ends in probabilities."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from labelled_traces import HIDDEN, VOCAB_SIZE, labels
from navtoken.router import RouterShape
from navtoken.router_training.examples import Examples, gather
from navtoken.router_training.training import (
    STATE,
    Epoch,
    Trained,
    TrainingError,
    TrainingOptions,
    pr_area,
    predict,
    steps_per_epoch,
    train,
)

OPTIONS = TrainingOptions(epochs=6, batch_size=64, learning_rate=5e-3)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("labels")
    return gather([labels(folder / "labels", num=150)], VOCAB_SIZE, folder / "work")


def shape_of(examples: Examples, **changes: object) -> RouterShape:
    sizes = {"width": 32, "depth": 1, "dropout": 0.1} | changes
    return RouterShape.of_sizes(HIDDEN, HIDDEN, VOCAB_SIZE, 10**6, top_k=examples.num_logits, **sizes)  # type: ignore[arg-type]


def embedding() -> nn.Module:
    torch.manual_seed(3)
    return nn.Embedding(VOCAB_SIZE, HIDDEN)


def trained(
    examples: Examples, folder: Path, options: TrainingOptions = OPTIONS, **changes: object
) -> Trained:
    return train(examples, shape_of(examples), embedding(), options, folder, "labels", **changes)  # type: ignore[arg-type]


def weights(found: Trained) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in found.network.state_dict().items()}


def test_it_finds_what_the_features_tell(examples: Examples, tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=15)
    found = trained(examples, tmp_path, options)
    index = examples.of("test")
    logit = predict(found.network, examples, index, embedding())
    wanted = examples.wanted("divergent")[index]
    area = pr_area(logit, wanted, examples.problem_N[index])
    assert area > 0.8 > 2 * wanted.mean()
    p = 1 / (1 + np.exp(-logit))
    # The weight on divergent labels made all of these too high; the shift set that right.
    assert found.pos_weight > 1.5
    assert p.mean() == pytest.approx(wanted.mean(), abs=0.06)


def test_the_best_epochs_weights_are_kept(examples: Examples, tmp_path: Path) -> None:
    # So high a rate that the areas go up and down.
    found = trained(examples, tmp_path, replace(OPTIONS, epochs=8, patience=3, learning_rate=3e-2))
    areas = [epoch.validation_pr for epoch in found.history]
    assert found.best == 1 + int(np.argmax(areas))
    assert len(areas) == 8 or len(areas) == found.best + 3
    index = examples.of("validation")
    again = pr_area(
        predict(found.network, examples, index, embedding()),
        examples.wanted("divergent")[index],
        examples.problem_N[index],
    )
    assert again == pytest.approx(max(areas), abs=1e-6)


def test_patience_ends_it(examples: Examples, tmp_path: Path) -> None:
    # Nothing to be learnt from random labels.
    rng = np.random.default_rng(0)
    noise = replace(examples, label_N=(2 * (rng.random(len(examples)) < 0.2)).astype(np.int8))
    found = trained(noise, tmp_path, replace(OPTIONS, epochs=40, patience=2))
    assert len(found.history) == found.best + 2 < 40


def test_an_interrupted_training_ends_in_the_same_weights(examples: Examples, tmp_path: Path) -> None:
    whole = trained(examples, tmp_path / "whole")
    steps = steps_per_epoch(examples, OPTIONS)
    heard = 0

    def interrupt(epoch: Epoch | None) -> None:
        nonlocal heard
        heard += epoch is None
        if heard == 2 * steps + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(examples, tmp_path / "parts", tell=interrupt)
    numbers: list[int] = []
    parts = trained(
        examples, tmp_path / "parts", tell=lambda each: numbers.append(each.number if each else 0)
    )
    # Two epochs were there, one of which no step was heard of again.
    assert numbers[:2] == [1, 2] and numbers.count(0) == (OPTIONS.epochs - 2) * steps
    assert weights(parts) == weights(whole)
    assert [replace(each, seconds=0.0) for each in parts.history] == [
        replace(each, seconds=0.0) for each in whole.history
    ]


def test_a_finished_training_is_not_repeated(examples: Examples, tmp_path: Path) -> None:
    first = trained(examples, tmp_path)
    steps = []
    again = trained(examples, tmp_path, tell=lambda each: steps.append(each) if each is None else None)
    assert not steps and weights(again) == weights(first)


def test_seeds_make_a_difference_and_fix_everything(examples: Examples, tmp_path: Path) -> None:
    short = replace(OPTIONS, epochs=1)
    first = trained(examples, tmp_path / "a", short)
    torch.rand(7)
    assert weights(trained(examples, tmp_path / "b", short)) == weights(first)
    other = trained(examples, tmp_path / "c", replace(short, training_seed=1))
    assert weights(other) != weights(first)


def test_another_training_in_the_folder_is_refused(examples: Examples, tmp_path: Path) -> None:
    short = replace(OPTIONS, epochs=1)
    trained(examples, tmp_path, short)
    with pytest.raises(TrainingError, match=r"weight_decay 0\.01 there, 0\.5 now\); name another folder"):
        trained(examples, tmp_path, replace(short, weight_decay=0.5))
    with pytest.raises(TrainingError, match="depth 1 there, 2 now"):
        train(examples, shape_of(examples, depth=2), embedding(), short, tmp_path, "labels")
    with pytest.raises(TrainingError, match="labels others there, these now"):
        train(examples, shape_of(examples), embedding(), short, tmp_path, "other labels")
    (tmp_path / STATE).write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(TrainingError, match="cannot be read"):
        trained(examples, tmp_path, short)


def test_other_targets_find_other_tokens(examples: Examples, tmp_path: Path) -> None:
    found = trained(examples, tmp_path, replace(OPTIONS, epochs=15, target="different"))
    index = examples.of("test")
    p = 1 / (1 + np.exp(-predict(found.network, examples, index, embedding())))
    differs = examples.wanted("different")[index]
    assert pr_area(p, differs, examples.problem_N[index]) > 0.85
    assert p.mean() == pytest.approx(differs.mean(), abs=0.06)


def test_options_are_checked() -> None:
    with pytest.raises(TrainingError, match="epochs is 0; give at least 1"):
        TrainingOptions(epochs=0)
    with pytest.raises(TrainingError, match="learning_rate is 0"):
        TrainingOptions(learning_rate=0.0)
    with pytest.raises(TrainingError, match="pos_weight is -1"):
        TrainingOptions(pos_weight=-1.0)
