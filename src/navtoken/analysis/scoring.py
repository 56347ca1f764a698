"""Exact scores of given responses under any checkpoint: what it makes of every token, reading each response once.

Hidden states come from one pass (`navtoken.hidden_states`), of which memory is bounded. Logits exist for response positions only,
chunk by chunk (`navtoken.entropy`); and results leave in the order in which responses were given, a window of batches at a time.

Shapes: N response positions of a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from navtoken.analysis.vocabulary import ForeignVocabularyError, Vocabulary
from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.entropy import LMHead, TokenScores, scores_from_hidden
from navtoken.generation import fingerprints
from navtoken.hidden_states import (
    BATCH_TOKENS,
    WINDOW_BATCHES,
    GivenResponse,
    batches,
    read_hidden,
    windows,
)
from navtoken.trace import Trace

__all__ = [
    "BATCH_TOKENS",
    "ForeignVocabularyError",
    "ResponseScores",
    "ScoringError",
    "Whose",
    "head_of",
    "score_responses",
    "scored_columns",
    "scored_traces",
    "tokenizer_fingerprint",
]

Whose = Literal["slm", "llm"]
"""Which columns of a trace take the scores."""


class ScoringError(ValueError):
    """Responses that cannot be scored."""


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
    rows = [
        GivenResponse(prompt, response) for prompt, response in zip(prompt_ids, response_ids, strict=True)
    ]
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
    """The traces in their order, with the columns of `scored_columns` filled in at every token.

    A window of responses is in memory at a time. Unless `same_tokenizer` is known, each response must read under the
    checkpoint's tokenizer as its text says: ids within range may still be another vocabulary's. Raises what
    `score_responses` raises.
    """
    head = head_of(loaded)
    vocabulary = Vocabulary(loaded.tokenizer, loaded.reference, head.vocabulary)
    for window in windows(traces, _num_tokens, batch_tokens, WINDOW_BATCHES):
        scores = score_responses(
            loaded,
            [trace.prompt_ids for trace in window],
            [trace.response_ids for trace in window],
            batch_tokens,
            head,
            partial(_name_of, window),
        )
        for trace in window if not same_tokenizer else ():
            vocabulary.check(f"trace {trace.key}", trace.response_ids, trace.text)
        for trace, score in zip(window, scores, strict=True):
            found = {column: getattr(score, name) for name, column in scored_columns(whose).items()}
            yield replace(trace, columns=trace.columns | found)


def scored_columns(whose: Whose) -> dict[str, str]:
    """Scores by the name of `ResponseScores`, and the columns of a trace that take them."""
    return {each.name: f"{each.name}_{whose}" for each in fields(ResponseScores)}


def tokenizer_fingerprint(loaded: LoadedModel) -> str:
    """sha256 of tokenizer and chat template, as the provenance of traces names it."""
    return fingerprints(ModelPair(loaded, loaded))["tokenizer"]


def _num_tokens(trace: Trace) -> int:
    return len(trace.prompt_ids) + len(trace.response_ids)


def _name_of(traces: Sequence[Trace], index: int) -> str:
    return f"trace {traces[index].key}"


# ---- what cannot be scored ------------------------------------------------------------------------------------


def _check_row(row: GivenResponse, loaded: LoadedModel, vocabulary: int, name: str) -> None:
    if not len(row.response):
        return
    if not len(row.prompt):
        raise ScoringError(
            f"{name} has an empty prompt, so nothing predicts its first token; give it a prompt, if only the "
            "token that begins a sequence"
        )
    Vocabulary(loaded.tokenizer, loaded.reference, vocabulary).check_ids(name, [*row.prompt, *row.response])
    if row.fed > loaded.card.context:
        raise ScoringError(
            f"{name} has {row.fed + 1} tokens with its prompt, and '{loaded.reference}' takes {loaded.card.context}; "
            "leave it out, or take a checkpoint with a longer context"
        )


def _check_numbers(scores: ResponseScores, loaded: LoadedModel, name: str) -> None:
    if bad := int(np.isnan(scores.entropy).sum()):
        raise ScoringError(
            f"'{loaded.reference}' gives NaN logits at {bad} of {len(scores.entropy)} tokens of {name} in "
            f"{loaded.model.dtype}; check its weights, or load it with --dtype float32 (float16 overflows in models "
            "trained in bfloat16)"
        )


# ---- batches --------------------------------------------------------------------------------------------------


def _score_rows(
    loaded: LoadedModel,
    head: LMHead,
    rows: list[GivenResponse],
    batch_tokens: int,
    describe: Callable[[int], str],
) -> Iterator[ResponseScores]:
    def fed(index: int) -> int:
        return rows[index].fed

    for window in windows(range(len(rows)), fed, batch_tokens, WINDOW_BATCHES):
        found: dict[int, ResponseScores] = {}
        for batch in batches(window, fed, batch_tokens):
            scored = _score_batch(loaded, head, [rows[index] for index in batch], batch_tokens)
            found.update(zip(batch, scored, strict=True))
        for index in window:
            scores = found.get(index, _nothing())
            _check_numbers(scores, loaded, describe(index))
            yield scores


@torch.inference_mode()
def _score_batch(
    loaded: LoadedModel, head: LMHead, rows: list[GivenResponse], batch_tokens: int
) -> list[ResponseScores]:
    ids_N = torch.tensor([token_id for row in rows for token_id in row.response])
    scores = scores_from_hidden(read_hidden(loaded, rows, batch_tokens), head, ids_N)
    return _by_response(scores, [len(row.response) for row in rows])


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
