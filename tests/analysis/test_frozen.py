"""A frozen set is what its traces say, is scored once, and refuses what cannot be compared on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from navtoken.analysis import frozen as module
from navtoken.analysis.frozen import (
    SCORES,
    Chosen,
    FrozenSet,
    FrozenSetError,
    RecordedScores,
    score_set,
    scored_by,
)
from navtoken.analysis.scoring import scored_traces
from navtoken.analysis.vocabulary import ForeignVocabularyError
from navtoken.checkpoints import LoadedModel
from navtoken.trace import Trace, TraceError, TraceWriter, provenance, read_provenance, read_traces
from tiny_models import VOCAB_SIZE, prompts, tiny_model, tiny_tokenizer

LENGTHS = (5, 0, 9, 3, 7, 4)


def trace(index: int, response: list[int], **changes: object) -> Trace:
    fields = {
        "task": "t" if index < 4 else "u", "problem_id": f"p{index // 2}", "sample": index % 2, "prompt": "",
        "prompt_ids": prompts(1, seed=index)[0], "response_ids": response, "finish_reason": "stop", "seed": 0,
        "text": tiny_tokenizer().decode(response, skip_special_tokens=True), "policy": "llm",
        "writer": [1] * len(response),
    }  # fmt: skip
    return Trace(**(fields | changes))  # type: ignore[arg-type]


def traces() -> list[Trace]:
    """Six responses, two per problem, one of them empty; the last one is another policy's."""
    ids = [(prompts(1, seed=10 + i, shortest=20)[0] * 2)[:length] for i, length in enumerate(LENGTHS)]
    made = [trace(i, response) for i, response in enumerate(ids)]
    made[-1].policy = "slm"
    made[2].columns["label"] = np.array([0, 1, 2] * 3, np.int8)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with TraceWriter(tmp_path / "traces", provenance(), shard_rows=2) as writer:
        for each in traces():
            writer.write(each)
    return tmp_path / "traces"


def test_tokens_lie_one_response_after_the_other(folder: Path) -> None:
    found = FrozenSet.read(Chosen(folder))
    kept = [each for each in traces() if each.response_ids]
    assert found.response_id_N.tolist() == [i for each in kept for i in each.response_ids]
    assert found.start_R.tolist() == [0, 5, 14, 17, 24, 28]
    # Responses to one problem share a cluster, problems of other tasks do not.
    assert found.cluster_N.tolist() == [0] * 5 + [1] * 12 + [2] * 11
    assert (found.num_problems, found.tasks, found.num_responses, found.num_tokens) == (3, ("t", "u"), 5, 28)
    assert found.label_N is not None
    assert found.label_N.tolist() == [-1] * 5 + [0, 1, 2] * 3 + [-1] * 14
    assert found.keys == tuple(each.key for each in kept)


def test_invalid_labels_alone_are_no_labels(tmp_path: Path) -> None:
    invalid = trace(0, [5, 6], columns={"label": np.array([3, -1], np.int8)})
    with TraceWriter(tmp_path, provenance()) as writer:
        writer.write(invalid)
    assert FrozenSet.read(Chosen(tmp_path)).label_N is None


@pytest.mark.parametrize(
    ("changes", "lengths"),
    [
        ({"policy": "slm"}, [4]),
        ({"tasks": ("u",)}, [7, 4]),
        ({"num": 1}, [5, 7, 4]),
        ({"keys": frozenset([("llm", "t", "p1", 0), ("llm", "t", "p1", 1)])}, [9, 3]),
        ({"policy": "llm", "tasks": ("u",), "num": 1}, [7]),
    ],
)
def test_only_what_is_asked_for_counts(folder: Path, changes: dict[str, object], lengths: list[int]) -> None:
    chosen = Chosen(folder, **changes)  # type: ignore[arg-type]
    assert np.diff(FrozenSet.read(chosen).start_R).tolist() == lengths
    assert [len(each.response_ids) for each in chosen.traces()] == lengths
    assert [len(each.response_ids) for each in chosen.responses()] == lengths
    silent = {each.key for each in traces() if not each.response_ids}
    assert chosen.found() - silent == {each.key for each in chosen.traces()}


