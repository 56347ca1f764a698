"""One row of decoding: tokens, what each model's KV cache holds of them, and a record per response token.

`token_ids` and `cached_len` are the only bookkeeping between tokens and KV caches. Prompt prefill, single-token
decode and catch-up differ only in how far `cached_len` lags.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum
from math import nan
from typing import Any, NamedTuple

from torch import Tensor

from navtoken.engine.ledger import Ledger
from navtoken.engine.options import SamplingParams
from navtoken.policies.base import Writer


class State(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    """No row is free yet."""
    READY = "ready"
    """The SLM drafts next."""
    PARKED = "parked"
    """The LLM runs next."""
    FINISHED = "finished"


class Evidence(NamedTuple):
    """What one model said about the token being decided; kept until that token is committed."""

    token_id: int
    """The token sampled from the model."""
    logprob: float
    """Its log-probability, T = 1."""
    entropy: float
    """Nats, T = 1."""
    logprobs_V: Tensor
    """Of all tokens, T = 1."""
    top_ids: Seq[int]
    """Most probable tokens, best first; empty if alternatives are not recorded."""
    top_logprobs: Seq[float]

    def logprob_of(self, token_id: int) -> float:
        return self.logprob if token_id == self.token_id else float(self.logprobs_V[token_id])


@dataclass
class Record:
    """Columns with one entry per response token. NaN, -1 or an empty list where a value was not computed."""

    writer: list[int] = field(default_factory=list)
    entropy_slm: list[float] = field(default_factory=list)
    entropy_llm: list[float] = field(default_factory=list)
    logprob_slm: list[float] = field(default_factory=list)
    logprob_llm: list[float] = field(default_factory=list)
    p_divergent: list[float] = field(default_factory=list)
    draft_ids: list[int] = field(default_factory=list)
    top_ids: list[Seq[int]] = field(default_factory=list)
    top_logprobs: list[Seq[float]] = field(default_factory=list)

    def truncate(self, num_tokens: int) -> None:
        for column in vars(self).values():
            del column[num_tokens:]


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
    policy_state: Any = None
    cached_len: list[int] = field(default_factory=lambda: [0, 0])
    """Per model, how many of `token_ids` its KV cache holds in this sequence's slot."""
    slot: int | None = None
    """Row of both KV caches."""
    state: State = State.WAITING
    finish_reason: str | None = None
    """`stop` (an end-of-sequence token), `length` (max_tokens or the context is full) or `abort`."""
    record: Record = field(default_factory=Record)
    ledger: Ledger = field(default_factory=Ledger)
    parent: "Sequence | None" = None
    """Until a row is free: the sequence whose cached prefix may be copied."""
    num_streamed: int = 0
    """Response tokens that events have told already."""
    evidence: list[Evidence | None] = field(default_factory=lambda: [None, None])
    """Per model, what it said about the token being decided; the SLM's is the draft."""
    p_divergent: float = nan
    """The router's word on the draft being decided."""

    @property
    def draft(self) -> Evidence | None:
        """The SLM's proposal for the next token, until that is decided."""
        return self.evidence[Writer.SLM]

    @property
    def response_ids(self) -> list[int]:
        return self.token_ids[self.prompt_len :]

    @property
    def num_response(self) -> int:
        return len(self.token_ids) - self.prompt_len

    @property
    def llm_share(self) -> float:
        """Response tokens written by the LLM / response tokens; 0 for an empty response."""
        return sum(self.record.writer) / max(1, len(self.record.writer))

    def pending_ids(self, model: Writer) -> list[int]:
        """The tokens that `model` must be fed before it can predict the next one: at least one."""
        return self.token_ids[self.cached_len[model] :]

    def mark_cached(self, model: Writer) -> None:
        """All tokens are now in the model's KV cache."""
        self.cached_len[model] = len(self.token_ids)

    def commit(self, token_id: int, writer: Writer) -> None:
        """Append a token, with what both models said about it."""
        (slm, llm), record = self.evidence, self.record
        wrote = self.evidence[writer]
        record.writer.append(int(writer))
        record.entropy_slm.append(slm.entropy if slm else nan)
        record.entropy_llm.append(llm.entropy if llm else nan)
        record.logprob_slm.append(slm.logprob_of(token_id) if slm else nan)
        record.logprob_llm.append(llm.logprob_of(token_id) if llm else nan)
        record.p_divergent.append(self.p_divergent)
        record.draft_ids.append(slm.token_id if slm else -1)
        record.top_ids.append(wrote.top_ids if wrote else [])
        record.top_logprobs.append(wrote.top_logprobs if wrote else [])
        self.token_ids.append(token_id)
        self.clear_evidence()

    def roll_back(self, num_response: int) -> None:
        """Keep only the first tokens of the response, in the KV caches too."""
        if not 0 <= num_response <= self.num_response:
            raise ValueError(f"cannot roll back to {num_response} of {self.num_response} response tokens")
        if num_response < self.num_streamed:
            raise ValueError(
                f"tokens up to {self.num_streamed} are already streamed, cannot roll back to {num_response}; "
                "the policy's `lookback` must cover how far it rolls back"
            )
        del self.token_ids[self.prompt_len + num_response :]
        self.record.truncate(num_response)
        self.clamp_cache()
        self.clear_evidence()

    def clamp_cache(self) -> None:
        """Forget cached tokens past the end, and the last one: a model needs one token to feed."""
        self.cached_len = [min(cached, len(self.token_ids) - 1) for cached in self.cached_len]

    def clear_evidence(self) -> None:
        self.evidence = [None, None]
        self.p_divergent = nan

    def check(self) -> None:
        """Assert the invariants of the bookkeeping."""
        assert 0 < self.prompt_len <= len(self.token_ids) <= self.max_len
        assert all(0 <= cached <= len(self.token_ids) for cached in self.cached_len)
        assert self.num_response == len(self.record.writer)
        assert (self.slot is not None) == (self.state in (State.READY, State.PARKED))
        assert (self.finish_reason is not None) == (self.state is State.FINISHED)
