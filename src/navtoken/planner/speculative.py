"""What speculative decoding would make of the same two models: the lossless competitor of routing."""

from navtoken.planner.step_times import PlanError
from navtoken.planner.workload import Workload


def speculative_rate(workload: Workload, acceptance: float, num_drafts: int) -> float:
    """Tokens per second of all rows when the LLM checks `num_drafts` drafts a cycle.

    A cycle is `num_drafts` SLM passes over all rows and one LLM pass over num_drafts + 1 tokens of each; it
    commits the drafts before the first rejection, each being accepted with probability `acceptance`, and one
    token of the LLM: (1 - a^(K + 1)) / (1 - a) on average (Leviathan et al., 2023). `share` and `placement`
    play no part. Raises `PlanError` for what cannot be.
    """
    if not 0.0 <= acceptance <= 1.0:
        raise PlanError(f"acceptance is {acceptance}; give a number from 0 to 1")
    if num_drafts < 1:
        raise PlanError(f"num_drafts is {num_drafts}; give at least 1")
    tokens = sum(acceptance**accepted for accepted in range(num_drafts + 1))
    slm = num_drafts * (workload.slm(workload.rows) + workload.overhead_slm)
    llm = workload.llm(workload.rows * (num_drafts + 1)) + workload.overhead_llm
    return workload.rows * tokens / (slm + llm)


def best_num_drafts(workload: Workload, acceptance: float, max_drafts: int = 16) -> int:
    """The number of drafts from 1 to `max_drafts` with the highest rate, of equal ones the smallest.

    Raises `PlanError` for what cannot be.
    """
    if max_drafts < 1:
        raise PlanError(f"max_drafts is {max_drafts}; give at least 1")
    return max(range(1, max_drafts + 1), key=lambda num: speculative_rate(workload, acceptance, num))
