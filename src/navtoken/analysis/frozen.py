"""A frozen set of responses, and the scores that checkpoints give to each of its tokens.

Whoever compares models on the same tokens wants the tokens fixed, flat, and small: a few bytes per token, and nothing as wide as
the vocabulary. Scores are kept on disk block by block under the fingerprints of checkpoint and responses, so an
interrupted run goes on, and a checkpoint that was scored once is not loaded again. Scores that the traces carry already
(`navtoken score`) are read and not computed.

Shapes: N response tokens of the whole set, R responses.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.columns import KEY_FIELDS, TokenBatch, Where, optional_columns, stream_columns
from navtoken.analysis.scoring import ResponseScores, Whose, head_of, score_responses, scored_columns
from navtoken.analysis.vocabulary import Vocabulary
from navtoken.checkpoints import LoadedModel
from navtoken.labeling.labels import Label
from navtoken.trace import COLUMNS, Key, Trace, read_provenance, read_traces

SCORES = tuple(each.name for each in fields(ResponseScores))
"""What is kept of each position."""
BLOCK_TOKENS = 2**14
"""Response tokens scored between two writes; an interruption loses at most so many."""
NUM_PROBES = 32
"""Responses whose text must be what a checkpoint's tokenizer makes of their ids."""
_NEEDED = (*KEY_FIELDS, "response_ids", "prompt_ids", "text")


class FrozenSetError(ValueError):
    """Responses that cannot be compared on."""


@dataclass(frozen=True, eq=False)
class Response:
    """What scoring needs of a trace."""

    key: Key
    prompt_ids: list[int]
    response_ids: NDArray[np.int32]
    label: NDArray[np.int8]
    """As in `Label`; -1 not labelled."""
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

    def where(self) -> Where:
        """The same as a filter of columns; reads the traces' keys where only some problems count."""
        simple = {"policy": [self.policy] if self.policy else [], "task": self.tasks}
        keys = self._first_problems(simple) if self.num is not None else self.keys
        return simple if keys is None else simple | {"key": keys}

    def found(self) -> frozenset[Key]:
        """The keys of the traces that count. Raises what `stream_columns` raises."""
        return frozenset(
            key for batch in stream_columns(self.path, KEY_FIELDS, where=self.where()) for key in batch.keys
        )

    def responses(self) -> Iterator[Response]:
        """Stream them in their order, those without tokens left out. Raises what `stream_columns` raises."""
        # Labels may be missing, the others not: the first call only checks.
        stream_columns(self.path, _NEEDED)
        for batch in stream_columns(self.path, (*_NEEDED, "label"), where=self.where(), missing_ok=True):
            yield from _responses(batch)

    def traces(self, columns: Sequence[str] | None = None) -> Iterator[Trace]:
        """The same responses in the same order, with all that is known of them, or some of the optional columns."""
        where = self.where()

        def keep(key: Key) -> bool:
            policy, task, *_ = key
            simple = self.policy in (None, policy) and (not self.tasks or task in self.tasks)
            return simple and ("key" not in where or key in where["key"])

        return (trace for trace in read_traces(self.path, columns, keep) if trace.response_ids)

    def _first_problems(self, simple: Where) -> frozenset[Key]:
        assert self.num is not None
        problems: dict[str, set[str]] = {}
        counted = set()
        for batch in stream_columns(self.path, KEY_FIELDS, where=simple):
            for key in batch.keys:
                own = problems.setdefault(key[1], set())
                if self.keys is not None and key not in self.keys:
                    continue
                if key[2] in own or len(own) < self.num:
                    own.add(key[2])
                    counted.add(key)
        return frozenset(counted)


def _responses(batch: TokenBatch) -> Iterator[Response]:
    for row, (key, start, length) in enumerate(zip(batch.keys, batch.starts, batch.lengths, strict=True)):
        if length:
            own = slice(int(start), int(start + length))
            yield Response(
                key,
                batch["prompt_ids"][row],
                batch["response_ids"][own],
                batch["label"][own],
                batch["text"][row] or "",
            )


