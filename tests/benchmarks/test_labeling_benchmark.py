"""The labelling benchmark runs both ways on the same continuations and counts what each computed."""

import json
from pathlib import Path

import pytest

import labeling


def test_both_ways_write_the_same_and_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "labeling.json"
    small = ["--problems", "3", "--responses", "1", "--tokens", "60", "80", "--prompt-tokens", "8"]
    tiny = ["--hidden", "64", "--layers", "1", "--repeats", "1", "--rows", "16"]
    result = labeling.main([*small, *tiny, "--json", "--out", str(out)])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads(out.read_text())
    embedded, random = result["workloads"]
    assert embedded["mean_length"] >= labeling.LEAST
    for workload in (embedded, random):
        shared, scratch = workload["rows"]
        assert workload["token_ratio"] == scratch["llm_tokens"] / shared["llm_tokens"] > 1
        assert workload["same_continuations"] == workload["continuations"] > 0
    assert [bar["got"] for bar in result["bars"][:2]] == [embedded["token_ratio"], random["token_ratio"]]
