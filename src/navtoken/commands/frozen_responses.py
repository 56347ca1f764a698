"""What commands on given responses share: which responses those are, given or made, and which of them a page shows.

Whatever is made or computed lies in the command's folder, so the same command goes on where it was interrupted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from navtoken.analysis.frozen import Chosen, FrozenSet
from navtoken.checkpoints import ModelPair
from navtoken.engine import EngineOptions, SamplingParams
from navtoken.engine.options import OptionError
from navtoken.generation import GenerateOptions, GenerationOptions, ModelOptions, generate
from navtoken.generation.options import FAMILIES
from navtoken.trace import Key, Trace, read_traces

NUM_ALTERNATIVES = 5
"""Recorded per token of responses made here, for the page."""


@dataclass(frozen=True)
class ResponseOptions:
    """The responses that are looked at: traces that are there, or new ones."""

    traces: tyro.conf.Positional[Path | None] = None
    """Traces: a folder, or one shard. Left out, the model writes responses to some problems, which are kept and found again."""
    policy: str | None = None
    """Of TRACES, only this policy's responses count; None takes all."""
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only responses to this task; may be repeated. Left out, all of TRACES, or else the three embedded families."""
    num: int | None = None
    """Problems per task; None takes all of TRACES, or where responses are made all of a finite set and 100 of a task that
    generates them."""
    samples: int | None = None
    """Responses per problem where they are made; None is 1."""
    max_tokens: int | None = None
    """Longest response in tokens where they are made; None takes the model's own limit."""
    temperature: float | None = None
    """Temperature at which responses are made; None is the command's own, as in the papers: 1 for analyze and drift, which
    look at how a model writes, 0 (greedy) where two models are held against each other."""
    seed: int = 0
    """Fixes problems and noise where responses are made, and the resamples of intervals where there are any."""

    def check(self) -> None:
        """Raise `OptionError` for options that would be without effect."""
        if self.num is not None and self.num < 1:
            raise OptionError(f"num is {self.num}; give at least 1")
        if self.traces is None:
            if self.policy is not None:
                raise OptionError(f"policy {self.policy} chooses among TRACES; name some, or leave it out")
            return
        for name in ("samples", "max_tokens", "temperature"):
            if (value := getattr(self, name)) is not None:
                raise OptionError(
                    f"{name} {value} is for making responses, and TRACES are given; leave one out"
                )

    def chosen(self) -> Chosen:
        """What counts of the traces that are given."""
        assert self.traces is not None
        return Chosen(self.traces, self.policy, self.task, self.num)

    def generation(self, temperature: float, policy: str = "llm") -> GenerationOptions:
        """How responses are made; `temperature` is the command's own."""
        return GenerationOptions(
            task=self.task or FAMILIES,
            policy=(policy,),
            num=self.num,
            samples=self.samples or 1,
            seed=self.seed,
            max_tokens=self.max_tokens,
            sampling=SamplingParams(
                temperature=temperature if self.temperature is None else self.temperature
            ),
            engine=EngineOptions(num_alternatives=NUM_ALTERNATIVES),
        )


def made_responses(
    models: ModelOptions, generation: GenerationOptions, folder: Path, pair: ModelPair, progress: Console
) -> Chosen:
    """Have the pair answer what `folder` lacks; returns exactly what was asked for, whatever else is there."""
    cells = generate(GenerateOptions(models, generation, folder), pair, progress)
    return Chosen(folder, keys=frozenset(key for cell in cells for key in cell.keys))


# ---- examples -------------------------------------------------------------------------------------------------


def spread_over_tasks(keys: Iterable[Key], num: int) -> list[Key]:
    """At most `num` of the keys, tasks in turn, each task's first ones first; those of one task beside each other."""
    by_task: dict[str, list[Key]] = {}
    for key in keys:
        by_task.setdefault(key[1], []).append(key)
    in_turn = (key for turn in zip_longest(*by_task.values()) for key in turn if key is not None)
    kept = {key for key, _ in zip(in_turn, range(num), strict=False)}
    return [key for own in by_task.values() for key in own if key in kept]


def traces_named(path: Path, keys: Iterable[Key]) -> Iterator[Trace]:
    """The traces of these keys in this order; no other is built."""
    order = list(keys)
    wanted = frozenset(order)
    found = {trace.key: trace for trace in read_traces(path, keep=wanted.__contains__)} if order else {}
    return (found[key] for key in order)


def shown_traces(
    frozen: FrozenSet, num: int, columns: Mapping[str, NDArray[Any]], keep: Callable[[str], bool]
) -> Iterator[Trace]:
    """At most `num` responses, tasks in turn, with `columns` of the whole set in place of all but those to keep."""
    # One response per problem: samples of one problem are much alike.
    first = {key[1:3]: key for key in reversed(frozen.keys)}
    wanted = spread_over_tasks((key for key in frozen.keys if first[key[1:3]] == key), num)
    response_of = {key: response for response, key in enumerate(frozen.keys)}
    for trace in traces_named(frozen.chosen.path, wanted):
        response = response_of[trace.key]
        own = slice(int(frozen.start_R[response]), int(frozen.start_R[response + 1]))
        kept = {name: values for name, values in trace.columns.items() if keep(name)}
        yield replace(
            trace, columns=kept | {name: np.asarray(values[own]) for name, values in columns.items()}
        )
