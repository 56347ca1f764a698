"""Predicts the speed of two-model decoding from step times: which batching rule is best, and whether it pays.

Knows numbers only, neither models nor engine, so that the engine can ask it while it runs and a person before
there is anything to run.
"""

from navtoken.planner.prediction import best_min_rows, pays, predict, roofline
from navtoken.planner.simulate import simulate
from navtoken.planner.speculative import best_num_drafts, speculative_rate
from navtoken.planner.step_times import PlanError, StepTimer, StepTimes
from navtoken.planner.workload import Placement, Prediction, Workload

__all__ = [
    "Placement",
    "PlanError",
    "Prediction",
    "StepTimer",
    "StepTimes",
    "Workload",
    "best_min_rows",
    "best_num_drafts",
    "pays",
    "predict",
    "roofline",
    "simulate",
    "speculative_rate",
]
