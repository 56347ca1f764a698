"""Attention of packed rows over slotted KV caches, as an attention interface of `transformers`.

All rows' new tokens are packed into one sequence of batch 1, so linear layers compute no padding. Here, and only here,
rows part: keys and values go into their slots, and rows of similar length attend together.

Models pass their own scale, window and soft-cap; what else a model asks of its attention is refused, not ignored.

Shapes: T packed tokens, B rows of a group, N new tokens per row (padded), S positions attended over, Q query heads,
K key/value heads, G query heads per key/value head, H head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from navtoken.checkpoints import UnsupportedModelError
from navtoken.engine.kv_cache import KVCache, additive_mask

NAME = "navtoken"
"""Under which `transformers` knows this attention."""

MAX_MASK_ELEMENTS = 1 << 24
"""Groups are split so that no mask gets larger."""

IGNORED = frozenset(("is_causal", "position_ids", "use_cache", "output_attentions", "output_router_logits"))
"""Keywords that models pass down and that change nothing here."""


@dataclass(frozen=True)
class Feed:
    """One row's new tokens."""

    slot: int
    start: int
    """Position of the first new token: what precedes it is in the slot already."""
    token_ids: Sequence[int]

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass
class Group:
    """Rows that attend together."""

    slots: slice | Tensor
    """A view of neighbouring slots, unfed ones in between included, or the slots' indices (B,)."""
    packed_BN: Tensor
    """Where each query is among the packed tokens; padding repeats the row's last token."""
    positions_BN: Tensor
    """Position of each query in its row; 0 for rows of a view that are not fed."""
    targets: Tensor
    """Packed index of each real query."""
    sources: Tensor
    """Its index in the flattened (B, N)."""
    num_attended: int
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)
    """Additive (B, 1, G*N, S) masks by window and G, shared by all layers."""

    def mask(self, window: int | None, num_groups: int, dtype: torch.dtype) -> Tensor:
        if (window, num_groups) not in self.masks:
            queries_BN1 = self.positions_BN[:, :, None]
            keys_S = torch.arange(self.num_attended, device=queries_BN1.device)
            allowed_BNS = keys_S <= queries_BN1
            if window is not None:
                allowed_BNS &= keys_S > queries_BN1 - window
            mask_BNS = additive_mask(allowed_BNS, dtype)
            self.masks[window, num_groups] = mask_BNS[:, None].repeat(1, 1, num_groups, 1)
        return self.masks[window, num_groups]


@dataclass
class Plan:
    """How one packed forward maps to slots; made once, used by every layer."""

    cache: KVCache
    slots_T: Tensor
    positions_T: Tensor
    groups: list[Group]

    @classmethod
    def of(cls, feeds: Sequence[Feed], cache: KVCache, device: torch.device) -> "Plan":
        slots = [feed.slot for feed in feeds for _ in feed.token_ids]
        positions = [position for feed in feeds for position in range(feed.start, feed.end)]
        offsets = [0]
        for feed in feeds:
            offsets.append(offsets[-1] + len(feed.token_ids))
        groups = [_group(feeds, members, offsets, device) for members in _partition(feeds)]
        return cls(cache, torch.tensor(slots, device=device), torch.tensor(positions, device=device), groups)


def _partition(feeds: Sequence[Feed]) -> list[list[int]]:
    """Indices of rows by similar number of new tokens, in slot order, masks kept under their limit."""
    buckets: dict[int, list[int]] = {}
    for index in sorted(range(len(feeds)), key=lambda i: feeds[i].slot):
        buckets.setdefault((len(feeds[index].token_ids) - 1).bit_length(), []).append(index)
    parts: list[list[int]] = []
    for bits, members in sorted(buckets.items()):
        longest = max(feeds[index].end for index in members)
        size = max(1, MAX_MASK_ELEMENTS // ((1 << bits) * longest))
        parts += [members[i : i + size] for i in range(0, len(members), size)]
    return parts


def _group(feeds: Sequence[Feed], members: list[int], offsets: list[int], device: torch.device) -> Group:
    width = max(len(feeds[index].token_ids) for index in members)
    first, last = feeds[members[0]].slot, feeds[members[-1]].slot
    as_view = 2 * len(members) > last - first
    num_rows = last - first + 1 if as_view else len(members)
    packed = [[0] * width for _ in range(num_rows)]
    positions = [[0] * width for _ in range(num_rows)]
    targets: list[int] = []
    sources: list[int] = []
    for order, index in enumerate(members):
        feed, row = feeds[index], feeds[index].slot - first if as_view else order
        count = len(feed.token_ids)
        packed[row] = [*range(offsets[index], offsets[index + 1])] + [offsets[index + 1] - 1] * (
            width - count
        )
        positions[row] = [*range(feed.start, feed.end)] + [feed.end - 1] * (width - count)
        targets += packed[row][:count]
        sources += range(row * width, row * width + count)
    return Group(
        slots=slice(first, last + 1)
        if as_view
        else torch.tensor([feeds[i].slot for i in members], device=device),
        packed_BN=torch.tensor(packed, device=device),
        positions_BN=torch.tensor(positions, device=device),
        targets=torch.tensor(targets, device=device),
        sources=torch.tensor(sources, device=device),
        num_attended=max(feeds[index].end for index in members),
    )


def slotted_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: Plan,
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
    plan.cache.write(layer, plan.slots_T, plan.positions_T, key[0].transpose(0, 1), value[0].transpose(0, 1))
    query_TQH = query[0].transpose(0, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out_TQH = query_TQH.new_empty(*query_TQH.shape[:2], value.shape[-1])
    for group in plan.groups:
        keys_BKSH = plan.cache.keys[layer][group.slots, :, : group.num_attended]
        values_BKSH = plan.cache.values[layer][group.slots, :, : group.num_attended]
        out_TQH[group.targets] = _attend(
            query_TQH, keys_BKSH, values_BKSH, group, scale, sliding_window, softcap
        )
    return out_TQH[None], None


def _attend(
    query_TQH: Tensor,
    keys_BKSH: Tensor,
    values_BKSH: Tensor,
    group: Group,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One group's outputs, (real queries, Q, H). Query heads that share keys become queries of one head: no repeats."""
    rows, width = group.packed_BN.shape
    num_heads, head_size = query_TQH.shape[1:]
    kv_heads = keys_BKSH.shape[1]
    num_groups = num_heads // kv_heads
    query_BNKGH = query_TQH[group.packed_BN].view(rows, width, kv_heads, num_groups, head_size)
    query = query_BNKGH.permute(0, 2, 3, 1, 4).reshape(rows, kv_heads, num_groups * width, head_size)
    mask = group.mask(window, num_groups, query.dtype)
    if softcap is None:
        out = scaled_dot_product_attention(query, keys_BKSH, values_BKSH, attn_mask=mask, scale=scale)
    else:
        scores = query @ keys_BKSH.transpose(2, 3) * scale
        scores = torch.tanh(scores / softcap) * softcap + mask
        out = (
            scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
            @ values_BKSH
        )
    out_BNKGH = out.view(rows, kv_heads, num_groups, width, -1).permute(0, 3, 1, 2, 4)
    return out_BNKGH.reshape(rows * width, num_heads, -1)[group.sources]


@contextmanager
def slotted(config: Any) -> Iterator[None]:
    """Let a model attend through `slotted_attention` for a while; its own attention is untouched afterwards."""
    previous = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = previous


AttentionInterface.register(NAME, slotted_attention)
