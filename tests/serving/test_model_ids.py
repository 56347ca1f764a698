"""Ids of models that lie in folders: short, and never one for two."""

from pathlib import Path

import pytest

from live_server import serving
from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.serving.errors import ServingError
from navtoken.serving.model_ids import model_ids
from tiny_models import tiny_pair


def folder(path: Path) -> str:
    path.mkdir(parents=True)
    return str(path)


def test_a_folder_goes_by_its_last_part_and_a_hub_id_by_itself(tmp_path: Path) -> None:
    assert model_ids("navtoken", folder(tmp_path / "mine"), "org/large@v1") == ("mine", "org/large@v1")


def test_where_that_is_taken_the_parent_tells_them_apart(tmp_path: Path) -> None:
    small, large = folder(tmp_path / "a" / "model"), folder(tmp_path / "b" / "model")
    assert model_ids("navtoken", small, large) == ("a/model", "b/model")
    assert model_ids("model", small, "org/large") == ("a/model", "org/large")
    assert model_ids("navtoken", small, small) == ("model", "model")


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    small, large = folder(tmp_path / "a" / "run" / "model"), folder(tmp_path / "b" / "run" / "model")
    with pytest.raises(ServingError, match="tell them apart"):
        model_ids("navtoken", small, large)
    with pytest.raises(ServingError, match="tell them apart"):
        model_ids("org/large", small, "org/large")


def test_two_folders_of_one_name_are_both_served(tmp_path: Path) -> None:
    pair = tiny_pair()
    slm, llm = (
        LoadedModel(model.model, model.tokenizer, folder(tmp_path / where / "model"))
        for model, where in ((pair.slm, "a"), (pair.llm, "b"))
    )
    with serving(ModelPair(slm, llm), policy="slm") as live:
        ids = [model["id"] for model in live.http.get("/v1/models").json()["data"]]
        assert ids == ["navtoken", "a/model", "b/model"]
        told = live.http.get("/v1/pair").json()
        assert (told["slm"]["reference"], told["llm"]["reference"]) == ("a/model", "b/model")
        assert live.http.get("/v1/models/b/model").json()["policy"] == "llm"
        wrote = live.complete(model="b/model", prompt=[3, 4, 5], max_tokens=3, ignore_eos=True).json()
    assert wrote["choices"][0]["navtoken"]["llm_share"] == 1


def test_a_model_that_is_its_own_pair_has_one_id() -> None:
    model = tiny_pair().llm
    with serving(ModelPair(model, model), policy="slm") as live:
        told = live.http.get("/v1/pair").json()
    assert told["slm"]["reference"] == told["llm"]["reference"] == model.reference
