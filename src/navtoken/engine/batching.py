"""The batching rule: how many rows must wait before the LLM runs, and whether routing pays at all.

Waiting fills the LLM's passes and empties the SLM's. The best number follows from the two models' step times and the LLM
share (see `planner`); both are measured while decoding, and asked again as they change. Which tokens come out never
depends on it.
"""

from navtoken.engine.options import EngineOptions
from navtoken.engine.sequence import Sequence, State
from navtoken.placement import agree
from navtoken.planner import StepTimer, Workload, best_min_rows, predict
from navtoken.policies.base import Writer

ASK_EVERY = 64
"""Engine steps between two questions to the planner."""
FIRST_SHARE, FIRST_WEIGHT = 0.13, 50.0
"""The share is taken to be R2R's until so many drafts have shown another."""
MEMORY = 0.98
"""What a step leaves of the counts before it: the share follows the load."""
MOST_WAIT = 256
"""Engine steps that a parked row waits at most: its neighbours may never park."""
MOST_PLANNED = 1024
"""Rows up to which the planner is asked; more are planned as so many."""
LEAST_SHARE = 1e-3
"""The planner divides by the share."""
MARGIN = 1.03
"""Routing must be predicted so much faster, or slower, before the fallback changes sides."""


class BatchingRule:
    """Says when parked rows go to the LLM."""

    def __init__(self, options: EngineOptions, ranks_must_agree: bool = False) -> None:
        """`ranks_must_agree` where several ranks share a model: each measures other times."""
        self.options = options
        self.ranks_must_agree = ranks_must_agree
        self.timers = (StepTimer(), StepTimer())
        self.llm_writes_all = False
        """Has routing been found not to pay, and is the LLM to write everything?"""
        self._auto_min_rows: int | None = None
        self._num_drafts, self._num_parked = FIRST_WEIGHT, FIRST_SHARE * FIRST_WEIGHT
        self._age = self._num_waited = 0

    @property
    def share(self) -> float:
        """Running share of drafts that went to the LLM."""
        return self._num_parked / self._num_drafts

    def observe_pass(self, model: Writer, num_tokens: int, seconds: float) -> None:
        """A model's pass over so many new tokens took so long."""
        self.timers[model].record(num_tokens, seconds)

    def observe_drafts(self, rows: list[Sequence]) -> None:
        """These rows' drafts were decided."""
        self._num_drafts = MEMORY * self._num_drafts + len(rows)
        self._num_parked = MEMORY * self._num_parked + sum(row.state is State.PARKED for row in rows)

    def min_rows(self, num_running: int) -> int:
        """How many rows must wait."""
        if self.options.llm_min_rows != "auto":
            return self.options.llm_min_rows
        if self._auto_min_rows is None:
            return max(1, round(num_running**0.5))
        return self._auto_min_rows

    def due(self, num_parked: int, num_running: int) -> bool:
        """Does the LLM run now? It does where nothing else is ready, and after `MOST_WAIT` steps at the latest.

        `num_running` counts rows that may come to wait: those of policies without the LLM never do.
        """
        due = num_parked >= min(self.min_rows(num_running), num_running)
        self._num_waited = 0 if due or not num_parked else self._num_waited + 1
        return due or self._num_waited >= MOST_WAIT

    def plan(self, num_running: int) -> None:
        """Ask the planner again once in a while; called every step."""
        self._age += 1
        if self._age % ASK_EVERY or not self._asks() or not num_running:
            return
        self._ask(num_running)
        if self.ranks_must_agree:
            self._auto_min_rows, self.llm_writes_all = agree((self._auto_min_rows, self.llm_writes_all))

    def _ask(self, num_running: int) -> None:
        slm, llm = (timer.times() for timer in self.timers)
        if slm is None or llm is None:
            return
        if self.llm_writes_all and num_running < slm.num_tokens[0]:
            # The SLM never ran on so few rows, and never will unless routing is tried.
            self.llm_writes_all = False
            return
        workload = Workload(slm, llm, min(1.0, max(self.share, LEAST_SHARE)), min(num_running, MOST_PLANNED))
        if self.options.llm_min_rows == "auto":
            self._auto_min_rows = best_min_rows(workload)
        if self.options.when_unprofitable == "llm":
            gain = predict(workload, self.min_rows(num_running)).times_llm_alone
            self.llm_writes_all = gain * MARGIN < 1 or (self.llm_writes_all and gain < MARGIN)

    def _asks(self) -> bool:
        return self.options.llm_min_rows == "auto" or self.options.when_unprofitable == "llm"
