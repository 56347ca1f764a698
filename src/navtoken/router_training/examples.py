"""Labelled traces as examples: what a router will see of a draft, and what was said of it.

Millions of labels with a hundred logits each need more memory than a machine has, and a random order of them cannot be read from
Parquet. So they are copied once into plain arrays on disk, of which a batch reads its rows.

Shapes: N examples, K logits, D hidden size, V vocabulary.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from navtoken.labeling.labels import Label
from navtoken.labeling.left_out import read_left_out
from navtoken.router.features import DraftFeatures
from navtoken.router.splits import PARTS, Part, part_of
from navtoken.trace import Trace, TraceError, read_provenance, read_traces, shard_paths

Target = Literal["divergent", "different"]
"""What a router learns to find: tokens that part the paths, or all at which the models differ."""

READ = ("label", "draft_ids", "entropy_slm", "slm_top_ids", "slm_top_logits", "slm_hidden")
"""Columns of labelled traces that examples are made of."""
VALID = (Label.IDENTICAL, Label.NEUTRAL, Label.DIVERGENT)


class ExamplesError(ValueError):
    """Labels that a router cannot be trained on."""


@dataclass(frozen=True)
class PromptOf:
    """A problem as it was put to the models."""

    task: str
    problem_id: str
    prompt_ids: tuple[int, ...]

    @property
    def part(self) -> Part:
        return part_of(self.problem_id)


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples in the order in which they were read. Arrays may lie on disk."""

    logits_NK: NDArray[np.float16]
    """The SLM's, before sampling parameters."""
    ids_NK: NDArray[Any] | None
    """Their token ids, the most probable first; None where all V logits are there, in order of token ids."""
    hidden_ND: NDArray[np.float16]
    draft_N: NDArray[np.int32]
    entropy_N: NDArray[np.float32]
    """The SLM's, in nats at T = 1: the signal to beat."""
    label_N: NDArray[np.int8]
    part_N: NDArray[np.int8]
    """Index into `PARTS`."""
    problem_N: NDArray[np.int32]
    """Index into `problems`."""
    mode_N: NDArray[np.int16]
    """Index into `modes`."""
    problems: tuple[PromptOf, ...]
    """All that were read, those too whose labels are left out."""
    modes: tuple[str, ...]
    """How the drafts were drawn: `greedy`, or `sampled` with temperature and truncation."""
    vocab_size: int
    num_left_out: int
    """Tokens without a label, with an invalid one, or of a response that was cut off."""

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def num_logits(self) -> int:
        return int(self.logits_NK.shape[1])

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(problem.task for problem in self.problems))

    @cached_property
    def task_N(self) -> NDArray[np.int64]:
        """Index into `tasks`."""
        index = {task: i for i, task in enumerate(self.tasks)}
        return np.array([index[problem.task] for problem in self.problems], dtype=np.int64)[self.problem_N]

    def wanted(self, target: Target) -> NDArray[np.bool_]:
        """Which examples the router is to find (N,)."""
        least = Label.DIVERGENT if target == "divergent" else Label.NEUTRAL
        return np.asarray(self.label_N >= least)

    def of(self, part: Part) -> NDArray[np.int64]:
        """Indices of a part's examples."""
        return np.flatnonzero(self.part_N == PARTS.index(part))

    def prompts(self, part: Part) -> list[PromptOf]:
        """A part's problems, in the order in which they were read."""
        return [problem for problem in self.problems if problem.part == part]

    def features(self, index_B: NDArray[np.int64]) -> DraftFeatures:
        """Some examples as the router reads drafts."""
        logits_BK = torch.from_numpy(self.logits_NK[index_B])
        if self.ids_NK is None:
            ids_BK = torch.arange(self.num_logits).expand(len(index_B), -1)
        else:
            ids_BK = torch.from_numpy(self.ids_NK[index_B]).long()
        return DraftFeatures(
            ids_BK,
            logits_BK,
            torch.from_numpy(self.draft_N[index_B]).long(),
            torch.from_numpy(self.hidden_ND[index_B]),
            in_id_order=self.ids_NK is None,
        )

    def check(self, target: Target) -> None:
        """Raise `ExamplesError` unless every part has both what is to be found and what is not."""
        wanted_N = self.wanted(target)
        for part in PARTS:
            index = self.of(part)
            found = int(wanted_N[index].sum())
            if found in (0, len(index)):
                raise ExamplesError(
                    f"of the {len(index)} labels in the {part} part {found} are {target}, and both kinds are needed; label "
                    "more problems with `navtoken label`"
                )


def label_fingerprints(folders: Sequence[Path]) -> dict[str, str]:
    """Fingerprints that all folders of labels share. Raises `ExamplesError` naming two that differ."""
    first: dict[str, str] = {}
    for folder in folders:
        found = read_provenance(folder).get("fingerprints") or {}
        for name, value in found.items():
            if name in first and first[name] != value:
                raise ExamplesError(
                    f"the labels in {folder} are of another {name} ({value[:12]}) than those in {folders[0]} "
                    f"({first[name][:12]}); give labels of one pair"
                )
        first |= {name: value for name, value in found.items() if name not in first}
    return first


