"""What a model said about the next token of each row, computed for the batch and handed out row by row.

Shapes: B rows, V vocabulary, A alternatives.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from navtoken.engine.sequence import Evidence


@dataclass(frozen=True)
class BatchEvidence:
    """Everything is at T = 1, before sampling parameters."""

    token_ids_B: Tensor
    logprobs_BV: Tensor
    entropy_B: Tensor
    top_ids_BA: Tensor | None
    top_logprobs_BA: Tensor | None

    def per_row(self) -> Iterator[Evidence]:
        """One `Evidence` per row; few copies to the host for the whole batch."""
        token_ids = self.token_ids_B.tolist()
        logprobs = self.logprobs_BV.gather(1, self.token_ids_B[:, None])[:, 0].tolist()
        none: list[list] = [[]] * len(token_ids)
        tops = none if self.top_ids_BA is None else self.top_ids_BA.tolist()
        top_logprobs = none if self.top_logprobs_BA is None else self.top_logprobs_BA.tolist()
        rows = zip(
            token_ids,
            logprobs,
            self.entropy_B.tolist(),
            self.logprobs_BV.unbind(),
            tops,
            top_logprobs,
            strict=True,
        )
        return (Evidence(*row) for row in rows)


def gather_evidence(logits_BV: Tensor, token_ids_B: Tensor, num_alternatives: int) -> BatchEvidence:
    """Log-probabilities, entropies in nats, and the most probable tokens where asked for."""
    logprobs_BV = logits_BV.log_softmax(-1, dtype=torch.promote_types(logits_BV.dtype, torch.float32))
    entropy_B = torch.special.entr(logprobs_BV.exp()).sum(-1)
    if not num_alternatives:
        return BatchEvidence(token_ids_B, logprobs_BV, entropy_B, None, None)
    best = logprobs_BV.topk(min(num_alternatives, logprobs_BV.shape[-1]), dim=-1)
    return BatchEvidence(token_ids_B, logprobs_BV, entropy_B, best.indices, best.values)
