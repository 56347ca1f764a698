"""What one client's request asks of the engine, and what it hears back.

A job is made and listened to on the event loop. Only the engine's thread touches its rows.
"""

import asyncio
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from time import monotonic

from navtoken.engine import Event, SamplingParams, Sequence
from navtoken.policies import Policy
from navtoken.serving.errors import ApiError
from navtoken.serving.prompt_scores import PromptScores, ScoredBy


@dataclass(frozen=True)
class Ask:
    """One response to be had."""

    prompt_ids: Seq[int]
    sampling: SamplingParams
    max_tokens: int
    seed: int
    sample: int
    policy: Policy
    prompt: int = 0
    """Which of the job's prompts."""
    shares_prompt: bool = False
    """Are there others of this prompt, that share its computation?"""


@dataclass(frozen=True)
class Scored:
    """The log-probabilities of a job's prompts are known."""

    prompts: list[PromptScores]


@dataclass(frozen=True)
class Heard:
    """A token of one of the job's responses, or its end."""

    choice: int
    """Index among the job's asks."""
    event: Event


News = Heard | Scored | ApiError
"""An `ApiError` ends the job."""


@dataclass(eq=False)
class Job:
    """Responses that are asked for together."""

    asks: Seq[Ask]
    score_prompts: Seq[Seq[int]] = ()
    """Token ids of prompts whose log-probabilities are wanted."""
    scored_by: ScoredBy | None = None
    num_top: int = 0
    """Alternatives wanted at each of their tokens."""
    inbox: "asyncio.Queue[News]" = field(default_factory=asyncio.Queue)
    submitted: float = field(default_factory=monotonic)
    rows: dict[Sequence, int] = field(default_factory=dict)
    """The engine's rows that are not finished, with the index of their ask."""
    num_unfinished: int = 0
    """Responses of which the end was not heard yet; counted on the event loop."""
    started: float | None = None
    """When the first of its rows got a place in the batch."""

    @property
    def weight(self) -> int:
        """Rows that it takes in the queue."""
        return max(1, len(self.asks), len(self.score_prompts))
