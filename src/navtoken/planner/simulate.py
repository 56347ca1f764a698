"""The engine's loop played with coins instead of models: the planner's slow oracle.

Unlike the chains it keeps each row's own lag (the tokens that the LLM lacks), so an LLM pass costs what that
pass feeds. Many independent copies of the engine run in arrays; their scatter gives the standard error.

Shapes: C copies of the engine, N rows of each.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from navtoken.planner.step_times import PlanError
from navtoken.planner.workload import Prediction, Workload, effective_min_rows

# Copies of the engine: enough for a standard error, and more where each has few rows, so that arrays pay.
_NUM_COPIES = 32
_NUM_ROWS = 256
# Every row first goes to the LLM so many times.
_NUM_WARM_UP = 5
# Two events closer than this part of an SLM step are one.
_SAME = 1e-9


class _Tally(NamedTuple):
    """What the copies did in one step, each of shape (C,)."""

    seconds: np.ndarray
    tokens: np.ndarray
    """Drafts made, each of which becomes one committed token, now or when the LLM has written."""
    slm_passes: np.ndarray
    llm_passes: np.ndarray
    llm_rows: np.ndarray


def simulate(workload: Workload, min_rows: int, num_tokens: int = 100_000, seed: int = 0) -> Prediction:
    """Decode at least `num_tokens` tokens after a warm-up, with B = `min_rows`.

    The same seed gives the same answer. Raises `PlanError` for less than one token or `min_rows` below 1.
    """
    if num_tokens < 1:
        raise PlanError(f"num_tokens is {num_tokens}; give at least 1")
    min_rows = effective_min_rows(workload, min_rows)
    num_copies = max(_NUM_COPIES, _NUM_ROWS // workload.rows)
    play = _side_by_side if workload.placement == "side-by-side" else _turns
    steps = play(workload, min_rows, num_copies, np.random.default_rng(seed))
    _play_until(steps, _NUM_WARM_UP * num_copies * workload.rows / workload.share)
    return _predict(workload, min_rows, _play_until(steps, num_tokens))


def _play_until(steps: Iterator[_Tally], num_tokens: float) -> _Tally:
    """Sums over steps until all copies together have made so many tokens."""
    total = next(steps)
    while total.tokens.sum() < num_tokens:
        total = _Tally(*(a + b for a, b in zip(total, next(steps), strict=True)))
    return total


def _predict(workload: Workload, min_rows: int, total: _Tally) -> Prediction:
    tokens = total.tokens.sum()
    rate = tokens / total.seconds.sum()
    # The error of a ratio of means, from how far single copies are off it.
    off_C = total.tokens - rate * total.seconds
    return Prediction(
        min_rows=min_rows,
        tokens_per_second=float(rate),
        llm_alone=workload.llm_alone,
        slm_passes_per_token=float(total.slm_passes.sum() / tokens),
        llm_passes_per_token=float(total.llm_passes.sum() / tokens),
        mean_llm_rows=float(total.llm_rows.sum() / max(total.llm_passes.sum(), 1)),
        standard_error=float(off_C.std(ddof=1) * np.sqrt(len(off_C)) / total.seconds.sum()),
    )


def _turns(workload: Workload, min_rows: int, num_copies: int, rng: np.random.Generator) -> Iterator[_Tally]:
    """Steps of `Engine.step`: the SLM over ready rows, then the LLM over parked ones if the rule says so."""
    lag_CN = np.ones((num_copies, workload.rows), dtype=np.int64)
    parked_CN = np.zeros_like(lag_CN, dtype=bool)
    ones_C = np.ones(num_copies, dtype=np.int64)
    while True:
        ready_CN = ~parked_CN
        drafts_C = ready_CN.sum(1)
        handed_CN = ready_CN & (rng.random(lag_CN.shape) < workload.share)
        lag_CN += ready_CN & ~handed_CN
        parked_CN |= handed_CN
        due_C = parked_CN.sum(1) >= min_rows
        writing_CN = parked_CN & due_C[:, None]
        seconds_C = workload.slm.at(drafts_C) + workload.overhead_slm
        fed_C = (lag_CN * writing_CN).sum(1)
        seconds_C += np.where(due_C, workload.llm.at(fed_C) + workload.overhead_llm, 0.0)
        lag_CN[writing_CN] = 1
        parked_CN &= ~writing_CN
        yield _Tally(seconds_C, drafts_C, ones_C, due_C.astype(np.int64), writing_CN.sum(1))


def _side_by_side(
    workload: Workload, min_rows: int, num_copies: int, rng: np.random.Generator
) -> Iterator[_Tally]:
    """SLM steps, in which LLM passes end and begin; the conventions are those of `side_by_side`."""
    rows = _OverlappedRows(workload, min_rows, num_copies)
    everywhere_C = np.full(num_copies, True)
    while True:
        rows.begin_step()
        drafts_C = rows.count(_READY)
        step_C = workload.slm.at(drafts_C) + workload.overhead_slm
        while (ending_C := rows.left_C < (1 - _SAME) * step_C).any():
            ended_C = rows.left_C
            rows.end_pass(ending_C)
            rows.launch(ending_C, ended_C)
        rows.left_C = rows.left_C - step_C
        rows.end_pass(rows.left_C <= _SAME * step_C)
        rows.draft(rng.random(rows.where_CN.shape) < workload.share)
        rows.launch(everywhere_C)
        stuck_C = rows.count(_READY) + rows.count(_BACK) == 0
        waited_C = np.where(stuck_C, rows.left_C, 0.0)
        rows.end_pass(stuck_C)
        rows.launch(stuck_C)
        yield _Tally(step_C + waited_C, drafts_C, np.ones_like(drafts_C), rows.passes_C, rows.written_C)


_READY, _WAITING, _RUNNING, _BACK = range(4)


class _OverlappedRows:
    """Where each row is while both models run: with the SLM, waiting, in the LLM or back from it."""

    def __init__(self, workload: Workload, min_rows: int, num_copies: int) -> None:
        self.workload = workload
        self.min_rows = min_rows
        self.where_CN = np.full((num_copies, workload.rows), _READY)
        self.lag_CN = np.ones_like(self.where_CN)
        self.left_C = np.full(num_copies, np.inf)
        """Seconds until the LLM's pass ends; infinite while it is idle."""
        self.begin_step()

    def count(self, where: int) -> np.ndarray:
        """How many rows are there, shape (C,)."""
        return (self.where_CN == where).sum(1)

    def begin_step(self) -> None:
        """Rows that came back from the LLM join, and the step's counts begin at 0."""
        self.where_CN[self.where_CN == _BACK] = _READY
        self.passes_C = np.zeros(len(self.where_CN), dtype=np.int64)
        self.written_C = np.zeros(len(self.where_CN), dtype=np.int64)

    def draft(self, handed_CN: np.ndarray) -> None:
        """Ready rows keep their draft, or wait for the LLM."""
        ready_CN = self.where_CN == _READY
        self.lag_CN += ready_CN & ~handed_CN
        self.where_CN[ready_CN & handed_CN] = _WAITING

    def end_pass(self, ending_C: np.ndarray) -> None:
        """The LLM gives its rows back and is idle."""
        if not ending_C.any():
            return
        self.where_CN[(self.where_CN == _RUNNING) & ending_C[:, None]] = _BACK
        self.left_C = np.where(ending_C, np.inf, self.left_C)

    def launch(self, may_C: np.ndarray, now_C: np.ndarray | float = 0.0) -> None:
        """Where the LLM is idle and enough rows wait, it takes them all, `now_C` seconds into the step."""
        num_C = self.count(_WAITING)
        going_C = may_C & np.isinf(self.left_C) & (num_C >= self.min_rows)
        if not going_C.any():
            return
        taken_CN = (self.where_CN == _WAITING) & going_C[:, None]
        fed_C = (self.lag_CN * taken_CN).sum(1)
        ends_C = now_C + self.workload.llm.at(fed_C) + self.workload.overhead_llm
        self.left_C = np.where(going_C, ends_C, self.left_C)
        self.where_CN[taken_CN] = _RUNNING
        self.lag_CN[taken_CN] = 1
        self.passes_C += going_C
        self.written_C += np.where(going_C, num_C, 0)
