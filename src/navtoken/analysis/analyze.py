"""The entropy pattern of a corpus of traces: how the entropies lie, which tokens have high and low ones, where, and in which outcome.

Two readings of the traces, whatever their number: one counts everything and finds the first half of every exact percentile, one the second
half; examples of the listed tokens come from the beginning of a third, which ends once all are found.

Shapes: N tokens of a batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.columns import (
    EmptyTracesError,
    MissingColumnError,
    Paths,
    TokenBatch,
    Where,
    optional_columns,
    paths_of,
    stream_columns,
)
from navtoken.analysis.plain import plain
from navtoken.analysis.pool import GroupQuantiles
from navtoken.analysis.profile import OUTCOMES, OutcomeProfile, Profile, outcome_of
from navtoken.analysis.tokens import TokenTables, TokenTally, find_contexts

__all__ = ["Analysis", "EntropyCounts", "PatternError", "PatternOptions", "analyze_traces", "entropy_column"]


ALL = "all"
BIN_WIDTH = 0.01
"""Nats; what is drawn merges these bins."""
NUM_BINS = 2048
"""Up to 20 nats, more than any vocabulary's largest entropy."""
MOST_TASKS = 12
"""With more tasks than this none is counted on its own."""
TASK = "task "
"""Begins the name of a task's group."""


class PatternError(ValueError):
    """An option of the analysis outside its range."""


