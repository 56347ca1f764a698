"""Speculative decoding, lossless: the SLM drafts K tokens, the LLM judges them all in one pass.

Rejection sampling as in Leviathan et al. 2023 (arXiv 2211.17192, algorithm 1): draft x is kept with probability
min(1, p(x) / q(x)), p and q being what the LLM and the SLM draw from after all sampling parameters; the first that is not kept
is replaced by a draw from the normalised max(0, p - q); where all are kept, the LLM adds a token of its own. Responses
follow the LLM's distribution exactly; with greedy decoding they are the LLM's.

`speculative:auto` chooses K per row from the row's own running acceptance and the pair's cost ratio, so that a response
does not depend on what else is decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from navtoken.policies.base import BasePolicy, Drafts, Judged, PairView, Verdicts, Writer, Writes
from navtoken.policies.noise import Purpose
from navtoken.policies.rules import PolicyError

MOST_DRAFTS = 16
"""Longest run of drafts that `auto` takes."""
FIRST_DRAFTS = 4
"""Drafts of `auto` before anything was judged."""
PRIOR_KEPT, PRIOR_JUDGED = 3.2, 4.0
"""The running acceptance starts as if so many drafts had been kept of so many judged."""
MEMORY = 0.9
"""What a cycle leaves of the counts before it: acceptance changes within a response."""


@dataclass
class Speculation:
    """A row's state."""

    num_drafts: int
    """Drafts before the LLM judges."""
    probs: list[Tensor] = field(default_factory=list)
    """What each provisional draft was drawn from, (V,)."""
    kept: float = PRIOR_KEPT
    judged: float = PRIOR_JUDGED


@dataclass(frozen=True)
class SpeculativePolicy(BasePolicy):
    """The SLM drafts, the LLM accepts or replaces: the LLM's own responses, in fewer of its passes."""

    num_drafts: int | None
    """Drafts per LLM pass; None adapts to the row's acceptance."""
    cost_ratio: float = 0.05
    """Cost of an SLM pass over that of an LLM pass; `auto` weighs a further draft by it."""
    verifies = True
    lossless = True

    def __post_init__(self) -> None:
        if self.num_drafts is not None and not 1 <= self.num_drafts <= 64:
            raise PolicyError(f"speculative:{self.num_drafts} is out of range; give 1 to 64 drafts, or auto")

    @property
    def reference(self) -> str:
        return f"speculative:{'auto' if self.num_drafts is None else self.num_drafts}"

    @property
    def lookback(self) -> int:
        return MOST_DRAFTS if self.num_drafts is None else self.num_drafts

    def joined(self, pair: PairView) -> Self:
        return replace(self, cost_ratio=pair.cost_ratio)

    def start(self, prompt_ids: Sequence[int]) -> Speculation:
        return Speculation(self.num_drafts or FIRST_DRAFTS)

    def next_writer(self, state: Any) -> Writer:
        return Writer.LLM if len(state.probs) >= state.num_drafts else Writer.SLM

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        for state, probs_V in zip(drafts.states, drafts.probs().unbind(), strict=True):
            state.probs.append(probs_V)
        return Verdicts(torch.zeros_like(drafts.token_ids_B))

    def judge_writes(self, writes: Writes) -> Verdicts:
        assert writes.judged is not None
        return writes.judged.keep(*accept(writes.judged, [state.probs for state in writes.states]))

    def settle(self, state: Any, num_kept: int, num_judged: int) -> None:
        state.probs.clear()
        # Drafts behind the first rejected one were never judged: they say nothing of the acceptance.
        state.kept = MEMORY * state.kept + num_kept
        state.judged = MEMORY * state.judged + min(num_kept + 1, num_judged)
        if self.num_drafts is None:
            state.num_drafts = best_num_drafts(state.kept / max(state.judged, 1e-9), self.cost_ratio)


def accept(judged: Judged, draft_probs: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """How many provisional tokens of each row are kept, and the token after them: two int64 (B,).

    `draft_probs` has, per row, what each provisional token was drawn from, (V,).
    """
    probs_MV = judged.probs()
    device, size = probs_MV.device, probs_MV.shape[1]
    # The place after a row's drafts has nothing drafted: all zeros, so that "p - q" is p there.
    nothing_V = torch.zeros(size, dtype=probs_MV.dtype, device=device)
    drafted_MV = torch.stack([q_V.to(device) for row in draft_probs for q_V in (*row, nothing_V)])
    asked_M1 = judged.token_ids_M[:, None]
    p_M, q_M = probs_MV.gather(1, asked_M1)[:, 0], drafted_MV.gather(1, asked_M1)[:, 0]
    # So that what is no number is rejected, and seen.
    rejected_M = ~(judged.noise_M(Purpose.ACCEPTANCE) * q_M < p_M)
    kept_B, stop_B = judged.split(rejected_M)
    rest_BV = (probs_MV[stop_B] - drafted_MV[stop_B]).clamp_(min=0)
    noise_B = torch.where(
        kept_B == torch.tensor(judged.counts, device=device),
        judged.noise_M(Purpose.LLM_WRITE)[stop_B],
        judged.noise_M(Purpose.RESIDUAL)[stop_B],
    )
    return kept_B, invert(rest_BV, noise_B)


def invert(weights_BV: Tensor, noise_B: Tensor) -> Tensor:
    """The token in whose stretch of the cumulative weights the noise falls, int64 (B,); weights need no sum of 1."""
    cumulative_BV = weights_BV.double().cumsum(-1)
    target_B1 = (noise_B * cumulative_BV[:, -1])[:, None]
    return torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0].clamp_(max=weights_BV.shape[-1] - 1)


def best_num_drafts(acceptance: float, cost_ratio: float) -> int:
    """K with most tokens per cost: (1 - a^(K+1)) / (1 - a) tokens for K SLM passes and one of the LLM."""
    a = min(max(acceptance, 0.0), 0.999)
    rates = [(1 - a ** (k + 1)) / (1 - a) / (k * cost_ratio + 1) for k in range(1, MOST_DRAFTS + 1)]
    return 1 + max(range(MOST_DRAFTS), key=rates.__getitem__)
