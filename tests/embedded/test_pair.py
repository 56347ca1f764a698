"""The checkpoints that ship: their layout, their sizes, and that they behave like the pairs they stand for."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from navtoken.checkpoints import EMBEDDED, load_model, load_pair, resolve_folder
from navtoken.evaluation import EvaluateOptions, evaluate
from navtoken.generation import GenerationOptions


def folder(name):
    return resolve_folder(f"embedded:{name}")


FAMILIES = ("countdown", "knights", "arithmetic")


@pytest.fixture(scope="module")
def rows():
    """Accuracy and LLM share on test problems, by (policy, task)."""
    policies = ("slm", "llm", "llm-prob:0.1", "random:0.2")
    table = evaluate(
        EvaluateOptions(generation=GenerationOptions(task=FAMILIES, policy=policies, num=10, seed=11))
    )
    return {(row["policy"], row["task"]): row for row in table.rows}


@pytest.mark.parametrize("name", EMBEDDED)
def test_checkpoints_load_with_plain_transformers(name):
    model = AutoModelForCausalLM.from_pretrained(folder(name))
    tokenizer = AutoTokenizer.from_pretrained(folder(name))
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == len(tokenizer) <= 1024
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_pair_is_small_and_far_apart():
    slm, llm, base = (load_model(f"embedded:{name}").card.parameters for name in EMBEDDED)
    assert llm >= 15 * slm
    assert base == llm
    size = sum(file.stat().st_size for name in EMBEDDED for file in folder(name).rglob("*") if file.is_file())
    assert size <= 16 * 2**20


def test_the_pair_shares_its_tokenizer():
    pair = load_pair()
    assert pair.slm.tokenizer.get_vocab() == pair.llm.tokenizer.get_vocab()


def test_the_training_log_is_whole():
    log = json.loads(folder("slm").with_name("training_log.json").read_text())
    assert {"seed", "num_examples"} <= log["provenance"]["arguments"]["options"].keys()
    for name in ("slm", "llm"):
        losses = [entry["valid_loss"] for entry in log[name]]
        assert len(losses) >= 10
        assert losses[-1] < losses[0] / 2


@pytest.fixture(scope="module")
def committed():
    """The committed measurement on 200 problems of each family."""
    results = Path(__file__).parents[2] / "experiments" / "embedded_pair" / "table.json"
    return json.loads(results.read_text())


def recovered(rows, policy):
    """Share of the accuracy gap between SLM and LLM that a policy closes, on the mean of the families."""
    slm, llm = rows["slm", "mean"]["accuracy"], rows["llm", "mean"]["accuracy"]
    return (rows[policy, "mean"]["accuracy"] - slm) / (llm - slm)


def test_the_measured_checkpoints_are_those_that_ship(committed):
    fingerprints = committed["provenance"]["fingerprints"]
    assert fingerprints["slm"] == load_model("embedded:slm").fingerprint
    assert fingerprints["llm"] == load_model("embedded:llm").fingerprint


def test_the_pair_is_what_routing_needs(committed):
    rows = {(row["policy"], row["task"]): row for row in committed["rows"]}
    assert rows["llm", "mean"]["accuracy"] >= 0.75
    assert rows["slm", "mean"]["accuracy"] <= rows["llm", "mean"]["accuracy"] / 2
    for task in FAMILIES:
        assert rows["llm", task]["accuracy"] >= rows["slm", task]["accuracy"] + 0.2
    assert rows["llm-prob:0.1", "mean"]["llm_share"] <= 0.12
    assert recovered(rows, "llm-prob:0.1") >= 0.8
    assert recovered(rows, "random:0.2") < 0.5
    assert 0.04 <= committed["patterns"]["all"]["share_argmax_differs"] <= 0.2


def test_base_leaves_room_for_reinforcement_learning():
    base = json.loads(folder("slm").with_name("training_log.json").read_text())["base"]
    assert 0.3 <= base["accuracy_at_temperature_1"][base["snapshot"]] <= 0.6


@pytest.mark.slow
def test_a_fresh_run_shows_the_same_picture(rows):
    """10 problems of each family: bounds wider than those of the committed run, by a standard error of 0.08."""
    assert rows["llm", "mean"]["accuracy"] >= 0.7
    assert rows["slm", "mean"]["accuracy"] <= 0.45
    assert rows["llm-prob:0.1", "mean"]["llm_share"] <= 0.14
    assert recovered(rows, "llm-prob:0.1") >= 0.7
    assert recovered(rows, "random:0.2") < 0.5
