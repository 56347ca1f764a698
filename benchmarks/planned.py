"""What the planner expects of a whole run: its steady rates, with the beginning and the end of a real load around them.

The planner knows a fixed number of rows that decode for ever. A run also reads its prompts, and at its end rows run out.
Both are put around the planner's rates as cheaply as they can be had: prompts that join together are read in one pass,
by each model that reads them, which the running rows' tokens share; and while r rows are left they share the rate for r rows.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from navtoken.planner import StepTimes, Workload, best_min_rows, best_num_drafts, predict, speculative_rate
from navtoken.policies import Writer
from pairs import Request

Rate = Callable[[int], float]
"""Tokens per second of so many rows together."""


@dataclass(frozen=True)
class Planner:
    """Answers for one pair of bare step times."""

    slm: StepTimes
    llm: StepTimes

    def alone(self, model: Writer) -> Rate:
        """One model writes everything."""
        times = (self.slm, self.llm)[model]
        return lambda rows: rows / times(rows)

    def routed(self, share: float, min_rows: int | None = None) -> Rate:
        """`min_rows` None is the best B for the rows that there are."""

        def rate(rows: int) -> float:
            workload = self._workload(rows, share)
            return predict(workload, min_rows or best_min_rows(workload)).tokens_per_second

        return rate

    def with_fallback(self, share: float) -> Rate:
        """Routed where that pays, else the LLM alone."""
        routed, alone = self.routed(share), self.alone(Writer.LLM)
        return lambda rows: max(routed(rows), alone(rows))

    def speculative(self, acceptance: float, num_drafts: int | None = None) -> Rate:
        """`num_drafts` None is the best K for the rows that there are."""

        def rate(rows: int) -> float:
            workload = self._workload(rows, 1.0)
            num = num_drafts or best_num_drafts(workload, acceptance)
            return speculative_rate(workload, acceptance, num)

        return rate

    def best_min_rows(self, share: float, rows: int) -> int:
        """B for so many rows."""
        return best_min_rows(self._workload(rows, share))

    def seconds(self, requests: Sequence[Request], rows: int, rate: Rate, models: Sequence[Writer]) -> float:
        """Of the whole run; `models` are those that read the prompts."""
        known = cache(rate)
        waiting = deque(requests)
        running: list[float] = []
        seconds = 0.0
        while waiting or running:
            joining = [waiting.popleft() for _ in range(min(len(waiting), rows - len(running)))]
            seconds += self._reading(joining, len(running), models)
            running = [left for left in (*running, *(each.num_tokens - 1 for each in joining)) if left]
            if running:
                least = min(running)
                seconds += least * len(running) / known(len(running))
                running = [left - least for left in running if left > least]
        return seconds

    def _reading(self, joining: Sequence[Request], num_running: int, models: Sequence[Writer]) -> float:
        """What the joining rows' prompts add to a pass of the rows that run already; it gives their first tokens, too."""
        num_tokens = sum(len(request.prompt_ids) for request in joining)
        times = [(self.slm, self.llm)[model] for model in models]
        before = sum(each(num_running) for each in times) if num_running else 0.0
        return sum(each(num_running + num_tokens) for each in times) - before if joining else 0.0

    def _workload(self, rows: int, share: float) -> Workload:
        return Workload(self.slm, self.llm, share, rows)


def acceptance_of(tokens_per_pass: float, num_drafts: int) -> float:
    """Probability a that a draft is accepted, from 1 + a + ... + a^K tokens per pass of a row through the LLM."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if sum(middle**accepted for accepted in range(num_drafts + 1)) < tokens_per_pass:
            low = middle
        else:
            high = middle
    return high
