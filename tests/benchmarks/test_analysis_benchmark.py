"""The benchmark's candidates read the same traces and agree; what they took is told as it was measured."""

import json
from pathlib import Path

import pytest

import analysis


def test_candidates_agree_and_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked: list[str] = []

    def launch(candidate: str, folder: Path, cores: int) -> analysis.Run:
        asked.append(candidate)
        percentile = analysis.WORK[candidate](folder)
        peak = 3e9 if candidate == "analysis" else 1e9
        return {
            "seconds": 2.0 if candidate == "analysis" else 0.5,
            "cpu_seconds": 0.4,
            "peak_bytes": peak,
            "held_before_bytes": 1e8,
            "percentile": percentile,
        }

    out = tmp_path / "analysis.json"
    args = [
        "--tokens",
        "40000",
        "--mean-length",
        "20",
        "--vocabulary",
        "500",
        "--repeats",
        "1",
        "--out",
        str(out),
    ]
    result = analysis.main([*args, "--json"], launch)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads(out.read_text())
    assert asked == list(analysis.CANDIDATES)
    assert result["corpus"]["tokens"] == 40_000
    assert result["corpus"]["shards"] > 1
    rows = {row["candidate"]: row for row in result["rows"]}
    assert rows["analysis"]["times_bare"]["median"] == 4.0
    assert rows["bare"]["times_bare"]["median"] == 1.0
    assert [bar["met"] for bar in result["bars"]] == [False, False]


def test_candidates_that_disagree_are_no_result() -> None:
    runs = {name: [{"percentile": value}] for name, value in (("analysis", 0.5), ("in memory", 0.6))}
    with pytest.raises(AssertionError):
        analysis._check_same_percentile(runs)
