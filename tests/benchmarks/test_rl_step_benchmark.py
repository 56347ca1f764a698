"""The benchmark of a training step has both trainers update from the same responses, and takes drawing out of the update."""

import json
from pathlib import Path

import pytest

import rl_step


def test_both_trainers_are_timed_on_the_same_responses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "rl_step.json"
    tiny = ["--model", "embedded:slm", "--prompts", "2", "--group", "2", "--max-tokens", "12"]
    result = rl_step.main(
        [*tiny, "--forward-rows", "4", "--steps", "2", "--repeats", "1", "--json", "--out", str(out)]
    )
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line) == json.loads(out.read_text())
    for row in result["rows"]:
        assert 0 < row["update"]["median"] < row["step"]["median"]
    ours, stock = result["rows"]
    assert result["ratios"]["step"]["median"] == stock["step"]["median"] / ours["step"]["median"]
