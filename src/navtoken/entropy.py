"""Entropies and log-probabilities straight from hidden states, pooled quantiles, token selection.

Both halves of navtoken stand on one number per position, the entropy of softmax(z/T), and on "the top fraction of
a pool" of them. Three things go wrong elsewhere and are avoided here: a (tokens x vocabulary) tensor of logits is
the largest tensor of a long response, so it exists only chunk by chunk; `torch.quantile` refuses more than 2^24
elements and a real batch has tens of millions; padding and ties move the threshold unnoticed.

Departure from the 80/20 paper: its threshold is an interpolated percentile, ours is the k-th largest entropy with
k = max(1, ceil(rho n)), so `>= tau` and "exactly k" differ by ties alone.

Shapes: N positions, D hidden size, V vocabulary.
"""

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from navtoken.lm_head import LMHead, UnknownHeadError
from navtoken.order_statistics import order_statistics

__all__ = [
    "BadPoolError",
    "EmptyPoolError",
    "LMHead",
    "Selection",
    "TokenScores",
    "UnknownHeadError",
    "entropy_from_hidden",
    "entropy_from_logits",
    "exact_quantile",
    "exact_quantiles",
    "scores_from_hidden",
    "scores_from_logits",
    "select_top",
    "top_threshold",
]

CHUNK_ELEMENTS = 2**27
"""Logits that exist at a time where the caller names no chunk: 512 MiB in float32.

On a CPU each product first lays the LM head's weights out anew, which costs as much as a hundred positions: at a vocabulary of
152 thousand, chunks of a quarter of this made the products half as slow again as one over all positions.
"""
_CACHED_ELEMENTS = 2**20
"""Of those, what is scored at a time on a CPU: the dozen passes over them then stay in its caches."""

Pool = Tensor | np.ndarray | Iterable[Tensor | np.ndarray]
"""One array, or any number of chunks of one, which need not fit together in the device's memory."""

Ties = Literal["threshold", "exact"]


class EmptyPoolError(ValueError):
    """A quantile or a selection over no elements."""


class BadPoolError(ValueError):
    """A pool with NaN in it, or a mask that does not fit it."""


# ---- from logits and hidden states ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenScores:
    """What one pass over the vocabulary tells of each position; float32, or float64 where the logits are."""

    entropy_N: Tensor
    """Nats, of softmax(z/T)."""
    argmax_N: Tensor
    """The likeliest token; the first of several that tie."""
    logprob_N: Tensor | None
    """Nats, log softmax(z/T) of the given ids; None where no ids were given."""
    margin_N: Tensor
    """Probability of the likeliest token minus that of the second, under softmax(z/T)."""


