"""Ranks other than the first: silent, and writing where nobody looks."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from navtoken.commands.ranks import console_for, own_output
from navtoken.commands.surroundings import progress_console


@dataclass(frozen=True)
class Options:
    out: Path | None = None


@dataclass(frozen=True)
class Others:
    prompt: str = "why"


@pytest.fixture
def second_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


def test_the_first_rank_keeps_its_folder(tmp_path: Path) -> None:
    assert own_output(Options(tmp_path)) == Options(tmp_path)
    assert not console_for(stderr=False).quiet


@pytest.mark.usefixtures("second_rank")
def test_another_rank_finds_what_is_done_and_changes_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "traces-00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "calibration.json").write_text("before")
    (tmp_path / ".traces-00001.parquet.tmp").write_bytes(b"half")
    own = own_output(Options(tmp_path)).out
    assert own is not None and own != tmp_path
    assert sorted(path.name for path in own.iterdir()) == ["calibration.json", "traces-00000.parquet"]
    assert (own / "traces-00000.parquet").read_bytes() == b"PAR1"
    # The first rank replaces this file when it has calibrated; who read the new one would not calibrate with it.
    (tmp_path / "calibration.json").write_text("after")
    assert (own / "calibration.json").read_text() == "before"
    (own / "more").write_text("x")
    assert not (tmp_path / "more").exists()
    assert own_output(Options(tmp_path / "not yet")).out is not None
    assert own_output(Options()) == Options()
    assert own_output(Others()) == Others()


@pytest.mark.usefixtures("second_rank")
def test_another_rank_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    console_for(stderr=False).print("to people")
    progress_console().print("progress")
    assert capsys.readouterr() == ("", "")
