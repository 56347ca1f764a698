"""Scores on disk, through kills and among processes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navtoken.rlvr.rubric_cache import FILE, ScoreCache

SCORES = st.dictionaries(st.text("abc0", min_size=1, max_size=8), st.none() | st.floats(0, 1), max_size=6)


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES, st.data())
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_takes_new_ones(
    tmp_path_factory: pytest.TempPathFactory,
    first: dict[str, float | None],
    second: dict[str, float | None],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    cache = ScoreCache(folder)
    # Where in the file each score has ended: the end of its line may be missing.
    ends = {}
    for key, score in first.items():
        cache.put(key, score)
        ends[key] = (folder / FILE).stat().st_size - 1
    raw = (folder / FILE).read_bytes()
    cut = data.draw(st.integers(0, len(raw)))
    (folder / FILE).write_bytes(raw[:cut])
    known = {key: score for key, score in first.items() if score is not None and ends[key] <= cut}
    again = ScoreCache(folder)
    assert {key: again.get(key) for key in first if key in again} == known
    for key, score in second.items():
        again.put(key, score)
    kept = known | {key: score for key, score in second.items() if score is not None}
    last = ScoreCache(folder)
    assert {key: last.get(key) for key in first | second if key in last} == kept


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"[1]",
        b"3",
        b'{"key": "a"}',
        b'{"key": 3, "score": 0.5}',
        b'{"key": "a", "score": "0.5"}',
        b'{"key": "a", "score": true}',
        b'{"key": "a", "score": NaN}',
        b'{"key": "a", "score": 7}',
        b'{"key": "a", "score": null}',
        b"[" * 100_000,
        b"\0" * 40,
    ],
)
def test_lines_that_are_no_records_are_passed_over(tmp_path: Path, line: bytes) -> None:
    (tmp_path / FILE).write_bytes(line + b'\n{"key": "b", "score": 1}\n')
    cache = ScoreCache(tmp_path)
    assert len(cache) == 1 and cache.get("b") == 1.0


def test_processes_share_a_file(tmp_path: Path) -> None:
    caches = [ScoreCache(tmp_path) for _ in range(4)]

    def put(number: int) -> None:
        for index in range(50):
            caches[number].put(f"{number}-{index}", 0.5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(4)))
    assert len(ScoreCache(tmp_path)) == 200