@dataclass(frozen=True, eq=False)
class FrozenSet:
    """The tokens of all chosen responses, one after the other."""

    chosen: Chosen
    keys: tuple[Key, ...]
    """(R,) which responses they are."""
    response_id_N: NDArray[np.int32]
    start_R: NDArray[np.int64]
    """Where each response begins, and one more: where the last one ends."""
    cluster_N: NDArray[np.int32]
    """Number of the token's problem: responses to one problem are not independent."""
    label_N: NDArray[np.int8] | None
    """As in `Label`, -1 not labelled; None where nothing is."""
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
        keys: list[Key] = []
        clusters: list[int] = []
        numbers: dict[tuple[str, str], int] = {}
        probes: list[tuple[list[int], str]] = []
        highest, digest = 0, hashlib.sha256()
        for response in chosen.responses():
            prompt = np.asarray(response.prompt_ids, dtype=np.int32)
            # Copies: a slice would keep the whole batch that it was read from.
            own = response.response_ids.astype(np.int32)
            kept.append((own, response.label.astype(np.int8)))
            keys.append(response.key)
            clusters.append(numbers.setdefault(response.key[1:3], len(numbers)))
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
            keys=tuple(keys),
            response_id_N=np.concatenate([ids for ids, _ in kept]),
            start_R=np.concatenate([[0], np.cumsum(length_R)]),
            cluster_N=np.repeat(np.array(clusters, dtype=np.int32), length_R),
            label_N=label_N if ((label_N >= 0) & (label_N != Label.INVALID)).any() else None,
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

    def check_vocabulary(self, tokenizer: Any, reference: str) -> None:
        """Raise `ForeignVocabularyError` unless the responses' ids mean to this tokenizer what they meant to their writer."""
        vocabulary = Vocabulary.of(tokenizer, reference)
        vocabulary.check_ids(f"a response at {self.chosen.path}", [self.highest_id])
        for ids, text in self.probes:
            vocabulary.check(f"a response at {self.chosen.path}", ids, text)


# ---- scores ---------------------------------------------------------------------------------------------------


class Scores(Protocol):
    """Scores of a frozen set under one checkpoint, wherever they lie."""

    def column(self, name: str) -> NDArray[Any]:
        """(N,) one of `SCORES`, read into memory."""
        ...


@dataclass(frozen=True)
class ScoredSet:
    """Scores on disk."""

    paths: tuple[Path, ...]
    """One file per block of responses."""

    def column(self, name: str) -> NDArray[Any]:
        return np.concatenate([_read(path, name) for path in self.paths])


@dataclass(frozen=True)
class RecordedScores:
    """Scores that are columns of the traces."""

    chosen: Chosen
    whose: Whose

    @classmethod
    def of(cls, frozen: FrozenSet, whose: Whose, fingerprint: str, dtype: str) -> "RecordedScores | None":
        """Those of the very weights, computed in the same type, at every token; None where there are no such."""
        found = cls(frozen.chosen, whose)
        path = frozen.chosen.path
        if not set(scored_columns(whose).values()) <= optional_columns(path):
            return None
        if scored_by(read_provenance(path), whose) != (fingerprint, dtype):
            return None
        return found if all(found._is_whole(name) for name in SCORES) else None

    def column(self, name: str) -> NDArray[Any]:
        return np.concatenate(list(self._parts(name)))

    def _is_whole(self, name: str) -> bool:
        column = COLUMNS[scored_columns(self.whose)[name]]
        return not any(_missing(part, column.missing).any() for part in self._parts(name))

    def _parts(self, name: str) -> Iterator[NDArray[Any]]:
        column = scored_columns(self.whose)[name]
        # Copies: what is yielded may lie in a buffer of Arrow's.
        return (
            np.array(batch[column])
            for batch in stream_columns(self.chosen.path, (column,), where=self.chosen.where())
        )


def _missing(values: NDArray[Any], word: float) -> NDArray[np.bool_]:
    return np.isnan(values) if values.dtype.kind == "f" else values == word


def scored_by(record: Mapping[str, Any], whose: str) -> tuple[str | None, str | None]:
    """Fingerprint and floating-point type, by the traces' provenance, of the checkpoint that filled the columns of `whose`."""
    while True:
        arguments, found = record.get("arguments", {}), record.get("fingerprints") or {}
        # Who scored a column later replaced what stood there.
        if arguments.get("whose") == whose:
            return found.get(f"scores_{whose}"), arguments.get("dtype")
        if "source" not in record:
            own = arguments.get("llm_dtype") if whose == "llm" else None
            return found.get(whose), own or arguments.get("dtype")
        record = record["source"]


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
            describe=lambda index: f"the response {block[index].key}",
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
