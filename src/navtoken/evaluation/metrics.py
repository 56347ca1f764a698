"""What a set of traces says: accuracy with its standard error, LLM share, costs.

The standard error is over problems: samples of one problem are not independent, so each problem counts as one
observation, its share of right responses (a cluster-robust error with equal clusters).

Costs come from the ledgers of single responses, which do not depend on batching: bytes and passes are those of a response
decoded alone. Tokens per second is the exception: it is the clock of the run, at its batch size and machine.

The R2R paper's cost is parameters x tokens, of the tokens that each model wrote. Beside it stands the same sum over all tokens
that each model computed, prompts, catch-up and discarded tokens included: what routing saves of the one it may not save of
the other.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan, sqrt
from statistics import fmean, stdev
from typing import Any

from navtoken.engine import Costs, Ledger
from navtoken.trace import Trace

Row = dict[str, Any]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of independent values and its standard error; NaN where there are too few."""
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else nan
    return (fmean(values) if values else nan), error


@dataclass
class Tally:
    """Sums over traces of one policy on one task, in memory that grows with problems and not with tokens."""

    costs: Costs
    """Prices the ledgers."""
    correct: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    """Per problem, the verdict on each response."""
    ledger: Ledger = field(default_factory=Ledger)
    tokens: int = 0
    seconds: float = 0.0
    cut: int = 0
    """Responses that ended at the length limit."""

    def add(self, trace: Trace) -> None:
        """Count one trace."""
        self.correct[trace.problem_id].append(bool(trace.correct))
        self.ledger.add(Ledger.from_dict(trace.ledger))
        self.tokens += len(trace.response_ids)
        self.seconds += trace.ledger.get("seconds", nan)
        self.cut += trace.finish_reason == "length"

    @property
    def num_responses(self) -> int:
        return sum(map(len, self.correct.values()))

    @property
    def scores(self) -> dict[str, float]:
        """Per problem, the share of right responses."""
        return {problem: fmean(verdicts) for problem, verdicts in self.correct.items()}

    def row(self) -> Row:
        """The table's fields. Fractions are from 0 to 1, lengths in tokens; NaN where nothing was counted."""
        accuracy, error = mean_and_error(list(self.scores.values()))
        activated = self.costs.average_activated_parameters(self.ledger)
        return {
            "accuracy": accuracy,
            "accuracy_se": error,
            "llm_share": self.ledger.llm_share if self.tokens else nan,
            "average_activated_parameters": activated,
            "total_cost": _ratio(activated * sum(self.ledger.written), self.num_responses),
            "computed_cost": _ratio(self._computed(), self.num_responses),
            "flops_per_token": _ratio(self.costs.flops(self.ledger), self.tokens),
            "bytes_per_token": _ratio(self.costs.bytes(self.ledger), self.tokens),
            "llm_passes_per_token": self.ledger.llm_passes_per_token if self.tokens else nan,
            "discarded_per_token": self.ledger.discarded_per_token if self.tokens else nan,
            "acceptance": self.ledger.acceptance,
            "tokens_per_second": _ratio(self.tokens, self.seconds),
            "mean_length": _ratio(self.tokens, self.num_responses),
            "cut_share": _ratio(self.cut, self.num_responses),
            "num_problems": len(self.correct),
            "num_responses": self.num_responses,
        }

    def _computed(self) -> float:
        """Active parameters x tokens, over all tokens that went through each model, and the router's."""
        slm, llm = self.ledger.slm.tokens, self.ledger.llm.tokens
        models = slm * self.costs.slm.active_parameters + llm * self.costs.llm.active_parameters
        return float(models + self.ledger.router_calls * self.costs.router_parameters)


def average(rows: Iterable[Mapping[str, Any]]) -> Row:
    """The row over several tasks: plain means, each task counting the same; counts are summed.

    The error takes the tasks as fixed and their problems as independent.
    """
    listed = list(rows)
    means: Row = {
        name: fmean(row[name] for row in listed) for name in listed[0] if not name.startswith("num_")
    }
    counts = {name: sum(row[name] for row in listed) for name in listed[0] if name.startswith("num_")}
    error = sqrt(sum(row["accuracy_se"] ** 2 for row in listed)) / len(listed)
    return means | {"accuracy_se": error} | counts


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else nan