def test_contexts_end_where_the_response_does(folder: Path) -> None:
    found = FrozenSet.read(Chosen(folder))
    ids = found.response_id_N.tolist()
    assert found.around(5, before=3, after=2) == ([], ids[5], ids[6:8])
    assert found.around(13, before=3, after=2) == (ids[10:13], ids[13], [])
    assert found.around(27) == (ids[24:27], ids[27], [])


@given(st.integers(0, 27), st.integers(0, 9), st.integers(0, 9))
def test_contexts_are_the_tokens_beside(position: int, before: int, after: int) -> None:
    start = np.array([0, 5, 14, 17, 24, 28])
    found = object.__new__(FrozenSet)
    object.__setattr__(found, "start_R", start)
    object.__setattr__(found, "response_id_N", np.arange(28, dtype=np.int32))
    left, token, right = found.around(position, before, after)
    response = max(s for s in start if s <= position)
    end = min(s for s in start if s > position)
    assert token == position
    assert [*left, token, *right] == list(
        range(max(response, position - before), min(end, position + after + 1))
    )


# ---- scores ---------------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> LoadedModel:
    return tiny_model("qwen3", seed=4)


def test_scores_are_those_of_one_plain_forward(folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    frozen = FrozenSet.read(Chosen(folder))
    scored = score_set(frozen, lambda: model, "x", tmp_path / "scores")
    entropies, argmaxes, margins = [], [], []
    for each in frozen.chosen.traces():
        ids = torch.tensor([[*each.prompt_ids, *each.response_ids]])
        logits = model.model(ids).logits[0, len(each.prompt_ids) - 1 : -1, :VOCAB_SIZE]
        p = logits.softmax(-1)
        entropies.append(-(p * p.log()).sum(-1))
        argmaxes.append(p.argmax(-1))
        top = p.topk(2).values
        margins.append(top[:, 0] - top[:, 1])
    assert np.allclose(scored.column("entropy"), torch.cat(entropies), atol=1e-6)
    assert scored.column("argmax").tolist() == torch.cat(argmaxes).tolist()
    assert np.allclose(scored.column("margin"), torch.cat(margins), atol=1e-6)


def test_an_interrupted_scoring_goes_on(
    folder: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_TOKENS", 10)
    frozen = FrozenSet.read(Chosen(folder))
    whole = score_set(frozen, lambda: model, "x", tmp_path / "whole").column("entropy")
    real, calls = module.score_responses, [0]

    def breaks(*args: object, **options: object) -> Iterator[object]:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "score_responses", breaks)
    with pytest.raises(KeyboardInterrupt):
        score_set(frozen, lambda: model, "x", tmp_path / "scores")
    done: list[int] = []
    again = score_set(frozen, lambda: model, "x", tmp_path / "scores", done.append)
    # 14, 10 and 4 tokens: the first block was kept.
    assert calls[0] == 4
    assert sum(done) == 5
    assert np.array_equal(again.column("entropy"), whole)
    loaded = [0]

    def load() -> LoadedModel:
        loaded[0] += 1
        return model

    score_set(frozen, load, "x", tmp_path / "scores")
    assert loaded[0] == 0
    score_set(frozen, load, "another checkpoint", tmp_path / "scores")
    assert loaded[0] == 1
    assert not list((tmp_path / "scores").rglob("*.part"))


def recorded(folder: Path, model: LoadedModel, out: Path, **changes: object) -> Path:
    """The traces as `navtoken score` leaves them: scored as the SLM's, in float32."""
    arguments = {"whose": "slm", "dtype": "float32"}
    record = provenance({"slm": "other", "scores_slm": model.fingerprint}, **(arguments | changes))
    with TraceWriter(out, record) as writer:
        for each in scored_traces(Chosen(folder).traces(), model, "slm"):
            writer.write(each)
    return out


def test_scores_that_the_traces_carry_are_those_that_a_pass_would_give(
    folder: Path, model: LoadedModel, tmp_path: Path
) -> None:
    frozen = FrozenSet.read(Chosen(recorded(folder, model, tmp_path / "scored"), policy="llm"))
    found = RecordedScores.of(frozen, "slm", model.fingerprint, "float32")
    assert found is not None
    computed = score_set(frozen, lambda: model, "x", tmp_path / "scores")
    for name in SCORES:
        np.testing.assert_allclose(found.column(name), computed.column(name), atol=1e-6)


def test_scores_of_other_weights_or_another_type_are_not_taken(
    folder: Path, model: LoadedModel, tmp_path: Path
) -> None:
    frozen = FrozenSet.read(Chosen(recorded(folder, model, tmp_path / "scored")))
    assert RecordedScores.of(frozen, "slm", "other weights", "float32") is None
    assert RecordedScores.of(frozen, "slm", model.fingerprint, "bfloat16") is None
    assert RecordedScores.of(frozen, "llm", model.fingerprint, "float32") is None
    assert RecordedScores.of(FrozenSet.read(Chosen(folder)), "slm", model.fingerprint, "float32") is None


def test_scores_with_holes_are_not_taken(folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    whole = recorded(folder, model, tmp_path / "scored")
    with TraceWriter(tmp_path / "holes", read_provenance(whole)) as writer:
        for each in read_traces(whole):
            each.columns["argmax_slm"] = np.where(np.arange(len(each.response_ids)) == 1, -1, 3)
            writer.write(each)
    frozen = FrozenSet.read(Chosen(tmp_path / "holes"))
    assert RecordedScores.of(frozen, "slm", model.fingerprint, "float32") is None


def test_who_filled_a_column_is_told_by_the_last_who_did() -> None:
    written = {
        "fingerprints": {"slm": "s", "llm": "l"},
        "arguments": {"dtype": "float32", "llm_dtype": "bfloat16"},
    }
    scored = {
        "fingerprints": {"slm": "s", "llm": "l", "scores_llm": "x"},
        "arguments": {"whose": "llm", "dtype": "float16"},
        "source": written,
    }
    assert scored_by(written, "slm") == ("s", "float32")
    assert scored_by(written, "llm") == ("l", "bfloat16")
    assert scored_by(scored, "llm") == ("x", "float16")
    assert scored_by(scored, "slm") == ("s", "float32")


# ---- what cannot be compared on -------------------------------------------------------------------------------


def test_another_vocabulary_is_refused(folder: Path) -> None:
    frozen = FrozenSet.read(Chosen(folder))
    frozen.check_vocabulary(tiny_tokenizer(), "same")

    class Shifted(PreTrainedTokenizerFast):
        def decode(self, ids: list[int], **options: object) -> str:  # type: ignore[override]
            return str(super().decode([i - 1 for i in ids], **options))

    shifted = Shifted(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, pad_token="<pad>", eos_token="<eos>"
    )
    with pytest.raises(ForeignVocabularyError, match="token ids read .* under the tokenizer of 'other'"):
        frozen.check_vocabulary(shifted, "other")

    class Small(Shifted):
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "b": 3}

    small = Small(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    with pytest.raises(ForeignVocabularyError, match=r"knows 0\.\.3; name a checkpoint that shares"):
        frozen.check_vocabulary(small, "other")


def test_a_text_cut_at_a_stop_string_is_no_other_vocabulary(tmp_path: Path) -> None:
    cut = trace(0, [5, 6, 7])
    cut.text = cut.text[:2]
    with TraceWriter(tmp_path, provenance()) as writer:
        writer.write(cut)
    FrozenSet.read(Chosen(tmp_path)).check_vocabulary(tiny_tokenizer(), "same")


def test_an_empty_set_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no trace has policy random"):
        FrozenSet.read(Chosen(folder, policy="random"))
    with pytest.raises(FileNotFoundError, match="no traces at"):
        FrozenSet.read(Chosen(tmp_path / "nowhere"))
    with TraceWriter(tmp_path / "silent", provenance()) as writer:
        writer.write(trace(0, []))
    with pytest.raises(FrozenSetError, match="have no tokens"):
        FrozenSet.read(Chosen(tmp_path / "silent"))


def test_responses_without_token_ids_are_refused(folder: Path, tmp_path: Path) -> None:
    shard = min(folder.glob("*.parquet"))
    pq.write_table(pq.read_table(shard).drop(["prompt_ids"]), tmp_path / "traces-00000-x.parquet")
    with pytest.raises(TraceError, match="no column 'prompt_ids'"):
        FrozenSet.read(Chosen(tmp_path))
    pq.write_table(pa.table({"response_ids": [[1]]}), tmp_path / "other.parquet")
    with pytest.raises(TraceError, match="schema version none"):
        FrozenSet.read(Chosen(tmp_path / "other.parquet"))
