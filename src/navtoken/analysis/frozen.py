"""A frozen set of responses, and the scores that checkpoints give to each of its tokens.

Whoever compares models on the same tokens wants the tokens fixed, flat, and small: a few bytes per token, and nothing as wide as
the vocabulary. Scores are kept on disk block by block under the fingerprints of checkpoint and responses, so an
interrupted run goes on, and a checkpoint that was scored once is not loaded again.

Shapes: N response tokens of the whole set, R responses.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.columns import stream_columns
from navtoken.analysis.scoring import ForeignVocabularyError, head_of, score_responses
from navtoken.checkpoints import LoadedModel
from navtoken.generation.loop import response_text
from navtoken.trace import Key, Trace, read_traces

SCORES = ("entropy", "logprob", "argmax", "margin")
"""What is kept of each position."""
BLOCK_TOKENS = 2**14
"""Response tokens scored between two writes; an interruption loses at most so many."""
NUM_PROBES = 32
"""Responses whose text must be what a checkpoint's tokenizer makes of their ids."""
_NEEDED = ("response_ids", "prompt_ids", "task", "problem_id", "sample", "policy", "text")


class FrozenSetError(ValueError):
    """Responses that cannot be compared on."""


@dataclass(frozen=True, eq=False)
class Response:
    """What scoring needs of a trace."""

    task: str
    problem_id: str
    prompt_ids: list[int]
    response_ids: NDArray[np.int32]
    label: NDArray[np.int8]
    """0 identical, 1 neutral, 2 divergent, -1 not labelled."""
    text: str


@dataclass(frozen=True)
class Chosen:
    """Which of the traces at a path count."""

    path: Path
    """A shard, or a folder of them."""
    policy: str | None = None
    """Only this policy's; None takes all."""
    tasks: tuple[str, ...] = ()
    """Only these tasks'; empty takes all."""
    num: int | None = None
    """The first so many problems of each task; None takes all."""
    keys: frozenset[Key] | None = None
    """Only these; None takes all."""

    def responses(self) -> Iterator[Response]:
        """Stream them in their order, those without tokens left out. Raises what `stream_columns` raises."""
        # Labels may be missing, the others not: the first call only checks.
        stream_columns(self.path, _NEEDED)
        where = {"policy": [self.policy] if self.policy else [], "task": self.tasks}
        counts = self._counter()
        for batch in stream_columns(self.path, (*_NEEDED, "label"), where=where, missing_ok=True):
            keys = zip(*(batch[name] for name in ("policy", "task", "problem_id", "sample")), strict=True)
            for row, (key, start, length) in enumerate(zip(keys, batch.starts, batch.lengths, strict=True)):
                if length and counts(key):
                    own = slice(int(start), int(start + length))
                    yield Response(
                        key[1],
                        key[2],
                        batch["prompt_ids"][row],
                        batch["response_ids"][own],
                        batch["label"][own],
                        batch["text"][row] or "",
                    )

    def traces(self) -> Iterator[Trace]:
        """The same responses in the same order, with all that is known of them."""
        counts = self._counter()
        for trace in read_traces(self.path):
            wanted = self.policy in (None, trace.policy) and (not self.tasks or trace.task in self.tasks)
            if wanted and trace.response_ids and counts(trace.key):
                yield trace

    def _counter(self) -> Callable[[Key], bool]:
        """Is this trace, among those of the wanted policy and tasks, one that counts? To be asked in order."""
        seen: dict[str, set[str]] = {}

        def counts(key: Key) -> bool:
            _, task, problem_id, _ = key
            problems = seen.setdefault(task, set())
            if self.keys is not None and key not in self.keys:
                return False
            if self.num is not None and len(problems) >= self.num and problem_id not in problems:
                return False
            problems.add(problem_id)
            return True

        return counts


