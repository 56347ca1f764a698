"""What a router knows of a draft: tensors that stay on the SLM's device.

The same four are in labelled traces, so a router is trained on what it will see.

Shapes: B drafts, K logits read, V vocabulary, D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from navtoken.router.shape import RouterShape, ShapeError

if TYPE_CHECKING:
    from navtoken.policies.base import Drafts


@dataclass(frozen=True)
class DraftFeatures:
    """B drafts as a router sees them. Logits are the SLM's, before sampling parameters; any floating-point type will do."""

    top_ids_BK: Tensor
    """Token ids of the logits, the most probable first, integers."""
    top_logits_BK: Tensor
    token_ids_B: Tensor
    """The drafted tokens, integers."""
    hidden_BD: Tensor
    """What the SLM's LM head was fed."""
    in_id_order: bool = False
    """Are the ids 0, 1, ... V-1 in every row instead?"""

    def __len__(self) -> int:
        return len(self.token_ids_B)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """Some of the drafts."""
        return self._mapped(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> Self:
        return self._mapped(lambda tensor: tensor.to(device))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            top_ids_BK=change(self.top_ids_BK),
            top_logits_BK=change(self.top_logits_BK),
            token_ids_B=change(self.token_ids_B),
            hidden_BD=change(self.hidden_BD),
        )


def features_of(drafts: "Drafts", shape: RouterShape) -> DraftFeatures:
    """What a router of this shape reads of drafts. Nothing here waits for the device.

    Raises `ShapeError` where the pair's vocabulary is not one that the router can read.
    """
    logits_BV, token_ids_B = drafts.logits_BV, drafts.token_ids_B
    size, vocab_size = logits_BV.shape
    if not shape.reads_logits:
        return DraftFeatures(token_ids_B.new_empty(size, 0), logits_BV[:, :0], token_ids_B, drafts.hidden_BD)
    if vocab_size < shape.top_k or (shape.by_id and vocab_size != shape.vocab_size):
        raise ShapeError(
            f"the router reads {shape.top_k} logits of a vocabulary of {shape.vocab_size}, this pair's has {vocab_size}; "
            "take the pair that it was trained for"
        )
    if shape.by_id:
        ids_BV = torch.arange(vocab_size, device=logits_BV.device).expand(size, -1)
        return DraftFeatures(ids_BV, logits_BV, token_ids_B, drafts.hidden_BD, in_id_order=True)
    best = logits_BV.topk(shape.top_k, dim=-1)
    return DraftFeatures(best.indices, best.values, token_ids_B, drafts.hidden_BD)
