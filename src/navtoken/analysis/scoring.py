"""Exact scores of given responses under any checkpoint: what it makes of every token, reading each response once.

The tokens are known, so nothing is decoded. Memory is bounded in three ways: a pass reads so many tokens, padding counted, and
what is longer is read in pieces behind a KV cache; logits exist for response positions only, chunk by chunk
(`navtoken.entropy`); and results leave in the order in which responses were given, a window of batches at a time.

Padding stands on the right, where a causal model never looks. So no mask is needed, and attention keeps the kernels that hold no
tensor of tokens x tokens.

Shapes: B rows of a batch, T tokens of its longest row, N response positions of a batch, D hidden size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.entropy import LMHead, TokenScores, scores_from_hidden
from navtoken.generation import fingerprints
from navtoken.trace import Trace

__all__ = [
    "ForeignVocabularyError",
    "ResponseScores",
    "ScoringError",
    "Whose",
    "head_of",
    "score_responses",
    "scored_traces",
    "tokenizer_fingerprint",
]

BATCH_TOKENS = 8192
"""Tokens of a forward pass, padding counted."""
_WINDOW_BATCHES = 16
"""Of so many batches' tokens the responses are sorted by length, to be padded little."""

Whose = Literal["slm", "llm"]
"""Which columns of a trace take the scores."""

Item = TypeVar("Item")


class ScoringError(ValueError):
    """Responses that cannot be scored."""


class ForeignVocabularyError(ScoringError):
    """Responses whose token ids mean something else to the checkpoint, or nothing."""


@dataclass(frozen=True, eq=False)
class ResponseScores:
    """What a checkpoint made of every token of one response: arrays [tokens], at T = 1.

    Each value is of the distribution over what comes next where the token was still to come.
    """

    entropy: NDArray[Any]
    """Nats."""
    logprob: NDArray[Any]
    """Nats, of the response's own token."""
    argmax: NDArray[np.int32]
    """The likeliest token."""
    margin: NDArray[Any]
    """Probability of the likeliest token minus that of the second."""


class _Row(NamedTuple):
    """One response behind its prompt."""

    prompt: Sequence[int]
    response: Sequence[int]

    @property
    def fed(self) -> int:
        """Tokens to be read: nothing is asked after the last one."""
        return len(self.prompt) + len(self.response) - 1 if len(self.response) else 0

    def ids(self) -> Tensor:
        return torch.tensor([*self.prompt, *self.response][: self.fed])


def score_responses(
    loaded: LoadedModel,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    batch_tokens: int = BATCH_TOKENS,
    head: LMHead | None = None,
    describe: Callable[[int], str] = "response {}".format,
) -> Iterator[ResponseScores]:
    """Score each response behind its prompt: yields one `ResponseScores` per response, in the given order.

    Exact: the model's own logits in its own dtype, entropies from them in float32 at least. A response without tokens has
    empty arrays. `head` saves reading (and checking) the model's LM head again in many small calls; `describe` names a
    response in errors by its index.

    Raises, before anything is computed, `ForeignVocabularyError` for an id that the tokenizer does not know, and
    `ScoringError` for an empty prompt or a response beyond the model's context; later, `ScoringError` for NaN.
    """
    if batch_tokens < 1:
        raise ScoringError(f"batch_tokens is {batch_tokens}; give at least 1")
    rows = [_Row(prompt, response) for prompt, response in zip(prompt_ids, response_ids, strict=True)]
    head = head or head_of(loaded)
    for index, row in enumerate(rows):
        _check_row(row, loaded, head.vocabulary, describe(index))
    return _score_rows(loaded, head, rows, batch_tokens, describe)


def head_of(loaded: LoadedModel) -> LMHead:
    """The model's LM head, without the rows that its tokenizer does not know, and checked against its logits."""
    rows = loaded.model.config.get_text_config().vocab_size
    return LMHead.of(loaded.model, min(loaded.vocab_size, rows))


def scored_traces(
    traces: Iterable[Trace],
    loaded: LoadedModel,
    whose: Whose = "llm",
    batch_tokens: int = BATCH_TOKENS,
    same_tokenizer: bool = False,
) -> Iterator[Trace]:
    """The traces in their order, with `entropy_X` and `logprob_X` of every token filled in, X being `whose`.

    A window of responses is in memory at a time. Unless `same_tokenizer` is known, each response must read under the
    checkpoint's tokenizer as its text says: ids within range may still be another vocabulary's. Raises what
    `score_responses` raises.
    """
    head = head_of(loaded)
    for window in _windows(traces, _num_tokens, batch_tokens):
        scores = score_responses(
            loaded,
            [trace.prompt_ids for trace in window],
            [trace.response_ids for trace in window],
            batch_tokens,
            head,
            partial(_name_of, window),
        )
        for trace in window if not same_tokenizer else ():
            _check_reading(trace, loaded)
        for trace, score in zip(window, scores, strict=True):
            found = {f"entropy_{whose}": score.entropy, f"logprob_{whose}": score.logprob}
            yield replace(trace, columns=trace.columns | found)


def tokenizer_fingerprint(loaded: LoadedModel) -> str:
    """sha256 of tokenizer and chat template, as the provenance of traces names it."""
    return fingerprints(ModelPair(loaded, loaded))["tokenizer"]


def _num_tokens(trace: Trace) -> int:
    return len(trace.prompt_ids) + len(trace.response_ids)


def _name_of(traces: Sequence[Trace], index: int) -> str:
    return f"trace {traces[index].key}"


# ---- what cannot be scored ------------------------------------------------------------------------------------


