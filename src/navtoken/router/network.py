"""The router: from a draft's features to how likely the LLM would take another path there.

As in the paper: each input is projected, then come residual MLP blocks. All inputs go through one linear layer side by side,
which is the paper's projections in one: nothing non-linear lies between those and its first block.

Logits are read as log-probabilities, so that a shift of all logits (which means nothing) changes nothing; each is
standardised by its mean and spread in training. The network computes in float32 whatever the SLM's type.

Shapes: B drafts, K logits read, D hidden size, E embedding size, I numbers of all inputs, W width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from navtoken.router.features import DraftFeatures
from navtoken.router.shape import RouterShape

FLOOR = -12.0
"""Log-probability below which a token counts for nothing."""
LOWEST = -80.0
"""Exponentials below float32's normal range are slow."""
LEAST_VARIANCE = 0.1
"""A token that was hardly ever probable in training must not outweigh everything where it is."""


class Block(nn.Module):
    """A pre-norm MLP, added to its input."""

    def __init__(self, width: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width * expansion)
        self.down = nn.Linear(width * expansion, width)
        self.dropout = dropout

    def forward(self, x_BW: Tensor) -> Tensor:
        inner = self._dropped(functional.gelu(self.up(self.norm(x_BW))))
        return x_BW + self._dropped(self.down(inner))

    def _dropped(self, x: Tensor) -> Tensor:
        # Where rows are few, a call that does nothing takes as long as one that does something.
        return functional.dropout(x, self.dropout) if self.training else x


class RouterNetwork(nn.Module):
    """Maps drafts to logits of p(divergent).

    In training mode, batches must hold more than one draft: inputs are standardised by running means over batches.
    """

    def __init__(self, shape: RouterShape) -> None:
        super().__init__()
        self.shape = shape
        self.norms = nn.ModuleDict({name: _norm(shape, name, size) for name, size in shape.sizes.items()})
        self.project = nn.Linear(sum(shape.sizes.values()), shape.width)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.expansion, shape.dropout) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, 1)

    def forward(self, features: DraftFeatures, embedding_BE: Tensor | None = None) -> Tensor:
        """Logits of p(divergent), float32 (B,). `embedding_BE` are the SLM's embeddings of the drafted tokens, where read."""
        inputs = self._inputs(features, embedding_BE)
        x_BW = self.project(torch.cat([self.norms[name](value) for name, value in inputs.items()], -1))
        for block in self.blocks:
            x_BW = block(x_BW)
        logit_B1: Tensor = self.head(self.norm(x_BW))
        return logit_B1[:, 0]

    @torch.no_grad()
    def shift(self, nats: float) -> None:
        """Add to every logit from now on: training with a weight w on divergent tokens is set right by -log(w)."""
        self.head.bias.add_(nats)

    @property
    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.parameters())

    def _inputs(self, features: DraftFeatures, embedding_BE: Tensor | None) -> dict[str, Tensor]:
        """The inputs by name, in the shape's order, float32."""
        values: dict[str, Tensor] = {}
        if self.shape.reads_logits:
            values |= self._of_logits(features)
        if "embedding" in self.shape.inputs:
            assert embedding_BE is not None, "this router reads the drafted tokens' embeddings"
            values["embedding"] = embedding_BE.float()
        if "hidden" in self.shape.inputs:
            values["hidden"] = features.hidden_BD.float()
        return {name: values[name] for name in self.shape.inputs}

    def _of_logits(self, features: DraftFeatures) -> dict[str, Tensor]:
        logits_BK = self._ordered(features)
        logprobs_BK = logits_BK.log_softmax(-1).clamp(min=LOWEST)
        values = {"logits": self._read(logits_BK, logprobs_BK)}
        if {"summary", "entropy"} & set(self.shape.inputs):
            values["entropy"] = -torch.linalg.vecdot(logprobs_BK.exp(), logprobs_BK)[:, None]
        if "summary" in self.shape.inputs:
            best_BK = logprobs_BK.topk(2, dim=-1).values if self.shape.by_id else logprobs_BK
            margin_B1 = best_BK[:, :1].exp() - best_BK[:, 1:2].exp()
            draft_B1 = self._draft_logprobs(features, logprobs_BK)[:, None]
            values["summary"] = torch.cat([values["entropy"], draft_B1, margin_B1], -1)
        return values

    def _read(self, logits_BK: Tensor, logprobs_BK: Tensor) -> Tensor:
        """Logits as the shape's norm has them."""
        if self.shape.norm == "none":
            return logits_BK
        return logprobs_BK.exp() if self.shape.norm == "softmax" else logprobs_BK.clamp(min=FLOOR)

    def _ordered(self, features: DraftFeatures) -> Tensor:
        """The logits in the order in which this router reads them, float32 (B, K)."""
        if features.in_id_order and self.shape.by_id:
            return features.top_logits_BK.float()
        logits_BK = features.top_logits_BK[:, : self.shape.top_k].float()
        if not self.shape.by_id:
            assert not features.in_id_order, "this router reads the most probable logits first"
            return logits_BK
        all_BV = logits_BK.new_full((len(logits_BK), self.shape.vocab_size), -torch.inf)
        return all_BV.scatter(1, features.top_ids_BK.long(), logits_BK)

    def _draft_logprobs(self, features: DraftFeatures, logprobs_BK: Tensor) -> Tensor:
        """The drafted tokens' log-probabilities (B,): the floor for one that is not among those read."""
        drafted_B1 = features.token_ids_B.long()[:, None]
        floored_BK = logprobs_BK.clamp(min=FLOOR)
        if self.shape.by_id:
            return floored_BK.gather(1, drafted_B1)[:, 0]
        found_BK = features.top_ids_BK[:, : self.shape.top_k] == drafted_B1
        return torch.where(found_BK, floored_BK, FLOOR).amax(-1)


def _norm(shape: RouterShape, name: str, size: int) -> nn.Module:
    if name in ("embedding", "hidden"):
        return nn.Identity() if shape.norm == "none" else nn.LayerNorm(size)
    if name == "logits" and shape.norm != "standard":
        return nn.Identity()
    # No momentum: the mean over all batches of training, each counting alike.
    return nn.BatchNorm1d(size, eps=LEAST_VARIANCE, momentum=None, affine=False)
