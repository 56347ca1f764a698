"""Which of several responses to give: the majority's answer, or the one with the best score.

Both are expected values: over all subsets of k of the n responses that were drawn, and over ties, which are broken evenly. So no
response is favoured for having come first, and every k up to n follows from the same n responses.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navtoken.trace import Trace

MOST_WORK = 300_000
"""Steps of one exact count, about a fifth of a second; beyond that subsets are drawn."""
SUBSETS = 4_000
"""Subsets drawn where they are too many to count: a standard error of at most 0.8 points of one problem."""


class ScalingError(ValueError):
    """A number of samples that nothing can be said about."""


class Ballot(NamedTuple):
    """What the responses to one problem vote for."""

    answers: tuple[tuple[int, int], ...]
    """Per answer, how many responses gave it, and how many of these are right: all or none where the task is consistent."""
    blank: int = 0
    """Responses without an answer."""

    @property
    def num_samples(self) -> int:
        return sum(count for count, _ in self.answers) + self.blank

    @classmethod
    def of(cls, answers: Sequence[Hashable | None], correct: Sequence[bool]) -> "Ballot":
        """Count equal answers."""
        found: dict[Hashable, list[bool]] = {}
        for answer, right in zip(answers, correct, strict=True):
            if answer is not None:
                found.setdefault(answer, []).append(right)
        # Ordered, so that ballots that say the same are counted once.
        counted = sorted((len(verdicts), sum(verdicts)) for verdicts in found.values())
        return cls(tuple(counted), sum(answer is None for answer in answers))


def majority_at_k(ballot: Ballot, k: int, seed: int = 0) -> float:
    """Probability that the commonest answer of k responses is right; wrong where none of them gives one.

    Exact, or from `SUBSETS` subsets that `seed` fixes where an exact count takes too long.
    """
    check_k(k, ballot.num_samples)
    if k == ballot.num_samples:
        return _most(ballot)
    return _drawn(ballot, k, seed) if _work(ballot, k) > MOST_WORK else _counted(ballot, k)


def _most(ballot: Ballot) -> float:
    winners = [right / count for count, right in ballot.answers if count == ballot.answers[-1][0]]
    return sum(winners) / len(winners) if winners else 0.0


def _work(ballot: Ballot, k: int) -> int:
    """Steps of `_counted`, or few more."""
    most = min(k, max((count for count, _ in ballot.answers), default=0))
    choices = ballot.num_samples + len(ballot.answers)
    return sum(choices * k * min(len(ballot.answers), k // votes + 1) for votes in range(1, most + 1))


@lru_cache(maxsize=65_536)
def _counted(ballot: Ballot, k: int) -> float:
    """Sum over the winner's number of votes; per number, over how many are tied with it."""
    total = 0.0
    for votes in range(1, min(k, max((count for count, _ in ballot.answers), default=0)) + 1):
        # (responses taken, answers with as many votes) -> subsets, and the sum over them of these answers' right shares.
        states: dict[tuple[int, int], tuple[int, float]] = {(0, 0): (1, 0.0)}
        for count, right in ballot.answers:
            grown: dict[tuple[int, int], tuple[int, float]] = {}
            for (taken, tied), (subsets, shares) in states.items():
                for own in range(min(count, votes, k - taken) + 1):
                    wins = own == votes
                    key = taken + own, tied + wins
                    before, so_far = grown.get(key, (0, 0.0))
                    ways = comb(count, own)
                    won = subsets * right / count if wins else 0.0
                    grown[key] = before + ways * subsets, so_far + ways * (shares + won)
            states = grown
        total += sum(
            shares / tied * comb(ballot.blank, k - taken)
            for (taken, tied), (_, shares) in states.items()
            if tied
        )
    return total / comb(ballot.num_samples, k)


def _drawn(ballot: Ballot, k: int, seed: int) -> float:
    """The same, over some subsets. Shapes: S subsets, A answers."""
    count_A, right_A = np.array(ballot.answers).T
    rng = np.random.default_rng(seed)
    drawn = rng.multivariate_hypergeometric([*count_A, ballot.blank], k, size=SUBSETS)
    votes_SA = drawn[:, :-1]
    wins_SA = (votes_SA == votes_SA.max(1, keepdims=True)) & (votes_SA > 0)
    shares_S = (wins_SA * (right_A / count_A)).sum(1) / np.maximum(1, wins_SA.sum(1))
    return float(shares_S.mean())


def best_of_k(scores: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """Probability that the response with the highest score of k is right."""
    check_k(k, len(scores))
    at: dict[float, list[bool]] = {}
    for score, right in zip(scores, correct, strict=True):
        at.setdefault(score, []).append(right)
    total, lower = 0.0, 0
    for score in sorted(at):
        verdicts = at[score]
        below, lower = lower, lower + len(verdicts)
        total += (comb(lower, k) - comb(below, k)) * sum(verdicts) / len(verdicts)
    return total / comb(len(scores), k)


def check_k(k: int, num_samples: int) -> None:
    """Raise `ScalingError` where so many samples were not drawn."""
    if not 1 <= k <= num_samples:
        raise ScalingError(f"k is {k}, of {num_samples} samples; give 1 to {num_samples}, or draw more")


# ---- scores ---------------------------------------------------------------------------------------------------

Scorer = Callable[[Trace, int], float | None]
"""(response, how many of its tokens count) -> the higher the better; None where the trace does not say."""


def _mean_logprob(trace: Trace, end: int) -> float | None:
    return _writer_mean(trace, "logprob", end)


def _least_entropy(trace: Trace, end: int) -> float | None:
    entropy = _writer_mean(trace, "entropy", end)
    return None if entropy is None else -entropy


def _shortest(trace: Trace, end: int) -> float | None:
    return -float(min(end, len(trace.response_ids)))


SCORERS: Mapping[str, Scorer] = {
    "logprob": _mean_logprob,
    "entropy": _least_entropy,
    "length": _shortest,
}
"""By name: mean log-probability of the tokens under who wrote each, least mean entropy likewise, fewest tokens."""
SCORED_COLUMNS = ("logprob_slm", "logprob_llm", "entropy_slm", "entropy_llm")
"""Columns of a trace that scorers read."""


def _writer_mean(trace: Trace, what: str, end: int) -> float | None:
    """Mean over the first `end` tokens of what each token's writer said of it, where that is known."""
    writer_T = np.asarray(trace.writer[:end])
    slm_T, llm_T = (_column(trace, f"{what}_{model}")[:end] for model in ("slm", "llm"))
    known_T = np.where(writer_T == 0, slm_T, llm_T)
    known_T = known_T[np.isfinite(known_T)]
    return float(known_T.mean(dtype=np.float64)) if known_T.size else None


def _column(trace: Trace, name: str) -> NDArray[np.float64]:
    missing = np.full(len(trace.response_ids), np.nan)
    return np.asarray(trace.columns.get(name, missing), dtype=np.float64)