def splits_of(folders: Sequence[Path]) -> dict[str, list[str]]:
    """By folder the splits that its problems are of, from the provenance of all its shards; `unknown` where it says nothing."""
    return {
        str(folder): sorted({_split_of(read_provenance(shard)) for shard in shard_paths(folder)})
        for folder in folders
    }


def _split_of(record: dict[str, Any]) -> str:
    arguments, source = record.get("arguments") or {}, record.get("source") or {}
    return str(arguments.get("split") or (source.get("arguments") or {}).get("split") or "unknown")


def check_splits(splits: Mapping[str, Sequence[str]]) -> None:
    """Raise `ExamplesError` where a folder holds other problems than those of the split that is there to learn from."""
    for folder, found in splits.items():
        if wrong := [split for split in found if split != "train"]:
            raise ExamplesError(
                f"the problems in {folder} are of split '{wrong[0]}', and what is learnt from them can no longer be tested "
                "there: make responses with --split train, or say --allow-test-problems"
            )


def draft_mode(record: dict[str, Any]) -> str:
    """How the drafts of a folder were drawn, from its provenance: `greedy`, `sampled T=1`."""
    arguments = record.get("arguments", {})
    if arguments.get("draft", "greedy") == "greedy":
        return "greedy"
    drawn = arguments.get("draft_sampling") or arguments.get("sampling") or arguments
    parts = [f"T={float(drawn.get('temperature', 1.0)):g}"]
    for name, off in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)):
        if (value := drawn.get(name, off)) != off and value is not None:
            parts.append(f"{name}={value:g}")
    return " ".join(["sampled", *parts])


def identity_of(folders: Sequence[Path]) -> str:
    """Tells these labels from others: names of shards are never used twice."""
    return json.dumps([[path.name for path in shard_paths(folder)] for folder in folders])


def gather(
    folders: Sequence[Path],
    vocab_size: int,
    work: Path,
    tell: Callable[[int], object] = lambda _: None,
    cut_off: bool = False,
    tested: Sequence[Path] = (),
) -> Examples:
    """Copy the valid labels of all folders into arrays under `work`; `tell` hears how many responses were read.

    With `cut_off` also those of responses that ran into the length limit. There the LLM itself is lost, as a rule in a loop:
    its labels say little of where reasoning parts, and such a response has as many as twenty others. Problems without any
    label are among the problems all the same. Of folders that are only `tested` on, the test part's problems are read and no
    others. Raises `FileNotFoundError` and `TraceError`s for what cannot be read, `ExamplesError` for labels that do not go together.
    """
    sizes = _sizes(folders, cut_off, tested)
    filling = _Filling(work, sizes, vocab_size)
    for folder in folders:
        filling.begin(draft_mode(read_provenance(folder)))
        for trace in read_traces(folder, columns=READ):
            filling.add(trace, _wanted(trace, cut_off))
            tell(1)
        filling.add_unlabelled(PromptOf(*left_out) for left_out in read_left_out(folder))
    for folder in tested:
        filling.begin(draft_mode(read_provenance(folder)))
        for trace in read_traces(folder, columns=READ):
            if _tested(trace):
                filling.add(trace, _wanted(trace, cut_off))
            tell(1)
    return filling.done()


@dataclass(frozen=True)
class _Sizes:
    num: int
    num_logits: int
    hidden: int


def _sizes(folders: Sequence[Path], cut_off: bool, tested: Sequence[Path]) -> _Sizes:
    """How much room the examples take. Raises where a folder has no features, or others than the first."""
    num, shapes = 0, set[tuple[int, int]]()
    for number, folder in enumerate((*folders, *tested)):
        for trace in read_traces(folder, columns=("label",)):
            if number < len(folders) or _tested(trace):
                num += int(_wanted(trace, cut_off).sum())
        shapes.update(_shape(trace) for trace in _first_labelled(folder))
    if not num:
        raise ExamplesError(f"there is no valid label in {_names(folders)}; write some with `navtoken label`")
    if len(shapes) > 1:
        raise ExamplesError(
            f"{_names((*folders, *tested))} hold features of different sizes (logits, hidden): {sorted(shapes)}; label all of them with "
            "one SLM and one number of logits"
        )
    return _Sizes(num, *shapes.pop())


def _first_labelled(folder: Path) -> Iterator[Trace]:
    """One trace of the folder with a valid label, if any has one."""
    for trace in read_traces(folder, columns=READ):
        if _valid(trace).any():
            if lacking := [name for name in READ if name not in trace.columns]:
                raise ExamplesError(
                    f"the labels in {folder} have no column '{lacking[0]}', which a router reads; write them with "
                    "`navtoken label`"
                )
            yield trace
            return


