"""Attention on a CPU, over blocks of the pool where they lie.

One product for all pairs of a row and one of its blocks, on views of the pool: no key or value is copied. Each block has a
softmax of its own and counts in its row for what its exponentials sum up to, so nothing is padded. Measured against it: flash attention row by row is 2 to 4 times as slow in
bfloat16 (it is made for many queries), and gathering the keys first reads and writes them once more.

Rows with many new tokens (prompts) are the other way round: their keys are gathered once for all queries, for flash
attention.

Shapes: T packed tokens, R rows of a group, N new tokens of a row, S positions attended over, Q query heads, K key/value
heads, G query heads per key/value head, H head size, C blocks in the pool, L tokens in a block, P most blocks of a row,
E pairs of a row and a block, D what else there is of a pair in one dimension.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from navtoken.engine.packing import Group, Order, Packed, Pairs

MOST_SCORES = 1 << 22
"""Queries of a long row attend in parts, so that no mask has more elements than this."""


def attend_blocks(
    query_TQH: Tensor, layer: int, packed: Packed, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """(T, Q, H) queries to outputs of the same shape."""
    keys, values = packed.cache.keys[layer], packed.cache.values[layer]
    if packed.groups and packed.groups[0].is_everything:
        return _attend_group(query_TQH, keys, values, packed.groups[0], scale, window, softcap)
    out_TQH = query_TQH.new_empty(*query_TQH.shape[:2], values.shape[-1])
    for index, first in packed.long_rows:
        feed = packed.feeds[index]
        span = slice(first, first + len(feed.token_ids))
        table = torch.tensor(feed.table[: -(-feed.end // packed.cache.block_size)])
        gathered = (_gathered(keys, table, feed.end), _gathered(values, table, feed.end))
        out_TQH[span] = _attend_long(query_TQH[span], *gathered, feed.start, scale, window, softcap)
    for group in packed.groups:
        out = _attend_group(
            query_TQH[group.queries_RN.flatten()], keys, values, group, scale, window, softcap
        )
        out_TQH[group.targets] = out if group.real is None else out[group.real]
    return out_TQH


def _attend_group(
    query: Tensor,
    keys_CKLH: Tensor,
    values_CKLH: Tensor,
    group: Group,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """(R * N, Q, H) queries to outputs of the same shape."""
    rows, new = len(group.feeds), group.num_new
    kv_heads, size = keys_CKLH.shape[1:3]
    pairs = group.pairs(window)
    order = pairs.order
    num_pairs = len(order.owner_E)
    # Query heads that share keys become queries of one head: keys are not repeated.
    query_RKGNH = (query * scale).view(rows, new, kv_heads, -1, query.shape[-1]).permute(0, 2, 3, 1, 4)
    query_RD = query_RKGNH.reshape(rows, -1)
    query_ED = query_RD.expand(num_pairs, -1) if rows == 1 else query_RD.index_select(0, order.asker_E)
    query_EKQH = query_ED.reshape(num_pairs * kv_heads, -1, query.shape[-1])
    groups_new = query_EKQH.shape[1]
    scores_EKQL = query.new_empty(num_pairs * kv_heads, groups_new, size)
    for first, block, count in order.runs:
        span = slice(first * kv_heads, (first + count) * kv_heads)
        keys = keys_CKLH[block : block + count].flatten(0, 1).transpose(1, 2)
        torch.bmm(query_EKQH[span], keys, out=scores_EKQL[span])
    scores_EKGNL = scores_EKQL.view(num_pairs, kv_heads, -1, new, size)
    if softcap is not None:
        wide = torch.promote_types(query.dtype, torch.float32)
        scores_EKGNL = torch.tanh(scores_EKGNL.to(wide) / softcap) * softcap
    if order.in_place:
        probs_EKGNL, shares_ED = _softmax(scores_EKGNL, pairs), None
    else:
        probs_EKGNL, shares_ED = _softmax_by_block(scores_EKGNL, pairs)
    probs_EKQL = probs_EKGNL.to(query.dtype).reshape(num_pairs * kv_heads, groups_new, size)
    out_EKQH = query.new_empty(num_pairs * kv_heads, groups_new, values_CKLH.shape[-1])
    for first, block, count in order.runs:
        span = slice(first * kv_heads, (first + count) * kv_heads)
        torch.bmm(probs_EKQL[span], values_CKLH[block : block + count].flatten(0, 1), out=out_EKQH[span])
    out_RDH = _summed(out_EKQH.view(num_pairs, -1, out_EKQH.shape[-1]), shares_ED, order, rows)
    out_RKGNH = out_RDH.view(rows, kv_heads, -1, new, out_EKQH.shape[-1])
    return out_RKGNH.permute(0, 3, 1, 2, 4).reshape(rows * new, -1, out_EKQH.shape[-1])


def _softmax(scores_EKGNL: Tensor, pairs: Pairs) -> Tensor:
    """Softmax over all blocks of a row, in at least float32, where all rows have as many."""
    rows, most = pairs.order.padded_RP.shape
    _, kv_heads, group, new, size = scores_EKGNL.shape
    scores_RQNS = scores_EKGNL.view(rows, most, kv_heads * group, new, size).permute(0, 2, 3, 1, 4).flatten(3)
    wide = torch.promote_types(scores_RQNS.dtype, torch.float32)
    probs_RQNS = scores_RQNS.masked_fill_(pairs.hidden, -torch.inf).softmax(-1, dtype=wide)
    return probs_RQNS.unflatten(3, (most, size)).permute(0, 3, 1, 2, 4).reshape(scores_EKGNL.shape)


def _softmax_by_block(scores_EKGNL: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Each block by itself: softmax, and what a block's outputs count for in its row's, (E, K * G * N).

    No row is padded to the blocks of the longest. A block of which nothing is seen counts for nothing.
    """
    order = pairs.order
    rows, most = order.padded_RP.shape
    wide = torch.promote_types(scores_EKGNL.dtype, torch.float32)
    # Finite, so that the softmax of a block of which nothing is seen is numbers too.
    scores = scores_EKGNL.to(wide).masked_fill_(pairs.hidden, torch.finfo(wide).min / 2)
    probs_EKGNL = scores.softmax(-1)
    # The largest probability is 1 / the sum of exponentials relative to the largest score: their logarithm, in two passes.
    mass_ED = (scores.amax(-1) - probs_EKGNL.amax(-1).log_()).flatten(1)
    mass_RPD = mass_ED.index_select(0, order.padded_RP.flatten()).view(rows, most, -1)
    shares_RPD = mass_RPD.masked_fill_(order.absent_RP1, -torch.inf).softmax(1)
    return probs_EKGNL, shares_RPD.view(rows * most, -1).index_select(0, order.place_E)