@dataclass(frozen=True)
class PatternOptions:
    """What counts as what."""

    percentile: float = 80.0
    """Percentile of the entropies above which tokens are forking tokens."""
    certain: float = 0.01
    """Entropy in nats under which a token is all but certain."""
    listed: int = 100
    """Tokens in each list, highest and lowest mean entropy."""
    min_frequency: int | None = None
    """How often a listed token comes at least; None is 100 in a million tokens, scaled down in a smaller corpus."""
    examples: int = 3
    """Occurrences shown of each listed token."""

    def __post_init__(self) -> None:
        if not 0 < self.percentile < 100:
            raise PatternError(
                f"percentile is {self.percentile}; give a number between 0 and 100, such as 80"
            )
        if not self.certain > 0:
            raise PatternError(f"certain is {self.certain}; give nats above 0, such as 0.01")
        for name, least in (("listed", 1), ("min_frequency", 1), ("examples", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise PatternError(f"{name} is {value}; give at least {least}")


@dataclass(frozen=True)
class EntropyCounts:
    """How the entropies of a group of tokens lie."""

    num_tokens: int
    mean: float
    """Nats."""
    percentile: float
    """Nats that the asked percentage of the tokens do not exceed; exact, interpolated between neighbours."""
    certain_share: float
    """Share of the tokens under `PatternOptions.certain`."""
    edges: tuple[float, ...]
    """Nats, one more than there are counts."""
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Analysis:
    """The pattern."""

    column: str
    """Which model's entropies."""
    options: PatternOptions
    num_responses: int
    num_tokens: int
    """Tokens with an entropy."""
    num_missing: int
    """Tokens without one."""
    groups: dict[str, EntropyCounts]
    """`all`; by outcome (`right`, `wrong`) where there are several; by task, as `task NAME`, where there are several."""
    tables: TokenTables
    outcomes: dict[str, OutcomeProfile]
    """Along the response, by outcome."""
    notes: tuple[str, ...]
    """What a reader must know of these numbers."""

    @property
    def whole(self) -> EntropyCounts:
        """All tokens."""
        return self.groups[ALL]

    def as_json(self) -> dict[str, Any]:
        """JSON-serialisable; a number that could not be computed is None."""
        result: dict[str, Any] = plain(asdict(self))
        return result


def analyze_traces(
    path: Paths,
    options: PatternOptions | None = None,
    column: str | None = None,
    where: Where | None = None,
    tell: Callable[[int], object] = lambda _: None,
) -> Analysis:
    """Analyse the entropies of a shard, a folder or a list of them, in memory that does not grow with their number.

    `column` is `entropy_slm` or `entropy_llm`, None the one that `entropy_column` finds. `where` keeps some of the responses; `tell` hears
    how many were read, each twice. Raises `EmptyTracesError` where no token has an entropy, and what `stream_columns` raises.
    """
    options = options or PatternOptions()
    # Listed once: a shard that somebody adds meanwhile would be in one reading and not in the other.
    shards = paths_of(path)
    column = column or entropy_column(path, where)
    counting = _Counting(column, options)
    for batch in stream_columns(shards, (column, *_Counting.FIELDS), where=where, tell=tell):
        counting.add(batch)
    if not counting.num_tokens:
        raise EmptyTracesError(
            f"none of the {counting.num_missing} tokens at {path} has a value of {column}; score them with `navtoken score`"
        )

    def again() -> Iterator[tuple[str, NDArray[np.float32]]]:
        for batch in stream_columns(shards, (column, "correct", "task"), where=where, tell=tell):
            yield from _groups(batch, batch[column], _known(batch[column]))

    lines = counting.quantiles.finish(again, [options.percentile / 100])
    examples = stream_columns(shards, (column, "response_ids"), where=where)
    return counting.result({group: line for group, (line,) in lines.items()}, examples)


def entropy_column(path: Paths, where: Where | None = None) -> str:
    """Which entropies to analyse: those known at more tokens; of equals, those of the model that wrote more of them.

    Raises `MissingColumnError` where there is neither.
    """
    there = [name for name in ("entropy_llm", "entropy_slm") if name in optional_columns(path)]
    if not there:
        raise MissingColumnError(
            f"the traces at {path} have no entropies; name the checkpoint that scores them with --model, or use `navtoken score`"
        )
    if len(there) == 1:
        return there[0]
    known, by_llm, total = dict.fromkeys(there, 0), 0, 0
    for batch in stream_columns(path, (*there, "writer"), where=where):
        for name in there:
            known[name] += int(np.count_nonzero(~np.isnan(batch[name])))
        by_llm += int(np.count_nonzero(batch["writer"] == 1))
        total += batch.num_tokens
    if known["entropy_llm"] == known["entropy_slm"]:
        return "entropy_llm" if 2 * by_llm >= total else "entropy_slm"
    return max(there, key=known.__getitem__)


@dataclass
class _Group:
    """Sums of one group of tokens."""

    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    total: float = 0.0
    num_certain: int = 0

    def add(self, values_N: NDArray[np.float32], certain: float) -> None:
        # In float64 no float32 value is rounded across an edge.
        wide_N = values_N.astype(np.float64)
        self.total += float(wide_N.sum())
        self.num_certain += int(np.count_nonzero(wide_N < certain))
        wide_N *= round(1 / BIN_WIDTH)
        index_N = np.clip(wide_N, 0, NUM_BINS - 1, out=wide_N).astype(np.int32)
        self.bins += np.bincount(index_N, minlength=NUM_BINS)

    def counts(self, line: float) -> EntropyCounts:
        num = int(self.bins.sum())
        edges, counts = _merged(self.bins)
        return EntropyCounts(num, self.total / num, line, self.num_certain / num, edges, counts)


class _Counting:
    """Everything that the first reading fills."""

    FIELDS = ("response_ids", "correct", "task", "policy")

    def __init__(self, column: str, options: PatternOptions) -> None:
        self.column = column
        self.options = options
        self.groups: dict[str, _Group] = {}
        self.quantiles = GroupQuantiles()
        self.tally = TokenTally()
        self.profile = Profile()
        self.policies: set[str] = set()
        self.num_responses = self.num_tokens = self.num_missing = 0

    def add(self, batch: TokenBatch) -> None:
        values_N, known_N = batch[self.column], _known(batch[self.column])
        self.profile.add(batch, values_N, known_N)
        for group, own in _groups(batch, values_N, known_N):
            if group not in self.groups and self._is_surplus(group):
                continue
            self.groups.setdefault(group, _Group()).add(own, self.options.certain)
            self.quantiles.add(group, own)
        ids_N = batch["response_ids"]
        if known_N is not None:
            ids_N, values_N = ids_N[known_N], values_N[known_N]
        self.tally.add(ids_N, values_N)
        if len(self.policies) < MOST_TASKS:
            self.policies.update(batch["policy"])
        self.num_responses += len(batch.lengths)
        self.num_tokens += len(values_N)
        self.num_missing += batch.num_tokens - len(values_N)

    def _is_surplus(self, group: str) -> bool:
        """Is it a task, where there are known to be too many already?"""
        return group.startswith(TASK) and sum(name.startswith(TASK) for name in self.groups) > MOST_TASKS

    def result(self, lines: dict[str, float], examples: Iterator[TokenBatch]) -> Analysis:
        """The analysis, given the percentile of each group and the traces once more."""
        tables = self.tally.tables(self.options.listed, self.options.min_frequency)
        listed = find_contexts(
            examples, self.column, (*tables.highest, *tables.lowest), self.options.examples
        )
        tables = replace(tables, highest=listed[: len(tables.highest)], lowest=listed[len(tables.highest) :])
        return Analysis(
            column=self.column,
            options=self.options,
            num_responses=self.num_responses,
            num_tokens=self.num_tokens,
            num_missing=self.num_missing,
            groups={group: self.groups[group].counts(lines[group]) for group in self._telling(lines)},
            tables=tables,
            outcomes=self.profile.outcomes(),
            notes=(*self._notes(), *tables.notes),
        )

    def _telling(self, lines: dict[str, float]) -> list[str]:
        """Groups that say something: more than one of their kind, and not too many."""
        outcomes = [name for name in OUTCOMES if name in lines]
        tasks = sorted(name for name in lines if name.startswith(TASK))
        return [
            ALL,
            *(outcomes if len(outcomes) > 1 else ()),
            *(tasks if 1 < len(tasks) <= MOST_TASKS else ()),
        ]

    def _notes(self) -> list[str]:
        notes = []
        if self.num_missing:
            share = self.num_missing / (self.num_missing + self.num_tokens)
            notes.append(
                f"{self.num_missing:,} tokens ({100 * share:.1f} %) have no {self.column} and are left out: their model did not run there."
            )
        if len(self.policies) > 1:
            several = ", ".join(sorted(self.policies)[:4])
            notes.append(f"Responses of several policies are pooled ({several}, ...); policy chooses one.")
        return notes


def _known(values_N: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Where a value was computed; None where all were."""
    missing_N = np.isnan(values_N)
    return ~missing_N if missing_N.any() else None


def _groups(
    batch: TokenBatch, values_N: NDArray[np.float32], known_N: NDArray[np.bool_] | None
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The known values of a batch: all, by outcome, and by task."""
    yield ALL, values_N if known_N is None else values_N[known_N]
    outcome_R = outcome_of(batch)
    for number in np.unique(outcome_R).tolist():
        yield OUTCOMES[number], _of(batch, outcome_R == number, values_N, known_N)
    task_R = np.array(batch["task"], dtype=object)
    for task in dict.fromkeys(batch["task"]):
        yield f"{TASK}{task}", _of(batch, task_R == task, values_N, known_N)


def _of(
    batch: TokenBatch,
    rows_R: NDArray[np.bool_],
    values_N: NDArray[np.float32],
    known_N: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    """The known values of some responses."""
    if rows_R.all():
        return values_N if known_N is None else values_N[known_N]
    tokens_N = batch.spread(rows_R)
    return values_N[tokens_N if known_N is None else tokens_N & known_N]


def _merged(bins: NDArray[np.int64], most: int = 40) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Fine bins as at most `most` wider ones with round edges."""
    used = int(np.flatnonzero(bins)[-1]) + 1
    width = next(n for n in (1, 2, 5, 10, 20, 50, 100) if n * most >= used)
    num = -(-used // width)
    padded = np.zeros(num * width, np.int64)
    padded[: min(len(bins), len(padded))] = bins[: len(padded)]
    edges = tuple(round(index * width * BIN_WIDTH, 10) for index in range(num + 1))
    return edges, tuple(padded.reshape(num, width).sum(1).tolist())
