"""Dynamic sampling: a batch of groups that all have something to teach.

A group is one problem's responses. Where all are right, or all wrong, advantages are zero and the group only dilutes the batch; DAPO
draws others instead until the batch is full. What counts is the verifier's outcome, before any shaping: a length penalty makes a
spread where there is nothing to learn about the problem. Plain Python: who draws, and how ranks agree, comes from outside.

Departure from DAPO: it draws batches of a fixed size until enough groups are there; here each round draws about as many as are
missing, by the share of informative groups so far. Groups are taken in the order in which they were drawn, whatever their
length, so nothing favours short responses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from navtoken.policies import derive_seed

Row = dict[str, Any]


class GroupError(ValueError):
    """Options of dynamic sampling that do not go together."""


class Rollout(NamedTuple):
    """One response of the policy."""

    token_ids: list[int]
    logprobs: list[float] | None = None
    """Nats, T = 1, of each token under the policy; None where whoever drew them does not tell."""
    entropies: list[float] | None = None
    """Nats, T = 1, at each token's position; likewise."""


@dataclass(frozen=True)
class Group:
    """A problem and the responses to it."""

    row: Row
    rollouts: list[Rollout]
    outcomes: list[float | None]
    """The outcome reward of each; None where there is no score."""
    informative: bool


@dataclass(frozen=True)
class DynamicSamplingOptions:
    """How groups without any signal are replaced."""

    dynamic_sampling: bool = True
    """Replace groups whose responses all have the same outcome by other problems' until the batch is full."""
    max_rounds: int = 6
    """Further rounds of drawing at most; what is missing then is logged, stands in the batch without weight, and
    leaves its size as it is."""
    count_uninformative: bool = False
    """Let tokens of groups without signal count in the pool and in the normaliser, and a punishment of length move them, as in stock
    TRL. The others' gradient becomes smaller."""

    def __post_init__(self) -> None:
        if self.max_rounds < 0:
            raise GroupError(f"max_rounds is {self.max_rounds}; give at least 0")


class Filled(NamedTuple):
    """A batch of groups."""

    groups: list[Group]
    """As many as were asked for; those without signal stand last."""
    rounds: int
    """Of drawing, the first included."""
    drawn: int
    """Groups that were drawn in all."""
    informative: int
    """Of those."""
    shortage: int
    """Groups of the batch without signal."""


class ProblemStream:
    """An endless stream of a data set's places: all of them in an order of its own, then all again in another."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._turn = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        turn, place = divmod(position, self.size)
        if turn != self._turn:
            self._turn = turn
            rng = np.random.default_rng(derive_seed(self.seed, "further problems", str(turn)))
            self._order = rng.permutation(self.size)
        return int(self._order[place])


LEAST_SHARE = 0.25
"""Informative share that a round reckons with at least: after an unlucky one the next would draw without measure."""


def fill(
    first: Sequence[Row],
    draw: Callable[[Sequence[Row]], list[Group]],
    more: Callable[[int], list[Row]],
    most: Callable[[int], int],
    options: DynamicSamplingOptions,
    share: float = 1.0,
) -> Filled:
    """A batch of `len(first)` groups.

    `draw` answers rows, `more` gives so many further rows, and `most` is the largest of what any rank says: all ranks draw
    equally often and equally much, since drawing may be collective. `share` is what part of the groups is expected to be
    informative: the longest response decides how long a round takes, so one large round is faster than two.
    """
    wanted = len(first)
    extra = _needed(wanted, share) - wanted if options.dynamic_sampling else 0
    drawn = draw([*first, *more(most(extra))])
    rounds = 1
    while options.dynamic_sampling and rounds <= options.max_rounds:
        found = sum(group.informative for group in drawn)
        missing = most(max(0, wanted - found))
        if not missing:
            break
        drawn += draw(more(most(_needed(missing, found / len(drawn)))))
        rounds += 1
    informative = [group for group in drawn if group.informative]
    others = [group for group in drawn if not group.informative]
    groups = (informative + others)[:wanted]
    return Filled(
        groups, rounds, len(drawn), len(informative), sum(not group.informative for group in groups)
    )


def _needed(groups: int, share: float) -> int:
    """How many to draw so that so many are informative, with a standard deviation to spare: half of the rounds would fall short."""
    share = min(1.0, max(share, LEAST_SHARE))
    return math.ceil((groups + math.sqrt(groups * (1.0 - share))) / share - 1e-9)
