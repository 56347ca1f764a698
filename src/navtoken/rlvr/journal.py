"""What a run has done, one JSON line a record, on disk before the run goes on.

Checkpoints hold the weights and lose the way there: figures of steps after the last checkpoint are gone, and a resumed run would write
them a second time. So every record knows its step, is on the disk before the next step begins, and those of steps that a resumption
takes back are dropped: however often a run is killed, it has each step once.

A kill may leave half a line at the end. Readers pass over it, and whoever writes next cuts it off. Any other broken line is
no work of a kill, and an error.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any, BinaryIO, Literal, get_args

from transformers import TrainerCallback

from navtoken.analysis.plain import plain

Record = dict[str, Any]
"""`kind`, `step`, `time` (seconds since 1970), and what the kind has."""
Kind = Literal["phase", "train", "held_out", "drift"]
"""Beginning, resumption or end with settings; one optimizer step; an evaluation; a look at the frozen responses."""

NAME = "journal.jsonl"
_OWN = ("kind", "step", "time")
_ELSEWHERE = tuple(f"{kind}/" for kind in get_args(Kind))


class JournalError(ValueError):
    """A journal that cannot be read, or a record that cannot be written."""


class Journal:
    """The records of one run, in the order in which they were made. One process writes, any may read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def append(self, kind: Kind, step: int, data: Mapping[str, Any]) -> None:
        """Write a record; it is on the disk when this returns. A number that is not there (NaN, None) becomes null.

        Raises `JournalError` for data with a name of the journal's own.
        """
        if taken := sorted(set(_OWN) & set(data)):
            raise JournalError(f"a {kind} record has a field '{taken[0]}', which is the journal's; rename it")
        record = {"kind": kind, "step": step, "time": round(time(), 3), **_plain(data)}
        line = json.dumps(record, allow_nan=False, default=str).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.truncate(_end_of_last_line(file))
            file.write(line)
            _to_disk(file)

    def records(self, kind: Kind | None = None) -> list[Record]:
        """All records, or those of a kind. Raises `JournalError` for a broken line other than the last."""
        return [record for _, record in self._lines() if kind in (None, record["kind"])]

    def has(self, kind: Kind, step: int) -> bool:
        """Is there such a record of this step?"""
        return any(record["step"] == step for record in self.records(kind))

    def rewind(self, step: int) -> int:
        """Drop the records of later steps, and half a line at the end; returns how many records were dropped."""
        lines = self._lines()
        kept = [line + b"\n" for line, record in lines if record["step"] <= step]
        content = b"".join(kept)
        if content != self._content():
            self._replace(content)
        return len(lines) - len(kept)

    def _lines(self) -> list[tuple[bytes, Record]]:
        """Each whole line, and what it says."""
        # What follows the last line end was not written to its end.
        lines = self._content().split(b"\n")[:-1]
        parsed = [_parsed(line) for line in lines]
        if parsed and parsed[-1] is None:
            # The pages of a line may reach the disk in any order: its end may be there, and its beginning not.
            parsed.pop()
        found = []
        for number, (line, record) in enumerate(zip(lines, parsed, strict=False), 1):
            if record is None:
                raise JournalError(
                    f"line {number} of {self.path} is no record of a journal: {line[:60]!r}; mend or delete that line"
                )
            found.append((line, record))
        return found

    def _content(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def _replace(self, content: bytes) -> None:
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            with partial.open("wb") as file:
                file.write(content)
                _to_disk(file)
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    known = isinstance(record, dict) and isinstance(record.get("step"), int) and "kind" in record
    return record if known else None


def _end_of_last_line(file: BinaryIO) -> int:
    """Bytes up to the last line end, itself included."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read() in (b"", b"\n"):
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _plain(data: Mapping[str, Any]) -> Record:
    """As JSON takes it; scalars of numpy and torch become numbers."""
    record: Record = plain(
        {name: each.item() if hasattr(each, "item") else each for name, each in data.items()}
    )
    return record


# ---- the trainer's part ---------------------------------------------------------------------------------------


class JournalCallback(TrainerCallback):
    """Writes what a trainer logs to the journal, a record an optimizer step; on the main rank only.

    At the beginning of training it drops what a resumption takes back. Watchers write their figures themselves, and these are left out
    here though they are among the logs.
    """

    def __init__(self, journal: Journal, settings: Mapping[str, Any] | None = None) -> None:
        """`settings` stand in the record of the beginning, and of each resumption."""
        self.journal = journal
        self.settings = settings or {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.journal.rewind(state.global_step)
        event = "resume" if self.journal.records("phase") else "begin"
        self._phase(state, event, {"settings": self.settings})

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        own = {name: value for name, value in logs.items() if not name.startswith(_ELSEWHERE)}
        if "loss" in own:
            self.journal.append("train", state.global_step, own)
        elif "train_runtime" in own:
            self._phase(state, "end", own)

    def _phase(self, state: Any, event: str, data: Mapping[str, Any]) -> None:
        self.journal.append(
            "phase", state.global_step, {"event": event, "max_steps": state.max_steps, **data}
        )
