"""Problems whose responses got no labels, as the length limit cut them off: kept beside the labels.

Whoever looks for an LLM share of all problems must route these, too: their responses are the longest.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from navtoken.trace import Trace

FILE = "left_out.json"


class LeftOut(NamedTuple):
    """A problem as it was put to the LLM."""

    task: str
    problem_id: str
    prompt_ids: tuple[int, ...]


def keep_left_out(folder: Path, traces: Iterable[Trace]) -> None:
    """Add the problems of these responses to those that the folder holds; written aside and renamed."""
    before = read_left_out(folder)
    new = (LeftOut(trace.task, trace.problem_id, tuple(trace.prompt_ids)) for trace in traces)
    problems = tuple(dict.fromkeys((*before, *new)))
    if problems == before:
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{FILE}.tmp"
    temporary.write_text(json.dumps([each._asdict() for each in problems]) + "\n")
    temporary.replace(folder / FILE)


def read_left_out(folder: Path) -> tuple[LeftOut, ...]:
    """Problems that were left out of a folder of labels; none of one shard alone."""
    path = folder / FILE
    if not path.is_file():
        return ()
    return tuple(
        LeftOut(each["task"], each["problem_id"], tuple(each["prompt_ids"]))
        for each in json.loads(path.read_text())
    )
