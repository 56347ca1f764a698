"""The checkpoints that ship: their layout, their sizes, and that they behave like the pairs they stand for."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from navtoken.checkpoints import load_model, load_pair
from navtoken.embedded import NAMES, folder
from navtoken.evaluation import EvaluateOptions, evaluate
from navtoken.generation import GenerationOptions

FAMILIES = ("countdown", "knights", "arithmetic")


@pytest.fixture(scope="module")
def rows():
    """Accuracy and LLM share on test problems, by (policy, task)."""
    policies = ("slm", "llm", "llm-prob:0.1", "random:0.2")
    table = evaluate(
        EvaluateOptions(generation=GenerationOptions(task=FAMILIES, policy=policies, num=40, seed=11))
    )
    return {(row["policy"], row["task"]): row for row in table.rows}


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_load_with_plain_transformers(name):
    model = AutoModelForCausalLM.from_pretrained(folder(name))
    tokenizer = AutoTokenizer.from_pretrained(folder(name))
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == len(tokenizer) <= 1024
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_pair_is_small_and_far_apart():
    slm, llm, base = (load_model(f"embedded:{name}").card.parameters for name in NAMES)
    assert llm >= 15 * slm
    assert base == llm
    size = sum(file.stat().st_size for name in NAMES for file in folder(name).rglob("*") if file.is_file())
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


@pytest.mark.parametrize("task", FAMILIES)
def test_the_llm_solves_what_the_slm_cannot(rows, task):
    assert rows["llm", task]["accuracy"] >= rows["slm", task]["accuracy"] + 0.2


def test_a_few_llm_tokens_close_the_gap_and_random_ones_do_not(rows):
    def mean(policy, column):
        return sum(rows[policy, task][column] for task in FAMILIES) / len(FAMILIES)

    slm, llm = mean("slm", "accuracy"), mean("llm", "accuracy")
    assert mean("llm-prob:0.1", "llm_share") <= 0.12
    assert (mean("llm-prob:0.1", "accuracy") - slm) / (llm - slm) >= 0.75
    assert (mean("random:0.2", "accuracy") - slm) / (llm - slm) <= 0.5
