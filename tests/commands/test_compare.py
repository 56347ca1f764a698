"""`navtoken compare` as a person runs it: figures, page, errors in one line, and going on where it stopped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navtoken.analysis import frozen as frozen_module
from navtoken.cli import main
from navtoken.commands import compare
from navtoken.trace import read_traces
from small_runs import saved_pair

Capture = pytest.CaptureFixture[str]
SMALL = ["--task", "arithmetic", "--num", "4", "--max-tokens", "12", "--resamples", "20", "--min-count", "1"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    slm, llm = saved_pair(tmp_path_factory.mktemp("pair"))
    return ["--slm", slm, "--llm", llm]


def run(args: list[str], capsys: Capture) -> dict[str, Any]:
    assert main(["compare", *args, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def refused(args: list[str], capsys: Capture) -> str:
    assert main(["compare", *args]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    return line


def test_what_it_finds_and_where_it_lies(pair: list[str], tmp_path: Path, capsys: Capture) -> None:
    result = run([*pair, *SMALL, "--out", str(tmp_path)], capsys)
    traces = list(read_traces(tmp_path / "traces"))
    assert result["num_responses"] == len(traces) == 4
    assert result["num_tokens"] == sum(len(trace.response_ids) for trace in traces)
    assert {trace.policy for trace in traces} == {"llm"}
    assert result["parting"] == "differs"
    # On greedy responses the LLM's argmax is its token, so these are R2R's positions that are not identical.
    scores = {path.parent.name: dict(np.load(path)) for path in (tmp_path / "scores").rglob("*.npz")}
    written = [i for trace in traces for i in trace.response_ids]
    argmaxes = [each["argmax"].tolist() for each in scores.values()]
    assert written in argmaxes
    (slm,) = [each for each in argmaxes if each != written]
    differs = sum(a != b for a, b in zip(slm, written, strict=True)) / len(written)
    assert result["shares"]["differs"]["value"] == pytest.approx(differs)
    entropy = np.concatenate([trace.columns["entropy_llm"] for trace in traces])
    count = int(np.ceil(round(0.2 * len(entropy), 6)))
    assert result["thresholds"]["forking_llm"] == pytest.approx(float(np.sort(entropy)[-count]), rel=1e-4)
    saved = json.loads((tmp_path / "compare.json").read_text())
    assert saved == {name: value for name, value in result.items() if name != "page"}
    assert saved["provenance"]["fingerprints"].keys() == {"slm", "llm", "tokenizer", "responses"}
    page = (tmp_path / "index.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "SLM entropy" in page


def test_run_again_it_scores_nothing_twice(
    pair: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run([*pair, *SMALL, "--out", str(tmp_path)], capsys)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(frozen_module, "score_responses", never)
    again = run([*pair, *SMALL, "--out", str(tmp_path)], capsys)
    for result in (first, again):
        del result["provenance"]["created"]
    assert again == first


def test_scores_that_the_traces_carry_are_read(
    pair: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = run([*pair, *SMALL, "--out", str(tmp_path / "a")], capsys)
    traces = tmp_path / "a" / "traces"
    for whose, model in (("slm", pair[1]), ("llm", pair[3])):
        scored = tmp_path / whose
        assert main(["score", str(traces), "--model", model, "--as", whose, "--out", str(scored)]) == 0
        traces = scored
    capsys.readouterr()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(frozen_module, "score_responses", never)
    read = run(
        [str(traces), *pair, "--resamples", "20", "--min-count", "1", "--out", str(tmp_path / "b")], capsys
    )
    assert not (tmp_path / "b" / "scores").exists()
    for name in ("shares", "agreements", "equal_size", "corners", "rarity"):
        assert read[name] == computed[name]
    assert "margin" in (tmp_path / "b" / "index.html").read_text()


def test_given_traces_and_fewer_problems(pair: list[str], tmp_path: Path, capsys: Capture) -> None:
    run([*pair, *SMALL, "--out", str(tmp_path / "a")], capsys)
    given = [str(tmp_path / "a" / "traces"), *pair, "--resamples", "0", "--min-count", "1"]
    whole = run([*given, "--out", str(tmp_path / "b")], capsys)
    fewer = run([*given, "--num", "2", "--out", str(tmp_path / "b")], capsys)
    assert (whole["num_problems"], fewer["num_problems"]) == (4, 2)
    assert whole["shares"]["differs"]["low"] is None
    assert not (tmp_path / "b" / "traces").exists()


def test_the_terminal_shows_words_and_tables(pair: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main(["compare", *pair, *SMALL, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "SLM and LLM differ at" in out
    assert "ROC area" in out
    tables = [line for line in out.splitlines() if not line.startswith("page:")]
    assert max(map(len, tables)) <= 80


def test_a_pair_that_never_differs_still_has_a_page(pair: list[str], tmp_path: Path, capsys: Capture) -> None:
    llm = pair[-1]
    result = run(["--slm", llm, "--llm", llm, *SMALL, "--out", str(tmp_path)], capsys)
    assert result["shares"]["differs"]["value"] == 0.0
    assert any("No signal can be tested" in line for line in result["findings"])


def test_what_it_refuses(pair: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert "no traces at" in refused([str(tmp_path / "none"), *pair], capsys)
    assert "fraction is 1.5" in refused(["--fraction", "1.5", *pair], capsys)
    assert "chooses among TRACES" in refused(["--policy", "llm", *pair], capsys)
    assert "TRACES are given" in refused([str(tmp_path), "--samples", "2", *pair], capsys)
    run([*pair, *SMALL, "--out", str(tmp_path / "a")], capsys)
    # The embedded pair's tokenizer is another one.
    other = refused([str(tmp_path / "a" / "traces"), "--out", str(tmp_path / "b")], capsys)
    assert "shares the tokenizer" in other
    assert not (tmp_path / "b" / "scores").exists()


def test_options_come_from_a_file_too(pair: list[str], tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("task: [arithmetic]\nnum: 2\nmax_tokens: 6\nresamples: 0\nfraction: 0.5\n")
    result = run([*pair, "--config", str(config), "--out", str(tmp_path / "o")], capsys)
    assert result["fraction"] == 0.5
    assert result["num_problems"] == 2
    assert compare.CompareOptions().fraction == 0.2
