"""Two devices or streams, both models at once. TokenRouter's chain over (waiting, running, residual time).

Conventions, those of TokenRouter (arXiv 2610.12242, appendix D), whose published predictions this reproduces:

* The SLM begins a step as soon as it is idle and has a row. Drafts are judged when the step ends.
* The LLM takes all waiting rows as soon as it is idle and B of them wait; its rows come back together.
* A row that comes back while the SLM is at work joins its next step. What ends at once is one event:
  the LLM's next pass takes the rows that the SLM hands over just then.
* A handed draft counts as nothing; the token that the LLM writes in its place counts as one.

They look at the system whenever either model ends a pass. Here it is looked at when the SLM begins a step:
the state is how many rows wait, how many are in the LLM, and what is left of its pass; ends of LLM passes
within a step, and the wait of an SLM without rows for the LLM, are followed inside the transition. That is
the same process in fewer states. They round all times to 0.1 ms. Here only the residual is put on a grid, by
splitting it between its neighbours so that its mean stays; where all times are multiples of the quantum
nothing is rounded.

An LLM pass takes its mean time (see `passes`); that single passes scatter is neglected. The number of states
grows with the square of the rows; `fits` says where it is too many (above 16 to 30 rows).

Shapes: S states; moves are parallel arrays, one element per (state, outcome).
"""

from typing import NamedTuple

import numpy as np

from navtoken.planner.passes import llm_pass_seconds
from navtoken.planner.turns import binomials
from navtoken.planner.workload import Prediction, Workload

# Quanta of the shortest pass: the grid is as fine as this number of states allows.
_COARSEST, _FINEST = 3, 64
_NUM_STATES = 5_000
_SAME = 1e-9
_NUM_ITERATIONS = 20_000
_CONVERGED = 1e-10


class _Times(NamedTuple):
    """Durations in units of the grid's quantum, by number of rows 0 .. rows."""

    quantum: float
    slm: np.ndarray
    llm: np.ndarray


class _Moves(NamedTuple):
    """Ways on from states, as parallel arrays."""

    source: np.ndarray
    probability: np.ndarray
    waiting: np.ndarray
    running: np.ndarray
    left: np.ndarray
    """Quanta until the LLM's pass ends; meaningless where none is running."""


class _Chain(NamedTuple):
    """Transitions between SLM steps, and what a step that begins in each state does, each of shape (S,)."""

    source: np.ndarray
    target: np.ndarray
    probability: np.ndarray
    drafts: np.ndarray
    seconds: np.ndarray
    llm_passes: np.ndarray


def fits(workload: Workload) -> bool:
    """Is the chain small enough to be solved under every rule?"""
    coarsest = _times(workload, min_rows=1, pieces=_COARSEST)
    return _num_states(coarsest, min_rows=1) <= _NUM_STATES


def side_by_side(workload: Workload, min_rows: int) -> Prediction:
    """The chain's stationary rates, for B = `min_rows` from 1 to the workload's rows."""
    chain = _chain(workload, min_rows)
    stationary_S = _stationary(chain)
    drafts = float(stationary_S @ chain.drafts)
    passes = float(stationary_S @ chain.llm_passes)
    return Prediction(
        min_rows=min_rows,
        tokens_per_second=drafts / float(stationary_S @ chain.seconds),
        llm_alone=workload.llm_alone,
        slm_passes_per_token=1 / drafts,
        llm_passes_per_token=passes / drafts,
        mean_llm_rows=workload.share * drafts / passes,
    )


def _times(workload: Workload, min_rows: int, pieces: int) -> _Times:
    """Durations in a quantum of which the shortest pass has `pieces`."""
    slm = workload.slm.at(np.arange(workload.rows + 1)) + workload.overhead_slm
    llm = llm_pass_seconds(workload) + workload.overhead_llm
    quantum = float(min(slm[1], llm[min_rows])) / pieces
    return _Times(quantum, slm / quantum, llm / quantum)


def _best_times(workload: Workload, min_rows: int) -> _Times:
    """Durations on the grid that they fit best, of those that leave few enough states."""
    best, least = _times(workload, min_rows, _COARSEST), np.inf
    for pieces in range(_COARSEST, _FINEST + 1):
        times = _times(workload, min_rows, pieces)
        if pieces > _COARSEST and _num_states(times, min_rows) > _NUM_STATES:
            break
        rest = np.concatenate((times.slm[1:], times.llm[min_rows:])) % 1
        # Splitting between neighbours adds this variance.
        variance = float((rest * (1 - rest)).sum()) * times.quantum**2
        if variance < least * (1 - _SAME) - _SAME * times.quantum**2:
            best, least = times, variance
    return best


def _num_states(times: _Times, min_rows: int) -> int:
    rows = len(times.slm) - 1
    running = np.arange(min_rows, rows)
    return min_rows + int(((rows - running) * np.ceil(times.llm[running])).sum())


