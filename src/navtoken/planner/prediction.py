"""The planner's questions: how fast a batching rule is, which is best, and whether routing pays at all."""

from collections.abc import Callable

from navtoken.planner.passes import llm_pass_seconds
from navtoken.planner.side_by_side import fits, side_by_side
from navtoken.planner.simulate import simulate
from navtoken.planner.turns import Cycles, cycles
from navtoken.planner.workload import Prediction, Workload, effective_min_rows

# Rules whose rates differ by less than rounding are the same; the smaller one makes rows wait less.
_TIE = 1e-9
_NUM_SIMULATED = 200_000


def predict(workload: Workload, min_rows: int) -> Prediction:
    """Routed decoding with B = `min_rows`: the LLM runs once so many rows wait, or nothing else is ready.

    Side by side and with more rows than the chain can hold (16 to 30), simulated with a fixed seed; then the
    prediction has a standard error. Raises `PlanError` where `min_rows` is below 1.
    """
    min_rows = effective_min_rows(workload, min_rows)
    if workload.placement == "turns":
        return cycles(workload).prediction(workload, min_rows)
    if fits(workload):
        return side_by_side(workload, min_rows)
    return simulate(workload, min_rows, _NUM_SIMULATED)


def best_min_rows(workload: Workload) -> int:
    """The B with the highest predicted rate, of equal ones the smallest.

    Taking turns: a fraction of a millisecond for 64 rows. Side by side, where every B is a chain of its own,
    the rate is taken to rise and then fall with B, so that few are solved.
    """
    if workload.placement == "turns":
        return _best_of_turns(cycles(workload))
    return _search(lambda min_rows: predict(workload, min_rows).tokens_per_second, workload.rows)


def pays(workload: Workload, min_rows: int) -> bool:
    """Is routing with B = `min_rows` at least as fast as letting the LLM write everything?"""
    return predict(workload, min_rows).pays


def roofline(workload: Workload) -> float:
    """Tokens per second that routed decoding of one row cannot pass: bare forwards, catch-up included."""
    return 1 / (workload.slm(1) + workload.share * float(llm_pass_seconds(workload)[1]))


def _best_of_turns(table: Cycles) -> int:
    rates_B = table.tokens / table.seconds
    return int((rates_B >= rates_B.max() * (1 - _TIE)).argmax()) + 1


def _search(rate: Callable[[int], float], last: int) -> int:
    """Where `rate` is highest on 1 .. last: at powers of two, then closer and closer around the best."""
    rates = {num: rate(num) for num in {*(2**power for power in range(last.bit_length())), last}}
    while True:
        highest = max(rates.values())
        best = min(num for num in rates if rates[num] >= highest * (1 - _TIE))
        below = max((num for num in rates if num < best), default=best)
        above = min((num for num in rates if num > best), default=best)
        between = {(below + best) // 2, (best + above + 1) // 2} - rates.keys()
        if not between:
            return best
        rates.update((num, rate(num)) for num in between)
