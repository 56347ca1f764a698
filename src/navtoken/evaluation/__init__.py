"""How well policies answer, and what that costs."""

from navtoken.evaluation.evaluate import EvaluateOptions, Table, evaluate, evaluate_into
from navtoken.evaluation.metrics import Tally, average, mean_and_error

__all__ = ["EvaluateOptions", "Table", "Tally", "average", "evaluate", "evaluate_into", "mean_and_error"]
