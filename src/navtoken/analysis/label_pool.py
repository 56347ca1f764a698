"""Labelled traces read once: a few numbers of every token, and of continuations only some examples, however many there are.

Shapes: N tokens, labelled or not, R responses, T tokens of one.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from navtoken.labeling.labels import Label
from navtoken.trace import Trace

COLUMNS = (
    "label",
    "draft_ids",
    "entropy_slm",
    "entropy_llm",
    "logprob_slm",
    "logprob_llm",
    "continuation_ids",
)
"""Optional columns of traces that are looked at here or shown; features are left alone."""
NUM_EXAMPLES = 40
"""Places kept of each class, with both continuations; at most one of a response."""
NUM_SHOWN = 2
"""Whole responses kept of each task."""

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Example:
    """A place in a labelled response."""

    trace: Trace
    """With the columns of `COLUMNS` only."""
    position: int


@dataclass(frozen=True, eq=False)
class Pool:
    """Every token of the labelled responses, labelled or not, one response after the other."""

    token_N: Ids
    draft_N: Ids
    """-1 where the SLM was not asked."""
    label_N: NDArray[np.int8]
    entropy_N: NDArray[np.float32]
    """The SLM's, nats at T = 1; NaN where it is not known."""
    cluster_N: Ids
    """The problem, numbered over all tasks."""
    task_N: NDArray[np.int16]
    """Index into `tasks`."""
    start_R: NDArray[np.int64]
    """Where each response begins; its end follows from the next, the last one is the end of all."""
    tasks: tuple[str, ...]

    def around(self, position: int, before: int = 10, after: int = 8) -> tuple[list[int], int, list[int]]:
        """Ids before a position in its response, the one there, and those after it."""
        response = int(np.searchsorted(self.start_R, position, side="right")) - 1
        start, end = int(self.start_R[response]), int(self.start_R[response + 1])
        return (
            self.token_N[max(start, position - before) : position].tolist(),
            int(self.token_N[position]),
            self.token_N[position + 1 : min(end, position + 1 + after)].tolist(),
        )


class Gathering:
    """What is kept while traces go by."""

    def __init__(self) -> None:
        self.columns: dict[str, list[NDArray[np.generic]]] = defaultdict(list)
        self.lengths: list[int] = []
        self.problems: dict[tuple[str, str], int] = {}
        self.tasks: dict[str, int] = {}
        self.num_labelled = 0
        self.num_cut = 0
        self.cut_labels = np.zeros(len(Label), np.int64)
        """Labels in responses that reached the length limit."""
        self.examples: dict[Label, list[Example]] = defaultdict(list)
        self.shown: dict[str, list[Trace]] = defaultdict(list)
        self._seen: dict[Label, int] = defaultdict(int)
        self._rng = np.random.default_rng(0)

    def add(self, trace: Trace) -> None:
        """Take a trace; one without labels counts nowhere."""
        label = trace.columns.get("label")
        if label is None or not len(label):
            return
        label_T = np.asarray(label, dtype=np.int8)
        length = len(label_T)
        problem = self.problems.setdefault((trace.task, trace.problem_id), len(self.problems))
        task = self.tasks.setdefault(trace.task, len(self.tasks))
        self.num_labelled += bool((label_T >= 0).any())
        if trace.finish_reason == "length":
            self.num_cut += 1
            self.cut_labels += np.bincount(label_T[label_T >= 0], minlength=len(Label))
        self.lengths.append(length)
        for name, values in {
            "token": np.asarray(trace.response_ids, dtype=np.int32),
            "draft": _column(trace, "draft_ids", -1, np.int32),
            "label": label_T,
            "entropy": _column(trace, "entropy_slm", math.nan, np.float32),
            "cluster": np.full(length, problem, np.int32),
            "task": np.full(length, task, np.int16),
        }.items():
            self.columns[name].append(values)
        light = replace(trace, columns={k: v for k, v in trace.columns.items() if k in COLUMNS})
        self._keep_examples(light, label_T)
        self._keep_shown(light)

    def pool(self) -> Pool:
        joined = {name: np.concatenate(parts) for name, parts in self.columns.items()}
        return Pool(
            token_N=joined["token"],
            draft_N=joined["draft"],
            label_N=joined["label"],
            entropy_N=joined["entropy"],
            cluster_N=joined["cluster"],
            task_N=joined["task"],
            start_R=np.concatenate([[0], np.cumsum(self.lengths)]),
            tasks=tuple(self.tasks),
        )

    def _keep_shown(self, trace: Trace) -> None:
        """Of each task the first responses that came to an end, those first that have both kinds of differing tokens."""
        kept = self.shown[trace.task]
        kept.append(trace)
        kept.sort(key=_telling, reverse=True)
        del kept[NUM_SHOWN:]

    def _keep_examples(self, trace: Trace, label_T: NDArray[np.int8]) -> None:
        """A fair draw of the responses that have the class (reservoir), and of its places there."""
        for label in (Label.NEUTRAL, Label.DIVERGENT, Label.INVALID):
            places = np.flatnonzero(label_T == label)
            if not len(places):
                continue
            self._seen[label] += 1
            kept, example = self.examples[label], Example(trace, int(self._rng.choice(places)))
            if len(kept) < NUM_EXAMPLES:
                kept.append(example)
            elif (slot := int(self._rng.integers(self._seen[label]))) < NUM_EXAMPLES:
                kept[slot] = example


def _telling(trace: Trace) -> tuple[bool, int]:
    labels = set(np.asarray(trace.columns["label"]).tolist())
    return trace.finish_reason != "length", len(labels & {Label.NEUTRAL, Label.DIVERGENT})


def _column(trace: Trace, name: str, missing: float, dtype: type[np.generic]) -> NDArray[np.generic]:
    values = trace.columns.get(name)
    return np.full(len(trace.response_ids), missing, dtype) if values is None else np.asarray(values, dtype)
