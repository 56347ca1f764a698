"""What the SLM makes of the LLM's responses: the engine's own drafts, from the ids that were written."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.engine.options import GREEDY
from navtoken.generation.loop import columns_of
from navtoken.labeling.prefill import DraftReader
from navtoken.policies import make_policy
from navtoken.trace import Trace
from tiny_models import CONTEXT, EOS, near_pair, prompts, tiny_model, tiny_pair


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return tiny_pair("qwen3")


def llm_writes(pair: ModelPair, sampling: SamplingParams, num: int = 6) -> list[Trace]:
    """Responses whose every token the LLM wrote, after a draft of the SLM that the engine recorded."""
    engine = Engine(pair, make_policy("random:1.0"), EngineOptions(max_rows=4))
    rows = [
        engine.add(ids, sampling, 3 + 5 * index, seed=40 + index, sample=index % 3)
        for index, ids in enumerate(prompts(num, seed=2))
    ]
    list(engine.run())
    return [
        Trace(
            task="arithmetic",
            problem_id=f"p{number}",
            sample=row.sample,
            prompt="?",
            prompt_ids=row.token_ids[: row.prompt_len],
            response_ids=row.response_ids,
            text="",
            finish_reason=str(row.finish_reason),
            seed=row.seed,
            policy="llm",
            writer=row.record.writer,
            columns=columns_of(row.record),
        )
        for number, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.7, top_p=0.8, top_k=30, repetition_penalty=1.3),
        SamplingParams(temperature=1.0, min_tokens=4, logit_bias=((EOS, 9.0),)),
    ],
)
def test_drafts_are_those_that_the_engine_drew_there(pair: ModelPair, sampling: SamplingParams) -> None:
    traces = llm_writes(pair, sampling)
    found = list(DraftReader(pair.slm, pair.vocab_size, sampling, batch_tokens=70).read(traces))
    for trace, read in zip(traces, found, strict=True):
        assert read.error is None
        assert read.columns["draft_ids"].tolist() == trace.columns["draft_ids"].tolist()
        for name in ("entropy_slm", "logprob_slm"):
            np.testing.assert_allclose(read.columns[name], trace.columns[name], atol=1e-5)
    greedy = [bool((read.columns["draft_ids"] == read.columns["argmax_slm"]).all()) for read in found]
    assert all(greedy) == (sampling is GREEDY)


def test_features_are_the_models_own(pair: ModelPair) -> None:
    traces = llm_writes(pair, GREEDY, num=3)
    found = list(DraftReader(pair.slm, pair.vocab_size, num_logits=7).read(traces))
    for trace, read in zip(traces, found, strict=True):
        ids = torch.tensor([[*trace.prompt_ids, *trace.response_ids]])
        out = pair.slm.model(ids, output_hidden_states=True)
        own = slice(len(trace.prompt_ids) - 1, ids.shape[1] - 1)
        logits = out.logits[0, own, : pair.vocab_size]
        top = logits.topk(7)
        columns = read.columns
        assert columns["slm_top_ids"].tolist() == top.indices.tolist()
        np.testing.assert_allclose(columns["slm_top_logits"], top.values.numpy(), rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(
            columns["slm_hidden"], out.hidden_states[-1][0, own].numpy(), rtol=2e-3, atol=1e-3
        )
        assert columns["slm_top_logits"].dtype == columns["slm_hidden"].dtype == np.float16
        best = logits.softmax(-1).topk(2).values
        np.testing.assert_allclose(columns["margin_slm"], (best[:, 0] - best[:, 1]).numpy(), atol=1e-6)


def test_a_small_vocabulary_is_recorded_whole_and_features_can_be_left_out(pair: ModelPair) -> None:
    traces = llm_writes(pair, GREEDY, num=2)
    (read, _) = DraftReader(pair.slm, pair.vocab_size, num_logits=1000).read(traces)
    assert read.columns["slm_top_ids"].shape == (len(traces[0].response_ids), pair.vocab_size)
    (bare, _) = DraftReader(pair.slm, pair.vocab_size, features=False).read(traces)
    assert set(bare.columns) == {"draft_ids", "argmax_slm", "entropy_slm", "logprob_slm", "margin_slm"}


def test_chunks_and_batches_change_nothing(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingParams(temperature=1.0)
    traces = llm_writes(pair, sampling)
    whole = list(DraftReader(pair.slm, pair.vocab_size, sampling).read(traces))
    monkeypatch.setattr("navtoken.labeling.prefill.CHUNK_ELEMENTS", 3 * pair.vocab_size)
    pieces = list(DraftReader(pair.slm, pair.vocab_size, sampling, batch_tokens=11).read(traces))
    for one, other in zip(whole, pieces, strict=True):
        assert one.columns.keys() == other.columns.keys()
        for name, values in one.columns.items():
            np.testing.assert_allclose(values, other.columns[name], rtol=2e-3, atol=1e-6)


def test_what_cannot_be_read_says_why_and_the_others_are_read(pair: ModelPair) -> None:
    fine, *_ = llm_writes(pair, GREEDY, num=1)
    long = replace(fine, prompt_ids=[5] * CONTEXT, response_ids=[6, 7])
    foreign = replace(fine, response_ids=[6, 999])
    empty, bare = replace(fine, response_ids=[]), replace(fine, prompt_ids=[])
    found = list(DraftReader(pair.slm, pair.vocab_size).read([long, fine, foreign, empty, bare]))
    assert [read.error is None for read in found] == [False, True, False, False, False]
    for read, word in zip(
        found, ("takes 192|reads 192", "", "999", "no tokens", "prompt has no"), strict=True
    ):
        assert not word or any(each in str(read.error) for each in word.split("|"))


def test_logits_that_are_no_numbers_are_an_error_and_no_drafts() -> None:
    broken = tiny_model("qwen3", 5)
    with torch.no_grad():
        broken.model.model.embed_tokens.weight[7] = float("nan")
    fine, *_ = llm_writes(near_pair(), GREEDY, num=1)
    sound = replace(fine, prompt_ids=[3, 4], response_ids=[5, 6, 8])
    bad = replace(fine, prompt_ids=[3, 7], response_ids=[5, 6, 8])
    reader = DraftReader(broken, 96, SamplingParams(temperature=1.0))
    good, read = reader.read([sound, bad])
    assert good.error is None
    assert "NaN logits at 3 of 3 tokens" in str(read.error)
    assert not read.columns
