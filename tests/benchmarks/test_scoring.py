"""The benchmark of scoring says what it should; how fast this is does not matter here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import scoring
from measuring import BenchmarkError
from navtoken.entropy import LMHead

SMALL = ["--positions", "64", "--slice", "16", "--vocabulary", "300", "--hidden", "8", "--json"]


def in_this_process(name: str, options: scoring.Options) -> dict[str, Any]:
    return scoring.extra_memory(name, options)


def test_every_way_is_beside_the_floor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(scoring, "memory_in_own_process", in_this_process)
    scoring.main([*SMALL, "--out", str(tmp_path / "scoring.json")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "scoring.json").read_text()) == result
    rows = {row["candidate"]: row for row in result["rows"]}
    assert {"head", "head in chunks", "ours", "naive"} <= rows.keys()
    assert min(rows[name]["over_floor"]["median"] for name in scoring.FLOORS) <= 1.0
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["ours"]["error_nats"] < 1e-5
    assert rows["head"]["error_nats"] is None
    assert [bar["name"] for bar in result["bars"]] == [
        "time of the bare LM-head product, of ours", "the same in CPU time", "naive's extra memory, over ours",
    ]  # fmt: skip


def test_memory_is_measured_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    options = scoring.Options(positions=4096, slice=1024, vocabulary=8192, hidden=8)
    found = scoring.memory_in_own_process("naive", options)
    # Log-probabilities, probabilities and their product.
    assert found["bytes"] == pytest.approx(3 * 4096 * 8192 * 4, rel=0.2)
    assert found["measured_positions"] == 4096
    with pytest.raises(BenchmarkError, match="there is no candidate 'nothing'"):
        scoring.extra_memory("nothing", options)


def test_what_does_not_fit_is_measured_in_part_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    options = scoring.Options(positions=64, slice=16, vocabulary=300, hidden=8)
    monkeypatch.setattr(scoring, "_resident_bytes", lambda _: 0)
    monkeypatch.setattr(scoring, "_peak_bytes", lambda _: 1000)
    memory = type("Memory", (), {"available": 3 * 300 * 4 * 16 / scoring.MOST_OF_MEMORY})
    monkeypatch.setattr(scoring.psutil, "virtual_memory", memory)
    assert scoring.extra_memory("naive", options) == {"bytes": 4000, "measured_positions": 16}
    assert scoring.extra_memory("ours", options) == {"bytes": 1000, "measured_positions": 64}


def test_a_round_gives_every_candidate_the_same_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    options = scoring.Options(positions=6, slice=2, vocabulary=10, hidden=4)
    inputs = scoring.Inputs(torch.arange(6.0)[:, None], torch.arange(6), LMHead(torch.ones(10, 1)))
    for name in ("head", "ours"):
        run = lambda hidden, ids, head, name=name: seen.append((name, int(hidden[0, 0])))
        monkeypatch.setitem(scoring.CANDIDATES, name, scoring.Candidate(run, 0))
    took = scoring.time_in_rounds(["head", "ours"], inputs, options)
    assert seen[2:] == [("head", 0), ("ours", 0), ("head", 2), ("ours", 2), ("head", 4), ("ours", 4)]
    assert [len(each) for each in took.values()] == [3, 3]


def test_slices_that_leave_positions_out_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="slice is 100"):
        scoring.Options(positions=8192, slice=100)