def _chain(workload: Workload, min_rows: int) -> _Chain:
    times = _best_times(workload, min_rows)
    rows = workload.rows
    waiting_S, running_S, left_S = _states(times, min_rows)
    index = np.full((rows + 1, rows + 1, int(left_S.max()) + 2), -1)
    index[waiting_S, running_S, left_S] = np.arange(len(left_S))
    drafts_S = rows - waiting_S - running_S
    step_S = times.slm[drafts_S]
    launches_S = np.zeros(len(step_S))
    waited_S = np.zeros(len(step_S))

    moves = _Moves(
        np.arange(len(step_S)), np.ones(len(step_S)), waiting_S, running_S, left_S.astype(np.float64)
    )
    ending = (moves.running > 0) & (moves.left < (1 - _SAME) * step_S)
    moves = _launch(_end_pass(moves, ending), ending, min_rows, times, launches_S, began=moves.left)
    # A pass that began within the step and is over, too, gives its rows back for the same next step.
    moves = _on_grid(moves._replace(left=np.maximum(moves.left - step_S, 0.0)))
    moves = _end_pass(moves, moves.left == 0)
    moves = _draft(moves, drafts_S, binomials(rows, workload.share))
    moves = _launch(moves, np.full(len(moves.source), True), min_rows, times, launches_S)
    moves = _on_grid(moves)
    stuck = moves.waiting + moves.running == rows
    np.add.at(waited_S, moves.source, np.where(stuck, moves.probability * moves.left, 0.0))
    moves = _on_grid(_launch(_end_pass(moves, stuck), stuck, min_rows, times, launches_S))

    left = np.where(moves.running > 0, moves.left, 0).astype(np.int64)
    return _Chain(
        source=moves.source,
        target=index[moves.waiting, moves.running, left],
        probability=moves.probability,
        drafts=drafts_S,
        seconds=(step_S + waited_S) * times.quantum,
        llm_passes=launches_S,
    )


def _states(times: _Times, min_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Waiting, running and quanta left of all states in which the SLM has rows and the LLM keeps the rule."""
    rows = len(times.slm) - 1
    longest_N = np.ceil(times.llm - _SAME).astype(np.int64)
    waiting, running, left = np.indices((rows, rows, int(longest_N[min_rows:].max()) + 1))
    idle = (running == 0) & (waiting < min_rows) & (left == 0)
    at_work = (running >= min_rows) & (left > 0) & (left <= longest_N[running])
    here = (waiting + running < rows) & (idle | at_work)
    return waiting[here], running[here], left[here]


def _end_pass(moves: _Moves, ending: np.ndarray) -> _Moves:
    """Rows in the LLM come back, i.e. neither wait nor run."""
    return moves._replace(running=np.where(ending, 0, moves.running))


def _launch(
    moves: _Moves,
    may: np.ndarray,
    min_rows: int,
    times: _Times,
    launches_S: np.ndarray,
    began: np.ndarray | float = 0.0,
) -> _Moves:
    """Where the LLM is idle and enough rows wait, it takes them, `began` quanta into the step; counts it."""
    going = may & (moves.running == 0) & (moves.waiting >= min_rows)
    np.add.at(launches_S, moves.source, np.where(going, moves.probability, 0.0))
    return moves._replace(
        waiting=np.where(going, 0, moves.waiting),
        running=np.where(going, moves.waiting, moves.running),
        left=np.where(going, began + times.llm[moves.waiting], moves.left),
    )


def _on_grid(moves: _Moves) -> _Moves:
    """Split what is left between the whole numbers around it, keeping its mean."""
    low = np.floor(moves.left + _SAME)
    weight = np.maximum(moves.left - low, 0.0)
    weight[(weight < _SAME) | (moves.running == 0)] = 0.0
    up = weight > 0
    below = moves._replace(probability=moves.probability * (1 - weight), left=low)
    above = _Moves(*(each[up] for each in moves))
    above = above._replace(probability=above.probability * weight[up], left=low[up] + 1)
    return _Moves(*(np.concatenate(both) for both in zip(below, above, strict=True)))


def _draft(moves: _Moves, drafts_S: np.ndarray, binomials_NM: np.ndarray) -> _Moves:
    """For each number of drafts that may be handed over, a move in which so many more rows wait."""
    num_outcomes = drafts_S[moves.source] + 1
    of = np.repeat(np.arange(len(num_outcomes)), num_outcomes)
    handed = np.arange(len(of)) - np.repeat(np.cumsum(num_outcomes) - num_outcomes, num_outcomes)
    moves = _Moves(*(each[of] for each in moves))
    chance = binomials_NM[drafts_S[moves.source], handed]
    return moves._replace(probability=moves.probability * chance, waiting=moves.waiting + handed)


def _stationary(chain: _Chain) -> np.ndarray:
    """By power iteration from all rows ready, half a step at a time, which no cycle survives."""
    num = len(chain.drafts)
    now_S = np.zeros(num)
    now_S[int(np.argmax(chain.drafts))] = 1.0
    for _ in range(_NUM_ITERATIONS):
        stepped_S = np.bincount(chain.target, chain.probability * now_S[chain.source], num)
        if np.abs(stepped_S - now_S).sum() < _CONVERGED:
            break
        now_S = (now_S + stepped_S) / 2
    return now_S / now_S.sum()