def entropy_from_logits(logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """(..., V) logits -> (...) entropies of softmax(z/T) in nats, without gradient.

    Accurate to the rounding of the logits' own dtype even where one token has nearly all the mass. Logits of -inf
    count as masked; NaN, +inf and rows of nothing but -inf give NaN. Half precision is computed in float32.
    """
    return scores_from_logits(logits_NV, temperature=temperature).entropy_N


@torch.no_grad()
def scores_from_logits(
    logits_NV: Tensor, ids_N: Tensor | None = None, temperature: float = 1.0
) -> TokenScores:
    """Entropy, argmax, log-probability of `ids_N` and margin out of (..., V) logits; see `entropy_from_logits`."""
    return _scores_of_spare(logits_NV.to(_exact(logits_NV), copy=True), ids_N, _checked(temperature))


def _scores_of_spare(
    logits_NV: Tensor, ids_N: Tensor | None, temperature: float, room_NV: Tensor | None = None
) -> TokenScores:
    """Scores out of (..., V) logits in full precision that nobody needs afterwards: they are overwritten.

    `room_NV` is as large as they are, and overwritten too; None takes it from the system.
    """
    top_N, argmax_N = logits_NV.max(-1)
    # Everything relative to the likeliest token: all terms below are >= 0, so nothing cancels.
    gap_NV = logits_NV.sub_(top_N[..., None])
    if temperature != 1.0:
        gap_NV.div_(temperature)
    logprob_N = None if ids_N is None else gap_NV.gather(-1, ids_N.to(gap_NV.device)[..., None])[..., 0]
    # exp underflows to 0 long before; this only keeps 0 * -inf from becoming NaN.
    gap_NV.clamp_(min=-1000.0)
    mass_NV = torch.exp(gap_NV, out=room_NV).scatter_(-1, argmax_N[..., None], 0.0)
    rest_N = mass_NV.sum(-1)
    margin_N = (1.0 - mass_NV.amax(-1)) / (1.0 + rest_N)
    log_total_N = torch.log1p(rest_N)
    entropy_N = log_total_N - mass_NV.mul_(gap_NV).sum(-1) / (1.0 + rest_N)
    return TokenScores(
        entropy_N,
        argmax_N,
        None if logprob_N is None else logprob_N - log_total_N,
        # The likeliest token's own logit is not part of the sums above, and may be what is broken.
        torch.where(entropy_N.isnan(), entropy_N, margin_N),
    )


def _exact(logits_NV: Tensor) -> torch.dtype:
    """The type that scores are computed in."""
    return torch.float64 if logits_NV.dtype == torch.float64 else torch.float32


def _checked(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} has no entropy; greedy decoding is scored at T = 1")
    return temperature


def entropy_from_hidden(
    hidden_ND: Tensor, head: LMHead, temperature: float = 1.0, chunk: int | None = None
) -> Tensor:
    """(N, D) last hidden states -> (N,) entropies in nats, `chunk` positions at a time."""
    return scores_from_hidden(hidden_ND, head, temperature=temperature, chunk=chunk).entropy_N


@torch.no_grad()
def scores_from_hidden(
    hidden_ND: Tensor,
    head: LMHead,
    ids_N: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> TokenScores:
    """(N, D) last hidden states, after the final norm -> scores of each position.

    `ids_N` are the tokens that the positions predict, that is the input shifted by one. At most `chunk` rows of
    logits exist at a time (by default as many as `CHUNK_ELEMENTS` allows). Raises `ValueError` for an id outside
    the head's vocabulary.
    """
    if ids_N is not None and ids_N.numel():
        low, high = int(ids_N.min()), int(ids_N.max())
        if low < 0 or high >= head.vocabulary:
            raise ValueError(
                f"token ids {low}..{high} leave the LM head's 0..{head.vocabulary - 1}; "
                "mask padding before scoring"
            )
    rows = chunk or chunk_rows(len(hidden_ND), head.vocabulary)
    parts = [
        part
        for hidden, ids in _pieces(hidden_ND, ids_N, rows)
        for part in _scores_in_blocks(head.logits(hidden), ids, _checked(temperature))
    ]
    return TokenScores(
        torch.cat([part.entropy_N for part in parts]),
        torch.cat([part.argmax_N for part in parts]),
        None if ids_N is None else torch.cat([p.logprob_N for p in parts if p.logprob_N is not None]),
        torch.cat([part.margin_N for part in parts]),
    )


def chunk_rows(positions: int, vocabulary: int) -> int:
    """Positions of each chunk: as few chunks as `CHUNK_ELEMENTS` allows, of equal size, since small ones are slow."""
    most = max(1, CHUNK_ELEMENTS // vocabulary)
    return max(1, math.ceil(positions / max(1, math.ceil(positions / most))))


def _scores_in_blocks(logits_NV: Tensor, ids_N: Tensor | None, temperature: float) -> list[TokenScores]:
    """Scores of a chunk of logits, which is overwritten: on a CPU in blocks that its caches hold, each by one thread.

    Left to themselves, the threads would meet after each of a dozen short operations per block, and wait there for whichever
    the system has put aside: on a busy machine that took twenty times as long as the work.
    """
    if logits_NV.device.type != "cpu":
        return [_score_block((logits_NV, ids_N), temperature, _Room())]
    rows = max(1, _CACHED_ELEMENTS // logits_NV.shape[-1])
    blocks = list(_pieces(logits_NV, ids_N, rows))
    score = partial(_score_block, temperature=temperature, room=_Room())
    if (threads := min(torch.get_num_threads(), len(blocks))) == 1:
        return list(map(score, blocks))
    with _alone_each(threads) as pool:
        return list(pool.map(score, blocks))


@contextmanager
def _alone_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute without help from others."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        # What a thread sets for itself is also what the process's next threads begin with.
        torch.set_num_threads(before)


class _Room(threading.local):
    """One block's worth of memory for each thread.

    Asked of the system anew for every block, it never came back: between two blocks stand results that stay, and what was
    freed in between is too small for the next aligned block. That held as much memory as all logits at once.
    """

    def __init__(self) -> None:
        self._held: Tensor | None = None

    def like(self, block_NV: Tensor) -> Tensor:
        held_NV = self._held
        fits = held_NV is not None and len(held_NV) >= len(block_NV)
        if held_NV is None or not fits or held_NV.shape[1:] != block_NV.shape[1:]:
            held_NV = self._held = torch.empty_like(block_NV)
        return held_NV[: len(block_NV)]


def _score_block(block: tuple[Tensor, Tensor | None], temperature: float, room: _Room) -> TokenScores:
    logits_NV, ids_N = block
    # These modes are each thread's own, and logits made in the one may not be overwritten outside it.
    with torch.inference_mode(logits_NV.is_inference()), torch.no_grad():
        exact_NV = logits_NV.to(_exact(logits_NV))
        return _scores_of_spare(exact_NV, ids_N, temperature, room.like(exact_NV))


def _pieces(values: Tensor, ids_N: Tensor | None, rows: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """`rows` positions at a time; of nothing one empty piece, so that an empty response needs no case of its own."""
    pieces = values.split(rows)
    return zip(pieces, [None] * len(pieces) if ids_N is None else ids_N.split(rows), strict=True)


# ---- pooled quantiles -----------------------------------------------------------------------------------------

_STRIDE = 2**22


def exact_quantile(pool: Pool, q: float, mask: Pool | None = None) -> float:
    """The `q` quantile of a pool of any size, interpolated between neighbours as numpy does by default.

    `mask` (same shapes as the pool) says which elements count: pass it whenever there is padding. Raises
    `EmptyPoolError` where none does and `BadPoolError` for NaN among those that do.
    """
    return exact_quantiles(pool, [q], mask)[0]


def exact_quantiles(pool: Pool, qs: Sequence[float], mask: Pool | None = None) -> list[float]:
    """Several quantiles in the passes of one; see `exact_quantile`."""
    if bad := [q for q in qs if not 0.0 <= q <= 1.0]:
        raise ValueError(f"quantile {bad[0]} is not in 0..1")
    chunks = _counted_chunks(pool, mask)
    last = _size(chunks) - 1
    lows = [min(math.floor(q * last), last) for q in qs]
    at = order_statistics(chunks, {rank for low in lows for rank in (low, min(low + 1, last))})
    return [
        at[low] + (at[min(low + 1, last)] - at[low]) * (q * last - low)
        for q, low in zip(qs, lows, strict=True)
    ]


def top_threshold(pool: Pool, fraction: float, mask: Pool | None = None) -> float:
    """tau: the k-th largest element of a pool of n, k = max(1, ceil(fraction n)); `>= tau` keeps k and their ties."""
    chunks = _counted_chunks(pool, mask)
    size = _size(chunks)
    rank = size - _top_count(size, fraction)
    return order_statistics(chunks, {rank})[rank]


def _top_count(size: int, fraction: float) -> int:
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction {fraction} is not in (0, 1]; 0.2 keeps the top 20 %")
    # 0.07 * 100 is 7.000000000000001 in floating point, and 7 tokens are meant.
    return min(size, max(1, math.ceil(round(fraction * size, 6))))


def _counted_chunks(pool: Pool, mask: Pool | None) -> list[Tensor]:
    """The elements that count, as flat float32 or float64 tensors, NaN refused."""
    arrays = [_as_floats(array) for array in _arrays(pool)]
    if mask is not None:
        masks = list(_arrays(mask))
        if [m.shape for m in masks] != [a.shape for a in arrays]:
            raise BadPoolError(
                "the mask's shapes differ from the pool's; give one mask per chunk of the pool"
            )
        arrays = [array[m.to(array.device, torch.bool)] for array, m in zip(arrays, masks, strict=True)]
    chunks = [piece for array in arrays for piece in array.flatten().split(_STRIDE) if piece.numel()]
    if any(bool(torch.isnan(chunk).any()) for chunk in chunks):
        raise BadPoolError("the pool holds NaN, a value that was not computed; mask it out")
    wide = any(chunk.dtype == torch.float64 for chunk in chunks)
    return [chunk.double() for chunk in chunks] if wide else chunks


def _arrays(pool: Pool) -> Iterator[Tensor]:
    for array in [pool] if isinstance(pool, Tensor | np.ndarray) else pool:
        # torch warns of arrays that it may not write to, and columns read from a trace are such.
        yield torch.as_tensor(np.require(array, requirements="W") if isinstance(array, np.ndarray) else array)


def _as_floats(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    narrow = tensor.dtype in (torch.float16, torch.bfloat16, torch.float32)
    return tensor.to(torch.float32 if narrow else torch.float64)


def _size(chunks: list[Tensor]) -> int:
    if size := sum(chunk.numel() for chunk in chunks):
        return size
    raise EmptyPoolError("no element counts: the pool is empty or its mask is all False; skip this batch")


# ---- token selection ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Which tokens are in the top fraction of their pool."""

    mask: Tensor
    """Bool, of the entropies' shape; False at padding."""
    threshold: float
    """tau in nats: the smallest entropy that may be selected."""
    fraction: float
    """Realised share of the pool: the asked one rounded up to whole tokens, and ties with `threshold`."""


def select_top(
    entropy: Tensor, mask: Tensor | None = None, fraction: float = 0.2, ties: Ties = "threshold"
) -> Selection:
    """Select the top `fraction` of the elements of `entropy` (any shape) where `mask` is True.

    `ties="threshold"` keeps all that are >= tau (the paper); `"exact"` keeps max(1, ceil(fraction n)) of them, the
    earlier position first among equals (the authors' code). Raises `EmptyPoolError` where the mask is all False.
    """
    if ties not in ("threshold", "exact"):
        raise ValueError(f"ties '{ties}' is not known; use 'threshold' or 'exact'")
    counted = (
        torch.ones_like(entropy, dtype=torch.bool) if mask is None else mask.to(entropy.device, torch.bool)
    )
    tau = top_threshold(entropy, fraction, counted)
    values = _as_floats(entropy)
    selected = counted & (values >= tau)
    size = int(counted.sum())
    if ties == "exact":
        above = counted & (values > tau)
        tied = counted & (values == tau)
        room = _top_count(size, fraction) - int(above.sum())
        selected = above | (tied & (tied.flatten().cumsum(0).view_as(tied) <= room))
    return Selection(selected, tau, int(selected.sum()) / size)
