"""One row of decoding: tokens, what each model's KV cache holds of them, and a record per response token.

`token_ids` and `cached_len` are the only bookkeeping between tokens and KV caches. Prompt prefill, single-token
decode and catch-up differ only in how far `cached_len` lags.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from navtoken.engine.ledger import Ledger
from navtoken.engine.options import SamplingParams
from navtoken.engine.text import TextStream
from navtoken.policies.base import Policy, Writer

if TYPE_CHECKING:
    from navtoken.engine.memory import Prefix


class State(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    """No row is free yet."""
    READY = "ready"
    """The SLM drafts next."""
    PARKED = "parked"
    """The LLM runs next."""
    FINISHED = "finished"


class Said(NamedTuple):
    """What one model said about the token being decided; kept until that token is committed."""

    token_id: int
    """The token sampled from the model."""
    entropy: float
    """Nats, T = 1."""
    top_ids: Seq[int] = ()
    """Most probable tokens, best first; empty if alternatives are not recorded."""
    top_logprobs: Seq[float] = ()


class Written(NamedTuple):
    """One response token and what both models said about it. NaN, -1 or nothing where a value was not computed."""

    token_id: int
    writer: Writer
    entropy_slm: float = nan
    entropy_llm: float = nan
    """Nats, T = 1."""
    logprob_slm: float = nan
    logprob_llm: float = nan
    """Of this token, T = 1."""
    p_divergent: float = nan
    """The router's word on the draft."""
    draft_id: int = -1
    """What the SLM had drafted."""
    top_ids: Seq[int] = ()
    """Most probable tokens of the model that wrote this one, best first."""
    top_logprobs: Seq[float] = ()


class Record:
    """What is known of each response token, as one list per column of a trace."""

    def __init__(self) -> None:
        self.tokens: list[Written] = []

    @property
    def columns(self) -> dict[str, list]:
        """All columns by name, `writer` as numbers."""
        names = ("writer", "entropy_slm", "entropy_llm", "logprob_slm", "logprob_llm", "p_divergent")
        columns: dict[str, list] = {name: getattr(self, name) for name in names}
        return columns | {name: getattr(self, name) for name in ("draft_ids", "top_ids", "top_logprobs")}

    @property
    def writer(self) -> list[int]:
        return [int(token.writer) for token in self.tokens]

    @property
    def entropy_slm(self) -> list[float]:
        return [token.entropy_slm for token in self.tokens]

    @property
    def entropy_llm(self) -> list[float]:
        return [token.entropy_llm for token in self.tokens]

    @property
    def logprob_slm(self) -> list[float]:
        return [token.logprob_slm for token in self.tokens]

    @property
    def logprob_llm(self) -> list[float]:
        return [token.logprob_llm for token in self.tokens]

    @property
    def p_divergent(self) -> list[float]:
        return [token.p_divergent for token in self.tokens]

    @property
    def draft_ids(self) -> list[int]:
        return [token.draft_id for token in self.tokens]

    @property
    def top_ids(self) -> list[Seq[int]]:
        return [token.top_ids for token in self.tokens]

    @property
    def top_logprobs(self) -> list[Seq[float]]:
        return [token.top_logprobs for token in self.tokens]


@dataclass(eq=False)
class Sequence:
    """One request and, when finished, its answer."""

    sequence_id: int
    token_ids: list[int]
    """Prompt and response; as sampled, never decoded and tokenised again."""
    prompt_len: int
    sampling: SamplingParams
    max_len: int
    """Tokens of prompt and response at which the sequence is cut off."""
    seed: int
    sample: int
    """Which of several samples with one seed: part of the noise key."""
    policy: Policy
    """Who writes its tokens."""
    policy_state: Any = None
    cached_len: list[int] = field(default_factory=lambda: [0, 0])
    """Per model, how many of `token_ids` its KV cache holds."""
    tables: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    """Per model, the blocks of its KV cache that hold them, in order."""
    prefix: "Prefix | None" = None
    """First tokens that it shares with other rows, and their blocks."""
    prefix_len: int = 0
    """How many of those it begins with."""
    is_running: bool = False
    """Has it a row? Else it waits, or is finished."""
    state: State = State.WAITING
    finish_reason: str | None = None
    """`stop` (an end-of-sequence token or a stop string), `length` (max_tokens or the context is full) or `abort`."""
    stop_string: str | None = None
    """The stop string that ended it."""
    record: Record = field(default_factory=Record)
    ledger: Ledger = field(default_factory=Ledger)
    alone: bool = False
    """Does the LLM write the next token because routing does not pay?"""
    num_provisional: int = 0
    """Last response tokens that the LLM has still to judge."""
    num_streamed: int = 0
    """Response tokens that events have told already."""
    text: TextStream | None = None
    """Turns tokens into text for events, where a caller wants text."""
    draft: Said | None = None
    """The SLM's proposal for the next token, until that is decided."""
    draft_logprobs_V: Tensor | None = None
    """The SLM's log-probabilities there, T = 1, kept while the row waits for the LLM."""
    p_divergent: float = nan
    """The router's word on the draft being decided."""

    @property
    def response_ids(self) -> list[int]:
        return self.token_ids[self.prompt_len :]

    @property
    def num_response(self) -> int:
        return len(self.token_ids) - self.prompt_len

    @property
    def llm_share(self) -> float:
        """Response tokens written by the LLM / response tokens; 0 for an empty response."""
        return sum(token.writer for token in self.record.tokens) / max(1, self.num_response)

    def commit(self, written: Written) -> None:
        """Append a token."""
        self.token_ids.append(written.token_id)
        self.record.tokens.append(written)
        self.clear_draft()

    def roll_back(self, num_response: int) -> None:
        """Keep only the first tokens of the response, in the KV caches too; a token must follow, or `feed_last`."""
        if not 0 <= num_response <= self.num_response:
            raise ValueError(f"cannot roll back to {num_response} of {self.num_response} response tokens")
        if num_response < self.num_streamed:
            raise ValueError(
                f"tokens up to {self.num_streamed} are already streamed, cannot roll back to {num_response}; "
                "the policy's `lookback` must cover how far it rolls back"
            )
        del self.token_ids[self.prompt_len + num_response :]
        del self.record.tokens[num_response:]
        self.cached_len = [min(cached, len(self.token_ids)) for cached in self.cached_len]
        self.num_provisional = min(self.num_provisional, max(0, num_response - self.num_streamed))
        self.clear_draft()

    def feed_last(self) -> None:
        """Forget the last token's keys and values: a model needs a token to feed before it can predict one."""
        self.cached_len = [min(cached, len(self.token_ids) - 1) for cached in self.cached_len]

    def clear_draft(self) -> None:
        self.draft = self.draft_logprobs_V = None
        self.p_divergent = nan

    def check(self) -> None:
        """Assert the invariants of the bookkeeping."""
        assert 0 < self.prompt_len <= len(self.token_ids) <= self.max_len
        assert all(0 <= cached <= len(self.token_ids) for cached in self.cached_len)
        assert self.num_response == len(self.record.tokens)
        assert 0 <= self.num_provisional <= self.num_response - self.num_streamed
        assert self.is_running == (self.state in (State.READY, State.PARKED))
        assert (self.finish_reason is not None) == (self.state is State.FINISHED)
