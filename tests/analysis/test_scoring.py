"""Scores of given responses against a slow reference: one row at a time, all logits, float64."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from navtoken.analysis import scoring
from navtoken.analysis.scoring import (
    ForeignVocabularyError,
    ResponseScores,
    ScoringError,
    head_of,
    score_responses,
    scored_traces,
    tokenizer_fingerprint,
)
from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.entropy import LMHead
from navtoken.generation import fingerprints
from navtoken.trace import Trace
from tiny_models import CONTEXT, KINDS, VOCAB_SIZE, WINDOW, prompts, tiny_model

PROMPTS = prompts(9, seed=1, shortest=1)
RESPONSES = [*prompts(7, seed=2, shortest=1, longest=3 * WINDOW), [], [5]]


@torch.no_grad()
def reference(loaded: LoadedModel, prompt: list[int], response: list[int]) -> dict[str, list[float]]:
    """Slow and obvious."""
    ids = torch.tensor([prompt + response])
    logits_TV = loaded.model(input_ids=ids).logits[0, len(prompt) - 1 : -1, :VOCAB_SIZE].double()
    logprobs_TV = torch.log_softmax(logits_TV, -1)
    top_T2 = logprobs_TV.exp().topk(2).values
    return {
        "entropy": (-(logprobs_TV.exp() * logprobs_TV).sum(-1)).tolist(),
        "logprob": [float(logprobs_TV[at, token]) for at, token in enumerate(response)],
        "argmax": logits_TV.argmax(-1).tolist(),
        "margin": (top_T2[:, 0] - top_T2[:, 1]).tolist(),
    }


def assert_as_referred(scores: ResponseScores, expected: dict[str, list[float]], tolerance: float) -> None:
    for name, values in expected.items():
        assert getattr(scores, name).tolist() == pytest.approx(values, rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_tokens", [1, 17, 70, 8192])
def test_scores_are_those_of_each_response_alone(kind: str, batch_tokens: int) -> None:
    loaded = tiny_model(kind)
    found = list(score_responses(loaded, PROMPTS, RESPONSES, batch_tokens))
    assert len(found) == len(RESPONSES)
    # Norms and rotations are in float32 whatever the model is in.
    tolerance = 1e-6 if loaded.model.dtype == torch.float64 else 2e-4
    for scores, prompt, response in zip(found, PROMPTS, RESPONSES, strict=True):
        assert_as_referred(scores, reference(loaded, prompt, response), tolerance)


def test_arrays_are_plain_and_a_response_without_tokens_has_none() -> None:
    (scores,) = score_responses(tiny_model("qwen3"), [[]], [[]])
    columns = (scores.entropy, scores.logprob, scores.argmax, scores.margin)
    assert [len(column) for column in columns] == [0, 0, 0, 0]
    (scores,) = score_responses(tiny_model("qwen3", dtype=torch.bfloat16), [[2]], [[3, 4]])
    assert scores.entropy.dtype == scores.logprob.dtype == scores.margin.dtype == np.float32
    assert scores.argmax.dtype == np.int32
    assert scores.entropy.base is None


def watch_passes(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes (B, T) of what the model is fed from now on."""
    shapes: list[tuple[int, int]] = []
    plain = loaded.model.base_model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return plain(*args, **kwargs)

    monkeypatch.setattr(loaded.model.base_model, "forward", forward)
    return shapes


def test_a_batch_holds_so_many_tokens_and_little_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model("qwen3")
    lengths = [(7 * step) % 60 + 1 for step in range(80)] + [150]
    given, responses = [[2]] * len(lengths), [[3] * length for length in lengths]
    head = head_of(loaded)
    shapes = watch_passes(loaded, monkeypatch)
    list(score_responses(loaded, given, responses, 120, head))
    assert all(rows * longest <= 120 for rows, longest in shapes)
    assert (1, 120) in shapes and (1, 30) in shapes
    assert sum(rows for rows, _ in shapes) == len(lengths) + 1
    assert sum(rows * longest for rows, longest in shapes) < 1.2 * sum(lengths)


def test_logits_exist_at_response_positions_only_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    plain = LMHead.logits
    monkeypatch.setattr(LMHead, "logits", lambda self, h: rows.append(len(h)) or plain(self, h))
    monkeypatch.setattr("navtoken.entropy.CHUNK_ELEMENTS", 10 * VOCAB_SIZE)
    loaded = tiny_model("qwen3")
    head = head_of(loaded)
    rows.clear()
    list(score_responses(loaded, [[2] * 100], [[3] * 35], head=head))
    assert rows == [9, 9, 9, 8]


def test_results_come_window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "WINDOW_BATCHES", 2)
    loaded = tiny_model("qwen3")
    head = head_of(loaded)
    shapes = watch_passes(loaded, monkeypatch)
    found = score_responses(loaded, [[2]] * 12, [[3] * 10] * 12, 20, head)
    assert shapes == []
    next(found)
    assert shapes == [(2, 10), (2, 10)]
    assert len(list(found)) == 11