def _shape(trace: Trace) -> tuple[int, int]:
    return trace.columns["slm_top_logits"].shape[1], trace.columns["slm_hidden"].shape[1]


def _valid(trace: Trace) -> NDArray[np.bool_]:
    if "label" not in trace.columns:
        raise TraceError(f"trace {trace.key} has no labels; write some with `navtoken label`")
    return np.isin(trace.columns["label"], VALID)


def _wanted(trace: Trace, cut_off: bool) -> NDArray[np.bool_]:
    """Which labels are learnt from."""
    valid = _valid(trace)
    return valid if cut_off or trace.finish_reason != "length" else np.zeros_like(valid)


def _tested(trace: Trace) -> bool:
    """Is this one of the problems that are reported on? By nothing else may a test disturb what is learnt."""
    return part_of(trace.problem_id) == "test"


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))


class _Filling:
    """Arrays that are being filled."""

    def __init__(self, work: Path, sizes: _Sizes, vocab_size: int) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._work, self._num, self._vocab_size = work, sizes.num, vocab_size
        self._whole = sizes.num_logits >= vocab_size
        width = vocab_size if self._whole else sizes.num_logits
        ids = np.int16 if vocab_size <= np.iinfo(np.int16).max else np.int32
        self._logits_NK = self._array("logits", np.float16, width)
        self._ids_NK = None if self._whole else self._array("ids", ids, width)
        self._hidden_ND = self._array("hidden", np.float16, sizes.hidden)
        self._draft_N, self._entropy_N = np.empty(self._num, np.int32), np.empty(self._num, np.float32)
        self._label_N, self._part_N = np.empty(self._num, np.int8), np.empty(self._num, np.int8)
        self._problem_N, self._mode_N = np.empty(self._num, np.int32), np.empty(self._num, np.int16)
        self._problems: dict[tuple[str, str], int] = {}
        self._prompts: list[PromptOf] = []
        self._modes: list[str] = []
        self._mode, self._at, self._num_left_out = 0, 0, 0

    def begin(self, mode: str) -> None:
        """What follows was drafted in this mode."""
        if mode not in self._modes:
            self._modes.append(mode)
        self._mode = self._modes.index(mode)

    def add(self, trace: Trace, keep: NDArray[np.bool_]) -> None:
        """Take the labels of a response that are to be kept."""
        # Without a label to learn from it is still one of the problems that thresholds must hold for.
        problem = self._problem(PromptOf(trace.task, trace.problem_id, tuple(trace.prompt_ids)))
        self._num_left_out += int((~keep).sum())
        if not keep.any():
            return
        columns = trace.columns
        rows = slice(self._at, self._at + int(keep.sum()))
        self._put_logits(rows, columns["slm_top_ids"][keep], columns["slm_top_logits"][keep])
        self._hidden_ND[rows] = columns["slm_hidden"][keep]
        self._draft_N[rows] = columns["draft_ids"][keep]
        self._entropy_N[rows] = columns["entropy_slm"][keep]
        self._label_N[rows] = columns["label"][keep]
        self._part_N[rows] = PARTS.index(part_of(trace.problem_id))
        self._problem_N[rows] = problem
        self._mode_N[rows] = self._mode
        self._at = rows.stop

    def add_unlabelled(self, prompts: Iterable[PromptOf]) -> None:
        """Take problems whose responses have no labels at all."""
        for prompt in prompts:
            self._problem(prompt)

    def done(self) -> Examples:
        assert self._at == self._num, f"{self._num} labels were counted, {self._at} read"
        return Examples(
            self._logits_NK,
            self._ids_NK,
            self._hidden_ND,
            self._draft_N,
            self._entropy_N,
            self._label_N,
            self._part_N,
            self._problem_N,
            self._mode_N,
            tuple(self._prompts),
            tuple(self._modes),
            self._vocab_size,
            self._num_left_out,
        )

    def _array(self, name: str, dtype: Any, width: int) -> NDArray[Any]:
        path = self._work / f"{name}.npy"
        # What a killed run left may be mapped still: a new file, and not the old one overwritten.
        path.unlink(missing_ok=True)
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(self._num, width))

    def _put_logits(self, rows: slice, ids_MK: NDArray[Any], logits_MK: NDArray[Any]) -> None:
        if self._ids_NK is not None:
            self._ids_NK[rows], self._logits_NK[rows] = ids_MK, logits_MK
            return
        by_id_MV = np.full((len(ids_MK), self._vocab_size), -np.inf, dtype=np.float16)
        np.put_along_axis(by_id_MV, ids_MK.astype(np.int64), logits_MK, axis=1)
        self._logits_NK[rows] = by_id_MV

    def _problem(self, prompt: PromptOf) -> int:
        key = (prompt.task, prompt.problem_id)
        if key not in self._problems:
            self._problems[key] = len(self._prompts)
            self._prompts.append(prompt)
        return self._problems[key]
