"""Whole-query routing, the baseline of both papers' tables: one decision per prompt, about who writes the whole response.

A router of kind `query` reads what the SLM makes of the prompt (its hidden state at the prompt's last token, where the first token
is drafted) and says how likely the LLM is needed. Where that is above the threshold the LLM writes everything, else the SLM does, and the
other model never runs again on that row. It is asked once, so it costs the prompt's pass of the SLM even where the LLM writes.

A share is the share of tokens that the LLM writes, as everywhere, and not of responses: the two differ, as prompts that go to the LLM
have longer responses, or shorter ones. So calibration listens to each response's probability once per token of it, and again on
routed runs, as lengths change with the writer. With few prompts the share moves in steps of a response.

Shapes: B rows in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import torch
from torch import Tensor

from navtoken.policies.base import Drafts, Verdicts, Writer, Writes, route
from navtoken.policies.router import RouterPolicy, made_as, p_divergent
from navtoken.reference import Reference


@dataclass
class Query:
    """A row's state."""

    writer: Writer | None = None
    """Who writes the response; None before its first token."""
    probability: Tensor | None = None
    """What the router said, ()."""


@dataclass(frozen=True)
class QueryPolicy(RouterPolicy):
    """The LLM writes the whole response where the router, asked at its first token, says so."""

    name = "query"

    @property
    def capturable(self) -> bool:
        return False

    def start(self, prompt_ids: Sequence[int]) -> Query:
        return Query()

    def next_writer(self, state: Any) -> Writer:
        return Writer.LLM if state.writer is Writer.LLM else Writer.SLM

    def committed(self, state: Any, token_id: int, writer: Writer, entropy: float) -> None:
        state.writer = writer if state.writer is None else state.writer

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        assert self.threshold is not None, "check_ready comes before the first draft"
        signal_B = torch.full_like(drafts.entropy_B, nan, dtype=torch.float32)
        first = [index for index, state in enumerate(drafts.states) if state.writer is None]
        if first:
            asked = p_divergent(self.router, self.embedding, _part(drafts, first))
            signal_B[first] = asked
            for index, probability in zip(first, asked.unbind(), strict=True):
                drafts.states[index].probability = probability
        self._tell(drafts.states)
        return route(signal_B > self.threshold)._replace(p_divergent_B=signal_B)

    def judge_writes(self, writes: Writes) -> Verdicts:
        # A first token was drafted before: it has been told.
        self._tell([state for state in writes.states if state.writer is not None])
        return super().judge_writes(writes)

    def _tell(self, states: Sequence[Any]) -> None:
        """Let calibration hear a token of each of these rows."""
        said = [state.probability for state in states if state.probability is not None]
        if self.listener is not None and said:
            self.listener(torch.stack(said))


def _part(drafts: Drafts, rows: list[int]) -> Drafts:
    """What a router reads of some of the drafts."""
    return replace(
        drafts,
        token_ids_B=drafts.token_ids_B[rows],
        logits_BV=drafts.logits_BV[rows],
        hidden_BD=drafts.hidden_BD[rows],
    )


def make(reference: Reference) -> QueryPolicy:
    """`query:FOLDER`, with `threshold=` or `share=` (of tokens); without either, the threshold stored as default."""
    return made_as(QueryPolicy, "query", reference)
