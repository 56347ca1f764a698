"""What the planner is asked and what it answers; the chains and the simulation share both."""

from dataclasses import dataclass
from typing import Literal

from navtoken.planner.step_times import PlanError, StepTimes

MAX_ROWS = 4096
"""The chains' tables grow with the square of the rows."""
Placement = Literal["turns", "side-by-side"]


@dataclass(frozen=True)
class Workload:
    """Rows that a pair of models decodes together, at steady state."""

    slm: StepTimes
    """Bare forward passes of the SLM; every ready row feeds one new token."""
    llm: StepTimes
    """Bare forward passes of the LLM; a row feeds its catch-up and the token before the one to write."""
    share: float
    """LLM share: the probability that a draft is handed to the LLM, the same for all drafts."""
    rows: int
    """Concurrency: rows decoded together."""
    placement: Placement = "turns"
    """`turns`: they take turns on one device. `side-by-side`: both run at once, on two devices or streams."""
    overhead_slm: float = 0.0
    """Seconds that an SLM step takes besides its forward pass."""
    overhead_llm: float = 0.0
    """Seconds that an LLM step takes besides its forward pass."""

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise PlanError(f"share is {self.share}; give a number above 0 and at most 1")
        if not 1 <= self.rows <= MAX_ROWS:
            raise PlanError(f"rows is {self.rows}; give 1 to {MAX_ROWS}")
        if self.overhead_slm < 0 or self.overhead_llm < 0:
            raise PlanError(
                f"overheads are {self.overhead_slm} and {self.overhead_llm} seconds; give at least 0"
            )

    @property
    def llm_alone(self) -> float:
        """Tokens per second of all rows when the LLM writes everything."""
        return self.rows / (self.llm(self.rows) + self.overhead_llm)


@dataclass(frozen=True)
class Prediction:
    """Routed decoding of a workload under one batching rule."""

    min_rows: int
    """B of the batching rule: the LLM runs once so many rows wait for it, or nothing else is ready."""
    tokens_per_second: float
    """Committed tokens of all rows."""
    llm_alone: float
    """Tokens per second of all rows when the LLM writes everything."""
    slm_passes_per_token: float
    """SLM passes per committed token."""
    llm_passes_per_token: float
    """LLM passes per committed token."""
    mean_llm_rows: float
    """Rows of an LLM pass, on average."""
    standard_error: float = 0.0
    """Of `tokens_per_second`, where it was simulated."""

    @property
    def times_llm_alone(self) -> float:
        """How many times as fast as the LLM alone."""
        return self.tokens_per_second / self.llm_alone

    @property
    def pays(self) -> bool:
        """Is routing at least as fast as the LLM alone?"""
        return self.tokens_per_second >= self.llm_alone


def effective_min_rows(workload: Workload, min_rows: int) -> int:
    """The rule's B within the rows that there are: when all of them wait, the LLM runs anyway.

    Raises `PlanError` below 1.
    """
    if min_rows < 1:
        raise PlanError(f"min_rows is {min_rows}; give at least 1")
    return min(min_rows, workload.rows)
