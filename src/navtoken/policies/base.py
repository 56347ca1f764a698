"""What a policy is: the rule that decides per draft whether the LLM writes this token instead.

The engine knows only this protocol. A policy is a frozen object shared by all rows; what it remembers about a row
is the state that `start` made, which the engine hands back with every batch. A policy that keeps no state and never
looks at the LLM's logits inherits everything but `judge_drafts` from `BasePolicy`.

Shapes: B rows in the batch, V vocabulary (the tokenizer's, without padded rows), D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from navtoken.policies.noise import Purpose


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
    """Commit the verdict's token instead; where a position is given, after dropping the response from there on."""
    ROLL_BACK = 3
    """Drop all tokens of the response from the verdict's position on, and the draft."""


class Verdicts(NamedTuple):
    """A policy's decisions on a batch, as tensors on the models' device: nothing waits for them but one copy a step."""

    actions_B: Tensor
    """`Action` of each row, int64."""
    tokens_B: Tensor | None = None
    """For REPLACE: the token ids to commit, int64."""
    positions_B: Tensor | None = None
    """For ROLL_BACK, and REPLACE of judged tokens: how many tokens of the response remain, int64; -1 is all of them."""
    p_divergent_B: Tensor | None = None
    """A router's word on each draft, recorded in the sequence; NaN where it was not asked, None for rules without a router."""


def route(to_llm_B: Tensor) -> Verdicts:
    """Verdicts of a rule that only says yes or no: LLM where true, else KEEP."""
    return Verdicts(to_llm_B.long())


Noise = Callable[[Purpose], Tensor]
"""Each row's own uniform numbers in [0, 1) for a purpose, float64 (B,): see `policies.noise`."""


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
    noise: Noise
    probs: Callable[[], Tensor]
    """Makes the probabilities that the drafts were drawn from, after all sampling parameters, float64 (B, V)."""
    states: Sequence[Any]
    """What `start` returned for each row; mutable objects are the policy's to change."""


@dataclass(frozen=True)
class Judged:
    """For a policy that judges drafts by what the LLM says about each: the provisional tokens of B rows.

    M = sum of (count + 1) over rows: the LLM's word on each provisional token, then on the one after them.
    """

    counts: Sequence[int]
    """Provisional tokens of each row: the last ones of its response."""
    num_response: Sequence[int]
    """Response tokens of each row, provisional ones included."""
    token_ids_M: Tensor
    """The provisional tokens in order, and after the last of each row a 0, int64."""
    logprob_M: Tensor
    """The LLM's log-probability of each at T = 1, before any sampling parameter; what it says of those zeros means nothing."""
    noise_M: Noise
    """Noise of each of those positions."""
    probs: Callable[[], Tensor]
    """Makes the LLM's probabilities at each, after all sampling parameters, float64 (M, V)."""
    written_at: Callable[[Tensor], Tensor]
    """Draws what the LLM itself writes at some of these places, named by their indices among M: int64 token ids."""

    def split(self, rejected_M: Tensor) -> tuple[Tensor, Tensor]:
        """Per row, how many of its tokens come before the first rejected one, and the place of the one after them, both (B,).

        Places are indices among M; where no token is rejected, it is the place behind them all.
        """
        counts_B = torch.tensor(self.counts, device=rejected_M.device)
        first_B = torch.cumsum(counts_B + 1, 0) - (counts_B + 1)
        stops_M = rejected_M.clone()
        stops_M[first_B + counts_B] = True
        places_M = torch.arange(len(stops_M), device=stops_M.device)
        next_stop_M = torch.where(stops_M, places_M, len(stops_M)).flip(0).cummin(0).values.flip(0)
        stop_B = next_stop_M[first_B]
        return stop_B - first_B, stop_B

    def keep(self, kept_B: Tensor, tokens_B: Tensor) -> Verdicts:
        """Keep so many of each row's provisional tokens, and commit one of the LLM's behind them."""
        certain = [total - count for total, count in zip(self.num_response, self.counts, strict=True)]
        positions_B = kept_B + torch.tensor(certain, device=kept_B.device)
        return Verdicts(torch.full_like(tokens_B, int(Action.REPLACE)), tokens_B, positions_B)


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
    noise: Noise
    states: Sequence[Any]
    judged: Judged | None = None
    """Provisional tokens, where the policy `verifies`."""


@dataclass(frozen=True)
class PairView:
    """What a policy may know of the pair that it decides for."""

    cost_ratio: float
    """Cost of an SLM pass over that of an LLM pass, weights read."""
    vocab_size: int = 0
    """Tokens of the tokenizer."""
    slm_reference: str = ""
    """How the SLM was asked for: errors name it."""
    slm_fingerprint: Callable[[], str] = str
    """Makes the sha256 of the SLM's checkpoint; slow the first time."""
    slm_embedding: Callable[[], nn.Module | None] = lambda: None
    """The SLM's input embedding: token ids (B,) to (B, D) on the SLM's device."""


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
    def verifies(self) -> bool:
        """Are kept drafts provisional until the LLM has judged them, as in speculative decoding?"""
        ...

    @property
    def lossless(self) -> bool:
        """Are responses the LLM's own, whoever wrote their tokens? Then they end at the LLM's end tokens alone."""
        ...

    @property
    def router_parameters(self) -> int:
        """Parameters of the router network that judges drafts; 0 for rules without one."""
        ...

    @property
    def capturable(self) -> bool:
        """Do its verdicts follow from tensors and noise alone, without state, so that they can be captured with a pass?"""
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

    def joined(self, pair: PairView) -> "Policy":
        """The policy for a pair. Raises `PolicyError` where it was made for another."""
        ...

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        """Decide on drafts of the SLM. Tensors only: nothing here may wait for the device."""
        ...

    def judge_writes(self, writes: Writes) -> Verdicts:
        """Decide once the LLM has run on rows that were handed to it. Tensors only, likewise."""
        ...

    def settle(self, state: Any, num_kept: int, num_judged: int) -> None:
        """Hear how many of a row's provisional tokens were kept, where the policy `verifies`."""
        ...

    def committed(self, state: Any, token_id: int, writer: Writer, entropy: float) -> None:
        """Hear of a committed token, of its writer, and of the writer's entropy there (nats, T = 1)."""
        ...


class BasePolicy:
    """Plain routing: every token is drafted, every verdict is final, the LLM writes what it is handed."""

    models = frozenset((Writer.SLM, Writer.LLM))
    verifies = False
    lossless = False
    router_parameters = 0

    @property
    def lookback(self) -> int:
        return 0

    @property
    def capturable(self) -> bool:
        return False

    def check_ready(self) -> None:
        """Ready at once."""

    def start(self, prompt_ids: Sequence[int]) -> Any:
        return None

    def next_writer(self, state: Any) -> Writer:
        return Writer.SLM

    def joined(self, pair: PairView) -> Self:
        return self

    def judge_writes(self, writes: Writes) -> Verdicts:
        return Verdicts(torch.ones_like(writes.token_ids_B))

    def settle(self, state: Any, num_kept: int, num_judged: int) -> None:
        """Nothing to remember."""

    def committed(self, state: Any, token_id: int, writer: Writer, entropy: float) -> None:
        """Nothing to remember."""