@dataclass(frozen=True, eq=False)
class FrozenSet:
    """The tokens of all chosen responses, one after the other."""

    chosen: Chosen
    response_id_N: NDArray[np.int32]
    start_R: NDArray[np.int64]
    """Where each response begins, and one more: where the last one ends."""
    cluster_N: NDArray[np.int32]
    """Number of the token's problem: responses to one problem are not independent."""
    label_N: NDArray[np.int8] | None
    """0 identical, 1 neutral, 2 divergent, -1 not labelled; None where nothing is."""
    tasks: tuple[str, ...]
    num_problems: int
    highest_id: int
    """Of prompts and responses."""
    probes: tuple[tuple[list[int], str], ...]
    """Ids and text of the first responses."""
    digest: str
    """sha256 of prompts and responses."""

    @classmethod
    def read(cls, chosen: Chosen) -> "FrozenSet":
        """One pass over the traces. Raises `FrozenSetError` where no token counts, and what `stream_columns` raises."""
        kept: list[tuple[NDArray[np.int32], NDArray[np.int8]]] = []
        clusters: list[int] = []
        numbers: dict[tuple[str, str], int] = {}
        probes: list[tuple[list[int], str]] = []
        highest, digest = 0, hashlib.sha256()
        for response in chosen.responses():
            prompt = np.asarray(response.prompt_ids, dtype=np.int32)
            # Copies: a slice would keep the whole batch that it was read from.
            own = response.response_ids.astype(np.int32)
            kept.append((own, response.label.astype(np.int8)))
            clusters.append(numbers.setdefault((response.task, response.problem_id), len(numbers)))
            highest = max(highest, int(own.max()), int(prompt.max(initial=0)))
            digest.update(f"{len(prompt)} {len(own)}\n".encode() + prompt.tobytes() + own.tobytes())
            if len(probes) < NUM_PROBES:
                probes.append((own.tolist(), response.text))
        if not kept:
            raise FrozenSetError(f"the responses at {chosen.path} have no tokens; generate some first")
        length_R = np.array([len(ids) for ids, _ in kept])
        label_N = np.concatenate([label for _, label in kept])
        return cls(
            chosen=chosen,
            response_id_N=np.concatenate([ids for ids, _ in kept]),
            start_R=np.concatenate([[0], np.cumsum(length_R)]),
            cluster_N=np.repeat(np.array(clusters, dtype=np.int32), length_R),
            label_N=label_N if (label_N >= 0).any() else None,
            tasks=tuple(dict.fromkeys(task for task, _ in numbers)),
            num_problems=len(numbers),
            highest_id=highest,
            probes=tuple(probes),
            digest=digest.hexdigest(),
        )

    @property
    def num_tokens(self) -> int:
        return len(self.response_id_N)

    @property
    def num_responses(self) -> int:
        return len(self.start_R) - 1

    def blocks(self) -> Iterator[list[Response]]:
        """The responses again, in pieces of about `BLOCK_TOKENS` tokens."""
        block: list[Response] = []
        num_tokens = 0
        for response in self.chosen.responses():
            block.append(response)
            num_tokens += len(response.response_ids)
            if num_tokens >= BLOCK_TOKENS:
                yield block
                block, num_tokens = [], 0
        if block:
            yield block

    def around(self, position: int, before: int = 8, after: int = 5) -> tuple[list[int], int, list[int]]:
        """Ids of the response before a position, at it, and after it."""
        response = int(np.searchsorted(self.start_R, position, side="right")) - 1
        start, end = int(self.start_R[response]), int(self.start_R[response + 1])
        ids = self.response_id_N
        return (
            ids[max(start, position - before) : position].tolist(),
            int(ids[position]),
            ids[position + 1 : min(end, position + 1 + after)].tolist(),
        )


def check_vocabulary(frozen: FrozenSet, tokenizer: Any, reference: str) -> None:
    """Raise `ForeignVocabularyError` unless the responses' ids mean to this tokenizer what they meant to their writer.

    Tokenizers of one family differ in chat templates and unused tokens, so what counts is the text: the first responses'
    ids must decode to the text beside them.
    """
    remedy = "give a checkpoint that shares the tokenizer of the responses"
    size = 1 + max(tokenizer.get_vocab().values())
    if frozen.highest_id >= size:
        raise ForeignVocabularyError(
            f"the responses at {frozen.chosen.path} have token id {frozen.highest_id}, '{reference}' knows 0..{size - 1}; "
            + remedy
        )
    for ids, text in frozen.probes:
        read = response_text(tokenizer, ids)
        # What follows a stop string is no part of the text, and others than this package may have trimmed it.
        if not "".join(read.split()).startswith("".join(text.split())):
            raise ForeignVocabularyError(
                f"'{reference}' reads a response at {frozen.chosen.path} as {_start(read)}, and it says {_start(text)}; "
                + remedy
            )


# ---- scores ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredSet:
    """Scores of a frozen set under one checkpoint, on disk."""

    paths: tuple[Path, ...]
    """One file per block of responses."""

    def column(self, name: str) -> NDArray[Any]:
        """(N,) one of `SCORES`, read into memory."""
        return np.concatenate([_read(path, name) for path in self.paths])


def score_set(
    frozen: FrozenSet,
    load: Callable[[], LoadedModel],
    identity: str,
    folder: Path,
    advance: Callable[[int], object] = lambda _: None,
) -> ScoredSet:
    """Score the blocks that `folder` lacks; the checkpoint is loaded only if there are any.

    `identity` names the checkpoint and how it computes (fingerprint, dtype); `advance` hears of responses done.
    """
    key = hashlib.sha256(f"{identity} {frozen.digest} {BLOCK_TOKENS}".encode()).hexdigest()[:24]

    @cache
    def scorer() -> Callable[[list[Response]], dict[str, NDArray[Any]]]:
        loaded = load()
        head = head_of(loaded)
        return lambda block: _score(block, loaded, head)

    paths = []
    for index, block in enumerate(frozen.blocks()):
        path = folder / key / f"block-{index:05d}.npz"
        if not path.exists():
            _save(path, scorer()(block))
        paths.append(path)
        advance(len(block))
    return ScoredSet(tuple(paths))


def _score(block: list[Response], loaded: LoadedModel, head: Any) -> dict[str, NDArray[Any]]:
    scored = list(
        score_responses(
            loaded,
            [response.prompt_ids for response in block],
            [response.response_ids.tolist() for response in block],
            head=head,
            describe=lambda index: (
                f"the response to problem {block[index].problem_id} of {block[index].task}"
            ),
        )
    )
    return {name: np.concatenate([getattr(each, name) for each in scored]) for name in SCORES}


def _save(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path, name: str) -> NDArray[Any]:
    with np.load(path) as arrays:
        return np.asarray(arrays[name])


def _start(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
