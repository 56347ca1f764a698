"""`navtoken score`: columns beside responses that are there, resumed where it stopped, refused where they do not fit."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from navtoken.analysis.frozen import SCORES
from navtoken.analysis.scoring import ScoringError
from navtoken.checkpoints import ModelPair
from navtoken.cli import main
from navtoken.commands import score
from navtoken.commands.score import ScoreOptions
from navtoken.generation import GenerateOptions, generate
from navtoken.trace import TraceError, TraceWriter, read_provenance, read_traces
from small_runs import few, saved_pair
from tiny_models import tiny_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    slm, llm = (tiny_model("qwen3", seed, max_position_embeddings=512) for seed in (0, 1))
    return ModelPair(slm, llm)


@pytest.fixture
def traces(tmp_path: Path, pair: ModelPair) -> Path:
    """Responses of the LLM alone, and of both."""
    folder = tmp_path / "traces"
    generate(GenerateOptions(generation=few(policy=("llm", "random:0.4")), out=folder), pair)
    return folder


def run(pair: ModelPair, traces: Path, out: Path, reader: int = 1, **changes: Any) -> dict[str, Any]:
    return score.run(ScoreOptions(traces, out=out, **changes), Console(file=io.StringIO()), pair[reader])


def test_scores_are_what_the_engine_saw(pair: ModelPair, traces: Path, tmp_path: Path) -> None:
    result = run(pair, traces, tmp_path / "llm")
    before, after = list(read_traces(traces)), list(read_traces(tmp_path / "llm"))
    assert result["whose"] == "llm"
    assert result["num_responses"] == result["num_scored"] == len(after) == len(before) == 10
    assert result["num_tokens"] == sum(len(trace.response_ids) for trace in before)
    for old, new in zip(before, after, strict=True):
        assert old.key == new.key
        assert old.response_ids == new.response_ids
        for name in ("entropy_llm", "logprob_llm"):
            assert not np.isnan(new.columns[name]).any()
            if old.policy == "llm":
                np.testing.assert_allclose(new.columns[name], old.columns[name], atol=1e-5)
        if "entropy_slm" in old.columns:
            np.testing.assert_array_equal(new.columns["entropy_slm"], old.columns["entropy_slm"])
        margin, likeliest = new.columns["margin_llm"], new.columns["argmax_llm"]
        assert ((margin >= 0) & (margin <= 1)).all()
        if old.policy == "llm":
            # Greedy: the LLM wrote what it holds likeliest.
            assert likeliest.tolist() == new.response_ids
            # With a margin m the likeliest token has at least probability m.
            assert (np.exp(new.columns["logprob_llm"]) >= margin - 1e-5).all()
    values = np.concatenate([trace.columns["entropy_llm"] for trace in after])
    assert result["mean_entropy"] == pytest.approx(float(values.mean()), rel=1e-5)


def test_the_slm_that_wrote_is_known_by_its_weights(pair: ModelPair, traces: Path, tmp_path: Path) -> None:
    assert run(pair, traces, tmp_path / "slm", reader=0)["whose"] == "slm"
    assert run(pair, traces, tmp_path / "forced", reader=0, whose="llm")["whose"] == "llm"
    stranger = tiny_model("qwen3", 9, max_position_embeddings=512)
    options = ScoreOptions(traces, out=tmp_path / "stranger")
    assert score.run(options, Console(file=io.StringIO()), stranger)["whose"] == "llm"


def test_provenance_names_writers_and_reader(pair: ModelPair, traces: Path, tmp_path: Path) -> None:
    run(pair, traces, tmp_path / "a", reader=0)
    run(pair, tmp_path / "a", tmp_path / "b")
    record = read_provenance(tmp_path / "b")
    assert record["fingerprints"] == {
        "slm": pair.slm.fingerprint,
        "llm": pair.llm.fingerprint,
        "scores_slm": pair.slm.fingerprint,
        "scores_llm": pair.llm.fingerprint,
        "tokenizer": read_provenance(traces)["fingerprints"]["tokenizer"],
    }
    assert record["source"]["source"]["arguments"]["policy"] == ["llm", "random:0.4"]
    columns = next(read_traces(tmp_path / "b")).columns
    assert {f"{name}_{whose}" for name in SCORES for whose in ("slm", "llm")} <= set(columns)


def test_only_what_is_asked_for_is_scored(pair: ModelPair, traces: Path, tmp_path: Path) -> None:
    keys = frozenset(trace.key for trace in read_traces(traces) if trace.policy == "llm")
    options, console = ScoreOptions(traces, out=tmp_path / "some"), Console(file=io.StringIO())
    result = score.run(options, console, pair.llm, keys)
    assert result["num_responses"] == result["num_scored"] == 5
    assert {trace.key for trace in read_traces(tmp_path / "some")} == keys
    assert score.run(options, console, pair.llm)["num_scored"] == 5


def test_an_interrupted_run_goes_on(
    pair: ModelPair, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain = tmp_path / "out", score.scored_traces

    def interrupted(*args: Any) -> Any:
        for number, trace in enumerate(plain(*args)):
            if number == 4:
                raise KeyboardInterrupt
            yield trace

    monkeypatch.setattr(score, "scored_traces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(pair, traces, out)
    assert len(list(read_traces(out))) == 4
    monkeypatch.setattr(score, "scored_traces", plain)
    result = run(pair, traces, out)
    assert (result["num_responses"], result["num_scored"]) == (10, 6)
    assert [trace.key for trace in read_traces(out)] == [trace.key for trace in read_traces(traces)]
    again = run(pair, traces, out)
    assert (again["num_scored"], again["mean_entropy"]) == (0, None)


def test_a_folder_takes_the_scores_of_one_checkpoint(pair: ModelPair, traces: Path, tmp_path: Path) -> None:
    run(pair, traces, tmp_path / "out")
    with pytest.raises(TraceError, match="use another folder") as caught:
        run(pair, traces, tmp_path / "out", reader=0)
    for loaded in (pair.slm, pair.llm):
        assert loaded.fingerprint not in str(caught.value)
        assert loaded.fingerprint[:12] in str(caught.value)
    with pytest.raises(TraceError, match="scores_llm.*now it is.*scores_slm"):
        run(pair, traces, tmp_path / "out", whose="slm")


def test_another_response_of_the_same_name_is_refused(pair: ModelPair, traces: Path, tmp_path: Path) -> None:
    run(pair, traces, tmp_path / "out")
    with TraceWriter(tmp_path / "others", read_provenance(traces)) as writer:
        for trace in read_traces(traces):
            changed = list(reversed(trace.response_ids))
            writer.write(replace(trace, response_ids=changed))
    with pytest.raises(ScoringError, match="scores of another response as .* name another folder"):
        run(pair, tmp_path / "others", tmp_path / "out")


# ---- the command line ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return saved_pair(tmp_path_factory.mktemp("pair"))


def refused(args: list[str], capsys: Capture) -> str:
    assert main(args) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_the_command_ends_in_one_json_object(
    saved: tuple[str, str], traces: Path, tmp_path: Path, capsys: Capture
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("whose: slm\nbatch_tokens: 64\n")
    args = [
        "score",
        str(traces),
        "--model",
        saved[1],
        "--config",
        str(config),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*args, "--json"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    result = json.loads(out)
    assert result["columns"] == ["entropy_slm", "logprob_slm", "argmax_slm", "margin_slm"]
    assert result["num_scored"] == 10
    assert (
        main(["score", str(traces), "--model", saved[1], "--as", "llm", "--out", str(tmp_path / "llm")]) == 0
    )
    assert "entropy_llm, logprob_llm, argmax_llm, margin_llm in" in capsys.readouterr().out


def test_what_cannot_be_scored_is_said_in_one_line(
    saved: tuple[str, str], pair: ModelPair, traces: Path, tmp_path: Path, capsys: Capture
) -> None:
    def line(path: Path, *flags: str) -> str:
        return refused(
            ["score", str(path), "--model", saved[1], "--out", str(tmp_path / "out"), *flags], capsys
        )

    assert "no traces at" in line(tmp_path / "nowhere")
    (tmp_path / "text.parquet").write_text("no Parquet")
    assert "text.parquet" in line(tmp_path / "text.parquet")
    assert "name another folder with --out" in line(traces, "--out", str(traces))
    assert "batch_tokens is 0" in line(traces, "--batch-tokens", "0")
    trace = next(iter(read_traces(traces)))
    for name, changes, words in (
        ("ids", {"response_ids": [3, 5000], "writer": [1, 1], "columns": {}}, "token id 5000"),
        ("text", {"text": "what is this"}, "says 'what is this', and its token ids read"),
    ):
        with TraceWriter(tmp_path / name, {}) as writer:
            writer.write(replace(trace, **changes))
        assert words in line(tmp_path / name)
    assert "neither a folder here nor a hub id" in line(traces, "--model", "/nowhere")