def _check_row(row: _Row, loaded: LoadedModel, vocabulary: int, name: str) -> None:
    if not len(row.response):
        return
    if not len(row.prompt):
        raise ScoringError(
            f"{name} has an empty prompt, so nothing predicts its first token; give it a prompt, if only the "
            "token that begins a sequence"
        )
    low, high = min(*row.prompt, *row.response), max(*row.prompt, *row.response)
    if low < 0 or high >= vocabulary:
        raise ForeignVocabularyError(
            f"{name} has token id {low if low < 0 else high}, and '{loaded.reference}' knows 0..{vocabulary - 1}; "
            "score it with a checkpoint that shares the tokenizer of its writer"
        )
    if row.fed > loaded.card.context:
        raise ScoringError(
            f"{name} has {row.fed + 1} tokens with its prompt, and '{loaded.reference}' takes {loaded.card.context}; "
            "leave it out, or take a checkpoint with a longer context"
        )


def _check_reading(trace: Trace, loaded: LoadedModel) -> None:
    """Raise `ForeignVocabularyError` where the response's ids spell another text than the trace says."""
    read = loaded.tokenizer.decode(
        trace.response_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    # What follows a stop string is no part of the text, and others than this package may have trimmed it.
    if "".join(read.split()).startswith("".join(trace.text.split())):
        return
    raise ForeignVocabularyError(
        f"trace {trace.key} says {_beginning(trace.text)}, and its token ids read {_beginning(read)} under the tokenizer of "
        f"'{loaded.reference}'; score it with a checkpoint that shares the tokenizer of its writer"
    )


def _beginning(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _check_numbers(scores: ResponseScores, loaded: LoadedModel, name: str) -> None:
    if bad := int(np.isnan(scores.entropy).sum()):
        raise ScoringError(
            f"'{loaded.reference}' gives NaN logits at {bad} of {len(scores.entropy)} tokens of {name} in "
            f"{loaded.model.dtype}; check its weights, or load it with --dtype float32 (float16 overflows in models "
            "trained in bfloat16)"
        )


# ---- batches --------------------------------------------------------------------------------------------------


def _score_rows(
    loaded: LoadedModel, head: LMHead, rows: list[_Row], batch_tokens: int, describe: Callable[[int], str]
) -> Iterator[ResponseScores]:
    def fed(index: int) -> int:
        return rows[index].fed

    for window in _windows(range(len(rows)), fed, batch_tokens):
        found: dict[int, ResponseScores] = {}
        for batch in _batches(window, fed, batch_tokens):
            scored = _score_batch(loaded, head, [rows[index] for index in batch], batch_tokens)
            found.update(zip(batch, scored, strict=True))
        for index in window:
            scores = found.get(index, _nothing())
            _check_numbers(scores, loaded, describe(index))
            yield scores


def _windows(items: Iterable[Item], size: Callable[[Item], int], batch_tokens: int) -> Iterator[list[Item]]:
    """Consecutive items of about `_WINDOW_BATCHES` batches."""
    window: list[Item] = []
    total = 0
    for item in items:
        window.append(item)
        total += size(item)
        if total >= _WINDOW_BATCHES * batch_tokens:
            yield window
            window, total = [], 0
    if window:
        yield window


def _batches(window: Iterable[int], fed: Callable[[int], int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows with something to score by length, longest first: what is too much for the memory is so at once."""
    batch: list[int] = []
    for index in sorted((index for index in window if fed(index)), key=fed, reverse=True):
        if batch and (len(batch) + 1) * fed(batch[0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def _score_batch(
    loaded: LoadedModel, head: LMHead, rows: list[_Row], batch_tokens: int
) -> list[ResponseScores]:
    ids_N = torch.tensor([token_id for row in rows for token_id in row.response])
    scores = scores_from_hidden(_hidden_states(loaded, rows, batch_tokens), head, ids_N)
    return _by_response(scores, [len(row.response) for row in rows])


def _hidden_states(loaded: LoadedModel, rows: list[_Row], batch_tokens: int) -> Tensor:
    """(N, D) what the LM head is fed where it predicts the rows' response tokens, one row after the other."""
    ids_BT = torch.zeros(len(rows), max(row.fed for row in rows), dtype=torch.long)
    for ids_T, row in zip(ids_BT, rows, strict=True):
        ids_T[: row.fed] = row.ids()
    hidden_BTD = _read(loaded.model, ids_BT.to(loaded.device), batch_tokens)
    return torch.cat(
        [hidden_TD[len(row.prompt) - 1 : row.fed] for hidden_TD, row in zip(hidden_BTD, rows, strict=True)]
    )


def _read(model: Any, ids_BT: Tensor, batch_tokens: int) -> Tensor:
    """(B, T, D) last hidden states; a row longer than a batch is read in pieces, each behind the KV cache of those before."""
    if ids_BT.shape[1] <= batch_tokens:
        whole: Tensor = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return whole
    cache = DynamicCache(config=model.config)
    pieces = [
        model.base_model(input_ids=piece, past_key_values=cache, use_cache=True).last_hidden_state
        for piece in ids_BT.split(batch_tokens, dim=1)
    ]
    return torch.cat(pieces, dim=1)


def _by_response(scores: TokenScores, lengths: list[int]) -> list[ResponseScores]:
    assert scores.logprob_N is not None
    columns = (scores.entropy_N, scores.logprob_N, scores.argmax_N.to(torch.int32), scores.margin_N)
    # Copies, so that keeping one response does not keep its batch.
    split = [[part.numpy().copy() for part in column.cpu().split(lengths)] for column in columns]
    return [ResponseScores(*parts) for parts in zip(*split, strict=True)]


def _nothing() -> ResponseScores:
    """Of a response without tokens."""
    floats = np.zeros(0, np.float32)
    return ResponseScores(floats, floats, np.zeros(0, np.int32), floats)