@pytest.mark.parametrize(
    ("prompt", "response", "kind", "words"),
    [
        ([2], [3, VOCAB_SIZE], ForeignVocabularyError, rf"response 1 has token id {VOCAB_SIZE}.*0\.\.{VOCAB_SIZE - 1}"),
        ([VOCAB_SIZE + 3], [3], ForeignVocabularyError, f"token id {VOCAB_SIZE + 3}"),
        ([2], [-1], ForeignVocabularyError, "token id -1"),
        ([], [3], ScoringError, "response 1 has an empty prompt"),
        ([2] * 10, [3] * (CONTEXT - 8), ScoringError, rf"has {CONTEXT + 2} tokens.*takes {CONTEXT}"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused_before_anything_is(
    prompt: list[int], response: list[int], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        score_responses(tiny_model("qwen3"), [[2], prompt], [[3], response])


def test_a_response_may_fill_the_context() -> None:
    (scores,) = score_responses(tiny_model("qwen3"), [[2] * 10], [[3] * (CONTEXT - 9)])
    assert len(scores.entropy) == CONTEXT - 9


def test_broken_weights_are_not_hidden() -> None:
    loaded = tiny_model("qwen3")
    head = head_of(loaded)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[7] = torch.nan
    assert len(list(score_responses(loaded, [[2]], [[3, 7]], head=head))) == 1
    with pytest.raises(ScoringError, match=r"NaN logits at \d of 4 tokens of response 0.*--dtype float32"):
        list(score_responses(loaded, [[2]], [[3, 7, 5, 6]], head=head))


def test_batches_of_no_tokens_are_refused() -> None:
    with pytest.raises(ScoringError, match="batch_tokens is 0"):
        score_responses(tiny_model("qwen3"), [[2]], [[3]], 0)


# ---- traces ----------------------------------------------------------------------------------------------------


def trace(loaded: LoadedModel, sample: int, length: int, **changes: Any) -> Trace:
    ids = [2 + (sample + step) % 60 for step in range(length)]
    given = {
        "task": "countdown",
        "problem_id": "p",
        "sample": sample,
        "prompt": "",
        "prompt_ids": [4, 5],
        "response_ids": ids,
        "text": loaded.tokenizer.decode(ids),
        "finish_reason": "stop",
        "seed": 0,
        "policy": "llm",
        "writer": [1] * length,
        "columns": {"entropy_llm": np.full(length, np.nan, np.float32), "label": np.zeros(length, np.int8)},
    }
    return Trace(**(given | changes))


def test_traces_keep_what_they_have_and_gain_two_columns() -> None:
    loaded = tiny_model("qwen3")
    before = [trace(loaded, sample, 3 + sample) for sample in range(5)]
    after = list(scored_traces(before, loaded, "slm"))
    assert [each.key for each in after] == [each.key for each in before]
    for each, old in zip(after, before, strict=True):
        expected = reference(loaded, each.prompt_ids, each.response_ids)
        assert each.columns["entropy_slm"].tolist() == pytest.approx(expected["entropy"])
        assert each.columns["logprob_slm"].tolist() == pytest.approx(expected["logprob"])
        assert np.isnan(each.columns["entropy_llm"]).all()
        assert each.columns["label"].tolist() == old.columns["label"].tolist()
        assert "entropy_slm" not in old.columns
    filled = next(scored_traces(before, loaded))
    assert not np.isnan(filled.columns["entropy_llm"]).any()


def test_a_stream_of_traces_is_read_a_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "WINDOW_BATCHES", 2)
    loaded, read = tiny_model("qwen3"), []

    def stream() -> Iterator[Trace]:
        for sample in range(100):
            read.append(sample)
            yield trace(loaded, sample, 8)

    next(scored_traces(stream(), loaded, batch_tokens=20))
    assert len(read) == 4


def test_ids_within_range_that_spell_another_text_are_refused() -> None:
    loaded = tiny_model("qwen3")
    other = trace(loaded, 3, 6, text="something else")
    with pytest.raises(
        ForeignVocabularyError, match=r"'p', 3\) says 'something else', and its token ids read"
    ):
        next(scored_traces([other], loaded))
    assert next(scored_traces([other], loaded, same_tokenizer=True)).key == other.key


def test_a_text_cut_at_a_stop_string_is_the_tokenizers_own() -> None:
    loaded = tiny_model("qwen3")
    whole = trace(loaded, 0, 9)
    cut = trace(loaded, 0, 9, text=whole.text[:4] + " ")
    assert next(scored_traces([cut], loaded)).text == cut.text


def test_errors_name_the_trace() -> None:
    loaded = tiny_model("qwen3")
    with pytest.raises(
        ForeignVocabularyError, match=r"trace \('llm', 'countdown', 'p', 1\) has token id 400"
    ):
        next(scored_traces([trace(loaded, 0, 3), trace(loaded, 1, 3, response_ids=[3, 400, 5])], loaded))


def test_the_tokenizers_fingerprint_is_that_of_generated_traces() -> None:
    loaded = tiny_model("qwen3")
    assert tokenizer_fingerprint(loaded) == fingerprints(ModelPair(loaded, loaded))["tokenizer"]
