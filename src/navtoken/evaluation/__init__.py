"""How well policies answer, and what that costs."""

from navtoken.evaluation.evaluate import EvaluateOptions, Table, evaluate, evaluate_into
from navtoken.evaluation.metrics import Tally, average, mean_and_error
from navtoken.evaluation.paired import Estimate, Paired
from navtoken.evaluation.pareto import pareto_front

__all__ = [
    "Estimate",
    "EvaluateOptions",
    "Paired",
    "Table",
    "Tally",
    "average",
    "evaluate",
    "evaluate_into",
    "mean_and_error",
    "pareto_front",
]
