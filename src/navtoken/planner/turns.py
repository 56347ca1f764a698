"""One device: the models take turns, as in `Engine.step`. Exact, for every batching rule at once.

A step extends the SLM over the ready rows; each draft is handed to the LLM with probability `share`, and its
row parks. Once B rows are parked the LLM runs over them and all rows are ready again: every LLM pass ends a
cycle and begins the next. Within a cycle the number of parked rows only grows, so the expected number of
steps spent at each number follows by forward substitution. It does not depend on B, which says only where the
cycle ends; hence one table serves all B.

Shapes: I parked rows at the start of a step (0 .. rows - 1), K parked rows after it (0 .. rows), B the rule
(1 .. rows).
"""

from dataclasses import dataclass

import numpy as np

from navtoken.planner.passes import llm_pass_seconds
from navtoken.planner.workload import Prediction, Workload


@dataclass(frozen=True)
class Cycles:
    """Expectations over one cycle, for each rule B = 1 .. rows, each of shape (B,)."""

    slm_passes: np.ndarray
    """SLM passes; there is one LLM pass a cycle."""
    tokens: np.ndarray
    """Committed tokens, as many as drafts."""
    llm_rows: np.ndarray
    """Rows of the LLM pass."""
    seconds: np.ndarray
    """Time of all its passes."""

    def prediction(self, workload: Workload, min_rows: int) -> Prediction:
        """The rule `min_rows` of these."""
        tokens = float(self.tokens[min_rows - 1])
        return Prediction(
            min_rows=min_rows,
            tokens_per_second=tokens / float(self.seconds[min_rows - 1]),
            llm_alone=workload.llm_alone,
            slm_passes_per_token=float(self.slm_passes[min_rows - 1]) / tokens,
            llm_passes_per_token=1 / tokens,
            mean_llm_rows=float(self.llm_rows[min_rows - 1]),
        )


def cycles(workload: Workload) -> Cycles:
    """What a cycle costs and yields under every batching rule."""
    rows = workload.rows
    ready_I = rows - np.arange(rows)
    parked_K = np.arange(rows + 1)
    parks_IK = binomials(rows, workload.share)[
        ready_I[:, None], _clipped(parked_K - np.arange(rows)[:, None])
    ]
    steps_I = _expected_steps(parks_IK)
    launches_BK = np.cumsum(steps_I[:, None] * parks_IK, axis=0)
    launches_BK = np.where(parked_K > np.arange(rows)[:, None], launches_BK, 0.0)
    slm_I = workload.slm.at(ready_I) + workload.overhead_slm
    llm_K = llm_pass_seconds(workload) + workload.overhead_llm
    return Cycles(
        slm_passes=np.cumsum(steps_I),
        tokens=np.cumsum(steps_I * ready_I),
        llm_rows=launches_BK @ parked_K,
        seconds=np.cumsum(steps_I * slm_I) + launches_BK @ llm_K,
    )


def binomials(num: int, share: float) -> np.ndarray:
    """P(m of n drafts are handed to the LLM), shape (num + 1, num + 2) over (n, m); 0 where m > n.

    The last column is 0 throughout, for what lies outside.
    """
    counts = np.arange(num + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.maximum(counts[1:], 1)))))
    n, m = counts[:, None], np.minimum(counts[None, :], counts[:, None])
    # The smallest float stands for 0, whose logarithm times 0 would not be 0.
    keeps = np.log1p(-share) if share < 1 else np.log(np.finfo(float).tiny)
    logs = m * np.log(share) + (n - m) * keeps
    table = np.exp(log_factorial[n] - log_factorial[m] - log_factorial[n - m] + logs)
    return np.pad(np.where(counts[None, :] <= n, table, 0.0), ((0, 0), (0, 1)))


def _clipped(parks_IK: np.ndarray) -> np.ndarray:
    """Rows that park as columns of `binomials`; a negative number means the column of zeros."""
    return np.where(parks_IK >= 0, parks_IK, -1)


def _expected_steps(parks_IK: np.ndarray) -> np.ndarray:
    """Expected steps of a cycle that start with I parked rows, were it to end only when all are parked."""
    num = len(parks_IK)
    steps_I = np.zeros(num)
    stays_I = parks_IK.diagonal()
    for parked in range(num):
        arrivals = 1.0 if parked == 0 else steps_I[:parked] @ parks_IK[:parked, parked]
        steps_I[parked] = arrivals / (1 - stays_I[parked])
    return steps_I
