"""The journal has each step once, whatever was killed when, and what it was told is on disk."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navtoken.rlvr.journal import Journal, JournalCallback, JournalError
from watched_runs import run_steps, state_at


def steps(journal: Journal, kind: Any = "train") -> list[int]:
    return [record["step"] for record in journal.records(kind)]


def test_a_record_is_what_it_was_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    assert journal.records() == []
    data = {"loss": 0.5, "reward": float("nan"), "kl": None, "clip_ratio/low_min": float("inf"), "text": "Ü"}
    journal.append(
        "train", 3, data | {"numpy": np.float32(0.25), "torch": torch.tensor(2), "deep": {"a": [np.nan]}}
    )
    journal.append("held_out", 3, {"where": Path("x")})
    first, second = journal.records()
    assert first.pop("time") > 1.7e9
    assert first == {
        "kind": "train", "step": 3, "loss": 0.5, "reward": None, "kl": None, "clip_ratio/low_min": None, "text": "Ü",
        "numpy": 0.25, "torch": 2, "deep": {"a": [None]},
    }  # fmt: skip
    assert second["where"] == "x"
    assert journal.records("held_out") == [second]
    assert journal.has("held_out", 3)
    assert not journal.has("held_out", 2)
    assert not journal.has("drift", 3)


def test_numpy_scalars_that_are_not_there_are_null(tmp_path: Path) -> None:
    Journal(tmp_path).append("train", 1, {"a": np.float32("nan"), "b": torch.tensor(float("nan"))})
    (record,) = Journal(tmp_path).records()
    assert (record["a"], record["b"]) == (None, None)


def test_a_name_of_the_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        JournalError, match="train record has a field 'step', which is the journal's; rename it"
    ):
        Journal(tmp_path).append("train", 1, {"step": 2})
    assert not Journal(tmp_path).path.exists()


def test_a_record_is_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, synced = Journal(tmp_path), []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(journal.path.read_bytes()))
    journal.append("train", 1, {"loss": 1})
    assert len(synced) == 1
    assert json.loads(synced[0])["step"] == 1


# ---- kills ----------------------------------------------------------------------------------------------------


def killed(journal: Journal, lost: int) -> None:
    """The last `lost` bytes never reached the disk."""
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[: len(content) - lost])


@pytest.mark.parametrize("lost", [1, 2, 20])
def test_half_a_line_is_passed_over_and_then_cut_off(tmp_path: Path, lost: int) -> None:
    journal = Journal(tmp_path)
    for step in (1, 2, 3):
        journal.append("train", step, {"loss": step / 2})
    killed(journal, lost)
    before = journal.path.read_bytes()
    assert steps(journal) == [1, 2]
    assert journal.path.read_bytes() == before
    Journal(tmp_path).append("train", 3, {"loss": 9})
    assert steps(journal) == [1, 2, 3]
    assert journal.records()[-1]["loss"] == 9


def test_a_journal_of_half_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("train", 1, {})
    killed(journal, 5)
    assert journal.records() == []
    journal.append("train", 1, {})
    assert steps(journal) == [1]


def test_a_last_line_of_which_the_beginning_never_came(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("train", 1, {})
    with journal.path.open("ab") as file:
        file.write(b"\0" * 40 + b"1.5}\n")
    assert steps(journal) == [1]
    assert journal.rewind(1) == 0
    journal.append("train", 2, {})
    assert steps(journal) == [1, 2]


@pytest.mark.parametrize("line", ["{", '{"kind": "train"}', "3", '{"step": "1", "kind": "train"}'])
def test_another_broken_line_is_an_error(tmp_path: Path, line: str) -> None:
    journal = Journal(tmp_path)
    journal.append("train", 1, {})
    with journal.path.open("a") as file:
        file.write(line + "\n")
    journal.append("train", 2, {})
    with pytest.raises(JournalError, match=r"line 2 of .*journal\.jsonl is no record"):
        journal.records()


def test_rewinding_drops_later_steps_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.rewind(0) == 0
    assert not journal.path.exists()
    for step in range(5):
        journal.append("held_out", step, {})
        journal.append("train", step, {})
    untouched = journal.path.stat().st_ino
    assert journal.rewind(4) == 0
    assert journal.path.stat().st_ino == untouched
    assert journal.rewind(2) == 4
    assert [(record["kind"], record["step"]) for record in journal.records()] == [
        (kind, step) for step in range(3) for kind in ("held_out", "train")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


def test_rewinding_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    for step in range(4):
        journal.append("train", step, {})

    def fails(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no space"):
        journal.rewind(1)
    assert steps(journal) == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 400), st.integers(1, 3)), min_size=1, max_size=5))
def test_however_often_it_is_killed_each_step_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, lives: list[tuple[int, int, int]]
) -> None:
    """Each life makes some steps, loses the file's last bytes, and the next goes on from the last checkpoint that was there."""
    journal = Journal(tmp_path_factory.mktemp("lives"))
    checkpoint = 0
    for number, (num_steps, lost, every) in enumerate(lives):
        callback = JournalCallback(journal)
        run_steps([callback], checkpoint, checkpoint + num_steps, logs={"loss": number}, ends=False)
        reached = checkpoint + num_steps
        # A checkpoint is written after the journal's records of its step, which are on disk then.
        saved = max(checkpoint, reached - reached % every)
        safe = sum(
            len(line)
            for line in journal.path.read_bytes().splitlines(True)
            if json.loads(line)["step"] <= saved
        )
        killed(journal, min(lost, journal.path.stat().st_size - safe))
        checkpoint = saved
    run_steps([JournalCallback(journal)], checkpoint, checkpoint + 2, logs={"loss": 1})
    assert steps(journal) == list(range(1, checkpoint + 3))


