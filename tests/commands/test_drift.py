"""`navtoken drift` as a person runs it: figures, page, errors in one line, and checkpoints added later."""

import json
from pathlib import Path
from typing import Any

import pytest

from navtoken.analysis import frozen as frozen_module
from navtoken.cli import main
from navtoken.trace import read_traces
from small_runs import saved_pair

Capture = pytest.CaptureFixture[str]
SMALL = ["--task", "arithmetic", "--num", "3", "--max-tokens", "12", "--resamples", "20", "--min-count", "1"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return saved_pair(tmp_path_factory.mktemp("pair"))


def models(*references: str) -> list[str]:
    return [part for reference in references for part in ("--model", reference)]


def run(args: list[str], capsys: Capture) -> dict[str, Any]:
    assert main(["drift", *args, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def refused(args: list[str], capsys: Capture) -> str:
    assert main(["drift", *args]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_what_it_finds_and_where_it_lies(
    checkpoints: tuple[str, str], tmp_path: Path, capsys: Capture
) -> None:
    base, last = checkpoints
    result = run([*models(base, last), *SMALL, "--out", str(tmp_path)], capsys)
    traces = list(read_traces(tmp_path / "traces"))
    assert result["num_tokens"] == sum(len(trace.response_ids) for trace in traces)
    assert all(trace.sampling["temperature"] == 1.0 for trace in traces)
    assert [each["name"] for each in result["checkpoints"]] == [base, last]
    first, second = result["checkpoints"]
    assert first["overlap_base"]["value"] == second["overlap_final"]["value"] == 1.0
    # Told from either side it is the same overlap, its interval included.
    assert first["overlap_final"] == second["overlap_base"]
    assert second["overlap_base"]["value"] < 1.0
    assert sum(result["changes"].values()) == result["num_tokens"]
    assert result["changes"]["1"] == 2 * result["num_left"]
    # The responses' own entropies are those of the model that wrote them.
    mean = sum(trace.columns["entropy_llm"].sum() for trace in traces) / result["num_tokens"]
    assert second["mean_entropy"] == pytest.approx(float(mean), rel=1e-4)
    saved = json.loads((tmp_path / "drift.json").read_text())
    assert saved == {name: value for name, value in result.items() if name != "page"}
    page = (tmp_path / "index.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "What leaves the top 20 %" in page


def test_only_what_is_new_is_scored(
    checkpoints: tuple[str, str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, last = checkpoints
    args = [*SMALL, "--out", str(tmp_path)]
    run([*models(last, last), *args], capsys)
    real, scored = frozen_module.score_responses, []

    def counted(loaded: Any, *rest: Any, **options: Any) -> Any:
        scored.append(loaded.reference)
        return real(loaded, *rest, **options)

    monkeypatch.setattr(frozen_module, "score_responses", counted)
    result = run([*models(base, last, last), *args], capsys)
    assert scored == [base]
    assert [each["overlap_final"]["value"] for each in result["checkpoints"]][1:] == [1.0, 1.0]
    assert set(result["changes"]) == {"0", "1"}


def test_given_traces(checkpoints: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    made = run([*models(*checkpoints), *SMALL, "--out", str(tmp_path / "a")], capsys)
    given = [str(tmp_path / "a" / "traces"), *models(*checkpoints), "--resamples", "20", "--min-count", "1"]
    again = run([*given, "--out", str(tmp_path / "b")], capsys)
    assert again["checkpoints"] == made["checkpoints"]


def test_the_terminal_shows_words_and_a_row_per_checkpoint(
    checkpoints: tuple[str, str], tmp_path: Path, capsys: Capture
) -> None:
    assert main(["drift", *models(*checkpoints), *SMALL, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "change sides" in out
    assert "top as base's" in out


def test_what_it_refuses(checkpoints: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    base, last = checkpoints
    assert "1 checkpoint; give --model at least twice" in refused(models(base), capsys)
    assert "no traces at" in refused([str(tmp_path / "none"), *models(base, last)], capsys)
    assert "neither a folder here nor a hub id" in refused(models(base, "nowhere"), capsys)
    run([*models(base, last), *SMALL, "--out", str(tmp_path / "a")], capsys)
    traces = str(tmp_path / "a" / "traces")
    other = refused([traces, *models(base, "embedded:llm"), "--out", str(tmp_path / "b")], capsys)
    assert "under the tokenizer of 'embedded:llm'" in other or "'embedded:llm' knows" in other
    assert not (tmp_path / "b" / "scores").exists()
    assert "no trace has task countdown" in refused(
        [traces, *models(base, last), "--task", "countdown"], capsys
    )


def test_a_response_of_few_tokens_has_no_empty_bins_in_words(
    checkpoints: tuple[str, str], tmp_path: Path, capsys: Capture
) -> None:
    few = ["--task", "arithmetic", "--num", "1", "--max-tokens", "3", "--resamples", "0"]
    result = run([*models(*checkpoints), *few, "--out", str(tmp_path)], capsys)
    assert result["num_tokens"] <= 3
    page = (tmp_path / "index.html").read_text()
    assert "nan" not in " ".join(result["findings"])
    assert "nan nats" not in page