def _summed(out_EDH: Tensor, shares_ED: Tensor | None, order: Order, rows: int) -> Tensor:
    """Each row's sum over its blocks, weighted by what each counts for, in at least float32."""
    wide = torch.promote_types(out_EDH.dtype, torch.float32)
    if shares_ED is None:
        if len(out_EDH) == rows:
            return out_EDH
        return out_EDH.view(rows, -1, *out_EDH.shape[1:]).sum(1, dtype=wide).to(out_EDH.dtype)
    # What is nobody's goes to one row more, and away.
    summed = out_EDH.new_zeros(rows + 1, *out_EDH.shape[1:], dtype=wide)
    return summed.index_add_(0, order.owner_E, out_EDH * shares_ED[..., None])[:rows].to(out_EDH.dtype)


def _gathered(pool_CKLH: Tensor, table_P: Tensor, end: int) -> Tensor:
    """A row's keys or values in order, (K, S, H)."""
    return pool_CKLH.index_select(0, table_P).transpose(0, 1).flatten(1, 2)[:, :end]


def _attend_long(
    query_NQH: Tensor,
    keys_KSH: Tensor,
    values_KSH: Tensor,
    start: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One row's queries from position `start` on, part by part."""
    kv_heads, total = keys_KSH.shape[:2]
    part = max(1, MOST_SCORES // total)
    outs = []
    for first in range(0, len(query_NQH), part):
        query_QNH = query_NQH[first : first + part].transpose(0, 1)
        positions_N1 = torch.arange(start + first, start + first + query_QNH.shape[1])[:, None]
        seen_NS = torch.arange(total) <= positions_N1
        if window is not None:
            seen_NS &= torch.arange(total) > positions_N1 - window
        if softcap is None:
            out_QNH = scaled_dot_product_attention(
                query_QNH[None], keys_KSH[None], values_KSH[None], seen_NS, scale=scale, enable_gqa=True
            )[0]
        else:
            query_KDH = query_QNH.reshape(kv_heads, -1, query_QNH.shape[-1])
            scores_KDS = query_KDH @ keys_KSH.transpose(1, 2) * scale
            wide = scores_KDS.to(torch.promote_types(scores_KDS.dtype, torch.float32))
            scores_QNS = (torch.tanh(wide / softcap) * softcap).view(*query_QNH.shape[:2], total)
            probs_QNS = scores_QNS.masked_fill(~seen_NS, -torch.inf).softmax(-1).to(values_KSH.dtype)
            out_QNH = (probs_QNS.view(kv_heads, -1, total) @ values_KSH).view(*query_QNH.shape[:2], -1)
        outs.append(out_QNH.transpose(0, 1))
    return torch.cat(outs)