# ---- the trainer's part ---------------------------------------------------------------------------------------


def test_what_a_run_leaves(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    callback = JournalCallback(journal, {"seed": 3, "out": Path("out/rl")})
    logs = {
        "loss": 0.5,
        "rewards/verifier/mean": 0.25,
        "held_out/accuracy": 0.5,
        "drift/overlap": 0.9,
        "kl": None,
    }
    run_steps([callback], 0, 2, max_steps=2, logs=logs)
    begin, first, second, end = journal.records()
    assert (begin["kind"], begin["event"], begin["step"], begin["max_steps"]) == ("phase", "begin", 0, 2)
    assert begin["settings"] == {"seed": 3, "out": "out/rl"}
    for step, record in enumerate((first, second), 1):
        assert record.pop("time")
        # Watchers write their own figures.
        assert record == {
            "kind": "train",
            "step": step,
            "loss": 0.5,
            "rewards/verifier/mean": 0.25,
            "kl": None,
        }
    assert (end["kind"], end["event"], end["step"], end["train_runtime"]) == ("phase", "end", 2, 1.5)


def test_a_resumption_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    run_steps([JournalCallback(journal)], 0, 5, logs={"loss": 1.0}, ends=False)
    run_steps([JournalCallback(journal)], 3, 6, logs={"loss": 2.0}, ends=False)
    assert steps(journal) == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in journal.records("train")] == [1, 1, 1, 2, 2, 2]
    assert [(each["event"], each["step"]) for each in journal.records("phase")] == [
        ("begin", 0),
        ("resume", 3),
    ]


def test_logs_that_are_no_step_are_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    callback = JournalCallback(journal)
    callback.on_log(None, state_at(1), None, logs={"eval_loss": 0.5})
    callback.on_log(None, state_at(1), None, logs=None)
    assert journal.records() == []


def test_the_main_rank_alone_writes(tmp_path: Path) -> None:
    run_steps([JournalCallback(Journal(tmp_path))], 0, 2, main=False)
    assert list(tmp_path.iterdir()) == []
