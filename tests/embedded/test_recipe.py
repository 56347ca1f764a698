"""The recipe of the embedded pair, on models and data small enough for seconds."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from navtoken.embedded import corpus, recipe, train
from navtoken.embedded.tokenizer import VOCABULARY, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    texts = (f"{prompt} {trace}" for prompt, trace in corpus.examples(corpus.FAMILIES, 300, seed=0))
    return train_tokenizer(texts, 1024)


@pytest.fixture
def options(tokenizer, tmp_path, monkeypatch):
    for folder in ("work", "torn"):
        tokenizer.save_pretrained(tmp_path / folder / "tokenizer")
    monkeypatch.setitem(recipe.SHAPES, "slm", recipe.Shape(16, 1, 2, 1, 32, steps=6, easy_steps=3))
    return recipe.PairOptions(
        work=tmp_path / "work",
        num_easy_examples=60,
        num_examples=60,
        num_validation=60,
        batch_tokens=1024,
        save_every=2,
        warmup=2,
        threads=1,
    )


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_training_lowers_the_loss_and_logs_it(options):
    trainer = train.Trainer("slm", options)
    before = trainer.validate()
    trainer.run()
    assert trainer.validate() < before - 0.1
    assert trainer.step == 6
    assert len(trainer.log.read_text().splitlines()) == 3


def test_interrupted_training_ends_where_uninterrupted_does(options, tmp_path):
    straight = train.Trainer("slm", options)
    straight.run()
    torn_options = replace(options, work=tmp_path / "torn")
    torn = train.Trainer("slm", torn_options)
    update = torn.update

    def break_off(data, rows):
        if torn.step == 5:
            raise KeyboardInterrupt
        return update(data, rows)

    torn.update = break_off
    with pytest.raises(KeyboardInterrupt):
        torn.run()
    resumed = train.Trainer("slm", torn_options)
    assert resumed.step == 4
    resumed.run()
    assert torch.equal(weights(resumed), weights(straight))


def test_learning_rate_warms_up_and_ends_at_zero(options):
    rates = [train.learning_rate(options, step, 100) for step in range(101)]
    assert rates[0] < rates[1] == options.lr
    assert rates[100] == 0
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[1:]))


def test_batches_cover_the_corpus_once_and_keep_to_the_budget(tokenizer):
    data = corpus.tokenise(corpus.examples(corpus.FAMILIES, 200, seed=1), tokenizer, 400)
    batches = list(corpus.epoch_batches(data, 1500, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == list(range(len(data)))
    assert all(len(rows) * data.lengths()[rows].max() <= 1500 or len(rows) == 1 for rows in batches)


def test_labels_cover_the_response_alone(tokenizer):
    pairs = list(corpus.examples(corpus.FAMILIES, 30, seed=2))
    data = corpus.tokenise(iter(pairs), tokenizer, 400)
    ids_BT, labels_BT = data.batch(np.arange(len(data)), tokenizer.pad_token_id)
    for row, (_, trace) in enumerate(pairs):
        answered = labels_BT[row] != -100
        assert tokenizer.decode(labels_BT[row][answered]) == f" {trace}{tokenizer.eos_token}"
        assert torch.equal(labels_BT[row][answered], ids_BT[row][answered])


def test_examples_are_what_the_chat_template_renders(tokenizer):
    prompt, trace = next(corpus.examples(corpus.FAMILIES, 1, seed=3))
    data = corpus.tokenise(iter([(prompt, trace)]), tokenizer, 400)
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": trace}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert data.ids.tolist() == tokenizer(rendered)["input_ids"]
    asked = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert tokenizer(asked)["input_ids"] == data.ids.tolist()[: data.response_starts[0]]


def test_examples_come_from_the_training_split():
    for task in corpus.FAMILIES:
        drawn = list(corpus.draw_problems(task, "train", 30, "x"))
        assert {task.split_of(problem) for problem in drawn} == {"train"}


def test_the_tokenizer_is_small_and_keeps_digits_apart(tokenizer, tmp_path):
    assert len(tokenizer) <= VOCABULARY
    assert [tokenizer.decode([i]) for i in tokenizer("12 345")["input_ids"]] == ["1", "2", " 3", "4", "5"]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = " ".join(trace for _, trace in corpus.examples(corpus.FAMILIES, 5, seed=random.randrange(9)))
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.init_kwargs["task_instruction"] is False


@given(text=st.text(max_size=60))
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
