"""Attention of packed rows over a paged KV cache, as an attention interface of `transformers`.

All rows' new tokens are packed into one sequence of batch 1, so linear layers compute no padding. Here, and only here,
rows part: keys and values go to their places in the pool, and each row attends over its own.

Three kernels, chosen by what the tensors allow (why these: docs/architecture.md):

* `attend_blocks`, on a CPU (`block_attention`).
* `attend_varlen`, on CUDA in half precision: `torch`'s variable-length attention over the block table, one call for all
  rows, which a graph can capture. It is tried once before it is trusted (`kernel_choice`).
* `attend_gathered`: gathers a row's keys and computes everything in the open. The oracle of the others, and the rest.

Models pass their own scale, window and soft-cap; what else a model asks of its attention is refused, not ignored.

Shapes: T packed tokens, N new tokens of a row, S positions attended over, Q query heads, K key/value heads, H head size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from navtoken.checkpoints import UnsupportedModelError
from navtoken.engine.block_attention import attend_blocks
from navtoken.engine.packing import Packed

NAME = "navtoken"
"""Under which `transformers` knows this attention."""

IGNORED = frozenset(("is_causal", "position_ids", "use_cache", "output_attentions", "output_router_logits"))
"""Keywords that models pass down and that change nothing here."""

Kernel = Callable[[Tensor, int, Packed, float, int | None, float | None], Tensor]
"""(query_TQH, layer, packed, scale, window, softcap) -> (T, Q, H)."""


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Packed,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of (1, Q, T, H) queries; returns (1, T, Q, H)."""
    refused = [name for name, value in others.items() if value is not None and name not in IGNORED]
    if refused:
        raise UnsupportedModelError(
            f"{type(module).__name__} asks its attention for {', '.join(sorted(refused))}, which the engine does not "
            "serve; give a model with plain, sliding-window or soft-capped attention"
        )
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.compiler.is_compiling():
        # One operation for the compiler, which takes the pass from `paged`: it can neither hold nor look into it.
        return torch.ops.navtoken.attend(query, key, value, layer, scale, sliding_window, softcap), None
    return _attend(query, key, value, layer, scale, sliding_window, softcap, packed), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    packed: Packed,
) -> Tensor:
    """Store new keys and values, then attend."""
    places = packed.places(key.shape[1]) if packed.cache.heads_first else packed.places_T
    packed.cache.write(layer, places, key[0].transpose(0, 1), value[0].transpose(0, 1))
    kernel = packed.kernel or kernel_for(query, softcap)
    return kernel(query[0].transpose(0, 1), layer, packed, scale, window, softcap)[None]


def kernel_for(query: Tensor, softcap: float | None) -> Kernel:
    """The fastest kernel that takes these tensors."""
    if query.device.type == "cpu":
        return attend_blocks
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and softcap is None:
        return attend_varlen
    return attend_gathered


def attend_varlen(
    query_TQH: Tensor, layer: int, packed: Packed, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """All rows in one call over the block table, (T, Q, H); every shape is the bucket's, so that a graph can be replayed.

    `torch`'s flash attention 2 (no package needed; `mha_varlen_fwd` in aten's flash_api.cpp) takes blocks of a multiple of 256
    tokens, wants both cumulative lengths although it reads used lengths, and aligns causal masks at the bottom right.

    It splits long keys over the device only where each row has one query that sees all used keys, told as "not causal", and
    query heads share keys. Splitting anything else writes wrong rows (pytorch#194167, torchtitan#3235), so it is forbidden.
    Flash attention 3, where a person has activated it, takes no cumulative key lengths together with a table.
    """
    assert softcap is None, "the kernel knows no soft-cap"
    from torch.nn.attention import current_flash_attention_impl
    from torch.nn.attention.varlen import varlen_attn

    keys = packed.cache.keys[layer]
    alone = packed.max_new == 1 and window is None
    splits_rightly = alone and query_TQH.shape[1] > keys.shape[2]
    out = varlen_attn(
        query_TQH,
        keys,
        packed.cache.values[layer],
        packed.offsets,
        packed.used_offsets if current_flash_attention_impl() is None else None,
        packed.max_new,
        packed.max_used,
        scale=scale,
        window_size=(-1, -1) if alone else (-1 if window is None else window - 1, 0),
        enable_gqa=True,
        seqused_k=packed.used_B,
        block_table=packed.table,
        num_splits=None if splits_rightly else 1,
    )
    assert isinstance(out, Tensor)
    return out


def attend_gathered(
    query_TQH: Tensor, layer: int, packed: Packed, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """The slow, obvious version: each row's keys and values gathered, scores in the open."""
    cache, device = packed.cache, query_TQH.device
    outs = []
    for feed, query_NQH in zip(packed.feeds, query_TQH.split(packed.lengths), strict=True):
        keys_S = torch.arange(feed.end, device=device)
        table = torch.tensor(feed.table, device=device)
        places_S = table[keys_S // cache.block_size] * cache.block_size + keys_S % cache.block_size
        keys_SKH = cache.tokens(cache.keys, layer, places_S)
        values_SKH = cache.tokens(cache.values, layer, places_S)
        groups = query_NQH.shape[1] // keys_SKH.shape[1]
        keys_QSH = keys_SKH.transpose(0, 1).repeat_interleave(groups, 0)
        values_QSH = values_SKH.transpose(0, 1).repeat_interleave(groups, 0)
        scores_QNS = query_NQH.transpose(0, 1) @ keys_QSH.transpose(1, 2) * scale
        if softcap is not None:
            scores_QNS = torch.tanh(scores_QNS / softcap) * softcap
        queries_N1 = torch.arange(feed.start, feed.end, device=device)[:, None]
        seen_NS = keys_S <= queries_N1
        if window is not None:
            seen_NS &= keys_S > queries_N1 - window
        wide = torch.promote_types(scores_QNS.dtype, torch.float32)
        probs_QNS = scores_QNS.masked_fill(~seen_NS, -torch.inf).softmax(-1, dtype=wide)
        outs.append((probs_QNS.to(values_QSH.dtype) @ values_QSH).transpose(0, 1))
    return torch.cat(outs)


@contextmanager
def paged(config: Any, packed: Packed) -> Iterator[None]:
    """Let a model attend through `paged_attention` for a pass; its own attention is untouched afterwards."""
    previous = config._attn_implementation
    config._attn_implementation = NAME
    _running.append(packed)
    try:
        yield
    finally:
        _running.pop()
        config._attn_implementation = previous


_running: list[Packed] = []
"""The pass that runs now, for compiled models."""


def _attend_running(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    # Contiguous, as the compiler was told.
    return _attend(query, key, value, layer, scale, window, softcap, _running[-1]).contiguous()


def _attend_shape(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    """What the compiler must know: (1, T, Q, H) of values."""
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


AttentionInterface.register(NAME, paged_attention)
_operations = torch.library.Library("navtoken", "FRAGMENT")
_operations.define(
    "attend(Tensor query, Tensor key, Tensor value, int layer, float scale, int? window, float? softcap) -> Tensor"
)
_operations.impl("attend", _attend_running, "CPU")
_operations.impl("attend", _attend_shape, "Meta")
