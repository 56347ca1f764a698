"""What a record tells of where it was made."""

from pathlib import Path

import pytest

from navtoken.commands.train_router import _told_apart
from navtoken.provenance import told


def test_of_paths_elsewhere_only_the_last_part_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert told(Path("out/labels")) == told(here / "out" / "labels") == "out/labels"
    assert told(tmp_path / "labels") == told(Path("../labels")) == "labels"
    assert told((Path("a"), tmp_path / "b")) == ["a", "b"]
    assert told({"a": 1}) == {"a": 1} and told(None) is None


def test_folders_that_are_called_alike_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "labels", tmp_path / "b" / "labels", tmp_path / "a" / "labels"]
    assert list(_told_apart(folders).items()) == [(folders[0], "labels"), (folders[1], "labels (2)")]
