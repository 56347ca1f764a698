"""What a policy is: the rule that decides per draft whether the LLM writes this token instead.

The engine knows only this protocol. A policy is a frozen object shared by all rows; what it remembers about a row
is the state that `start` made, which the engine hands back with every batch. A policy that keeps no state and never
looks at the LLM's logits inherits everything but `judge_drafts` from `BasePolicy`.

Shapes: B rows in the batch, V vocabulary (the tokenizer's, without padded rows), D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor


class Writer(IntEnum):
    """Which model of the pair: as a row's next writer, as a token's writer, as an index of per-model bookkeeping."""

    SLM = 0
    LLM = 1


class Action(IntEnum):
    """What becomes of a draft."""

    KEEP = 0
    """Commit the draft."""
    LLM = 1
    """Of a draft: the row waits for the LLM. Of the LLM's logits: commit the token sampled from them."""
    REPLACE = 2
    """Commit `Verdict.token` instead."""
    ROLL_BACK = 3
    """Drop all tokens of the response from `Verdict.position` on, and the draft."""


class Verdict(NamedTuple):
    """One policy decision on one row."""

    action: Action
    token: int = -1
    """For REPLACE: the token id to commit."""
    position: int = -1
    """For ROLL_BACK: how many tokens of the response remain."""


KEEP = Verdict(Action.KEEP)
TO_LLM = Verdict(Action.LLM)


class Verdicts(NamedTuple):
    """A policy's decisions on a batch."""

    verdicts: Sequence[Verdict]
    """One per row, in the batch's order."""
    p_divergent: Sequence[float] | None = None
    """A router's p(divergent) per row, recorded in the sequence; None for rules without a router."""


@dataclass(frozen=True)
class NoiseKeys:
    """Names the noise that each row of a batch may use: see `policies.noise.uniform`."""

    seed_B: np.ndarray
    sample_B: np.ndarray
    position_B: np.ndarray
    """Index, in prompt and response together, of the token being decided."""


@dataclass(frozen=True)
class Drafts:
    """The SLM's proposals for the next token of B rows."""

    token_ids_B: Tensor
    """The drafted tokens, int64."""
    logits_BV: Tensor
    """The SLM's logits after soft-cap and scaling, before any sampling parameter: what a router reads."""
    logprobs_BV: Tensor
    """Their log-softmax: T = 1."""
    hidden_BD: Tensor
    """The SLM's last hidden state: what its LM head was fed."""
    entropy_B: Tensor
    """Entropy in nats at T = 1."""
    keys: NoiseKeys
    states: Sequence[Any]
    """What `start` returned for each row; mutable objects are the policy's to change."""


@dataclass(frozen=True)
class Writes:
    """The LLM's view of the next token of B rows."""

    token_ids_B: Tensor
    """The tokens sampled from the LLM, int64."""
    logprobs_BV: Tensor
    """The LLM's log-probabilities at T = 1, before any sampling parameter."""
    hidden_BD: Tensor
    """The LLM's last hidden state."""
    entropy_B: Tensor
    """Entropy in nats at T = 1."""
    draft_ids_B: Tensor
    """What the SLM had drafted at this position, int64; -1 where the SLM did not draft."""
    keys: NoiseKeys
    states: Sequence[Any]


class Policy(Protocol):
    """Who writes the next token."""

    @property
    def reference(self) -> str:
        """The policy in the grammar of references, thresholds included: recorded in traces."""
        ...

    @property
    def models(self) -> frozenset[Writer]:
        """The models that may run under this policy; the others need not even fit into the context."""
        ...

    @property
    def lookback(self) -> int:
        """How many of the last tokens may still be rolled back: streams hold them back. 0 for plain routing."""
        ...

    @property
    def router_parameters(self) -> int:
        """Parameters of the router network run on every draft; 0 for rules without one."""
        ...

    def check_ready(self) -> None:
        """Raise an error naming the remedy if the policy cannot run yet (not calibrated, not trained)."""
        ...

    def start(self, prompt_ids: Sequence[int]) -> Any:
        """Make the state of a new row."""
        ...

    def next_writer(self, state: Any) -> Writer:
        """Which model runs next on a row with nothing pending: SLM drafts, or LLM writes at once."""
        ...

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        """Decide on drafts of the SLM."""
        ...

    def judge_writes(self, writes: Writes) -> Verdicts:
        """Decide once the LLM has run on rows that were handed to it."""
        ...


class BasePolicy:
    """Plain routing: every token is drafted, every verdict is final, the LLM writes what it is handed."""

    models = frozenset((Writer.SLM, Writer.LLM))
    lookback = 0
    router_parameters = 0

    def check_ready(self) -> None:
        """Ready at once."""

    def start(self, prompt_ids: Sequence[int]) -> Any:
        return None

    def next_writer(self, state: Any) -> Writer:
        return Writer.SLM

    def judge_writes(self, writes: Writes) -> Verdicts:
        return Verdicts([TO_LLM] * len(writes.token_ids_B))
