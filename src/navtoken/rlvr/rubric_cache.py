"""Scores that were paid for, kept through crashes and for the next run.

One file of JSON lines that is only ever appended to, each line by one write as soon as its answer is there. A killed run leaves at
most half a line; each record starts a line of its own, so the half never swallows the next, and a reader skips what is no
record. Several processes may append to one file: on a local disk appends do not mix, elsewhere a mixed line is skipped and
asked about again.
"""

import json
import math
from pathlib import Path

FILE = "rubric_scores.jsonl"


class ScoreCacheError(ValueError):
    """A folder that cannot hold scores."""


class ScoreCache:
    """Scores from 0 to 1 by key, in memory, and in a folder where one is given. None is an answer without a score."""

    def __init__(self, folder: Path | None) -> None:
        """Reads what is there. Raises `ScoreCacheError` for a folder that cannot be written to."""
        self._scores: dict[str, float | None] = {}
        self._path = None if folder is None else folder / FILE
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._append(b"")
            self._scores |= _records(self._path.read_bytes())
        except OSError as error:
            raise ScoreCacheError(
                f"scores cannot be kept in '{folder}' ({error.strerror}); name another folder with cache=FOLDER"
            ) from error

    def __contains__(self, key: str) -> bool:
        return key in self._scores

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, key: str) -> float | None:
        """The score; None where there is none, or none is known."""
        return self._scores.get(key)

    def put(self, key: str, score: float | None) -> None:
        """Keep an answer. One without a score is kept in memory alone: the next run may ask better."""
        self._scores[key] = score
        if score is not None:
            self._append(f"\n{json.dumps({'key': key, 'score': score})}\n".encode())

    def _append(self, line: bytes) -> None:
        if self._path is not None:
            with self._path.open("ab", buffering=0) as file:
                file.write(line)


def _records(raw: bytes) -> dict[str, float]:
    records = (_record(line) for line in raw.split(b"\n") if line)
    return dict(record for record in records if record is not None)


def _record(line: bytes) -> tuple[str, float] | None:
    try:
        row = json.loads(line)
        key, score = row["key"], row["score"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(key, str) or isinstance(score, bool) or not isinstance(score, int | float):
        return None
    return (key, float(score)) if math.isfinite(score) and 0 <= score <= 1 else None
