"""What `drift` and `compare` share: the responses that they look at, given or made, and how tokens are spelled.

Whatever is made or computed lies in the command's folder, so the same command goes on where it was interrupted.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from navtoken.analysis.frozen import Chosen, FrozenSet
from navtoken.analysis.ranking import Interval
from navtoken.checkpoints import ModelPair
from navtoken.commands.demo_page import decode_of
from navtoken.engine import EngineOptions, SamplingParams
from navtoken.engine.options import OptionError
from navtoken.generation import GenerateOptions, GenerationOptions, ModelOptions, generate
from navtoken.generation.options import FAMILIES
from navtoken.report.pieces import Pieces
from navtoken.trace import Trace

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
    """Problems per task; None takes all of TRACES, or else 100 of a task that generates them."""
    samples: int | None = None
    """Responses per problem where they are made; None is 1."""
    max_tokens: int | None = None
    """Longest response in tokens where they are made; None takes the model's own limit."""
    temperature: float | None = None
    """Temperature at which responses are made; None is 0 (greedy) for compare and 1 for drift, as in the papers."""
    seed: int = 0
    """Fixes problems and noise where responses are made, and the resamples of intervals."""

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

    def generation(self, temperature: float) -> GenerationOptions:
        """How responses are made; `temperature` is the command's own."""
        return GenerationOptions(
            task=self.task or FAMILIES,
            policy=("llm",),
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
    """Have the pair's LLM answer what `folder` lacks; returns exactly what was asked for, whatever else is there."""
    cells = generate(GenerateOptions(models, generation, folder), pair, progress)
    return Chosen(folder, keys=frozenset(key for cell in cells for key in cell.keys))


# ---- words ----------------------------------------------------------------------------------------------------


class Speller:
    """Texts of tokens, alone and where they stand."""

    def __init__(self, tokenizer: Any, frozen: FrozenSet) -> None:
        self.decode = decode_of(tokenizer)
        self._pieces = Pieces(self.decode)
        self._frozen = frozen

    def token(self, token_id: int) -> str:
        """The token alone, spaces included."""
        return self._pieces.text(None, token_id)

    def context(self, position: int) -> tuple[str, str, str]:
        """Text before a position, at it, and after it."""
        before, token_id, after = self._frozen.around(position)
        ids = [*before, token_id, *after]
        texts = [self._pieces.text(previous, each) for previous, each in zip([None, *ids], ids, strict=False)]
        at = len(before)
        return "".join(texts[:at]), texts[at], "".join(texts[at + 1 :])


def shown_traces(
    frozen: FrozenSet, num: int, columns: Mapping[str, NDArray[Any]], keep: Callable[[str], bool]
) -> Iterator[Trace]:
    """At most `num` responses, tasks in turn, with `columns` of the whole set in place of all but those to keep."""
    per_task = math.ceil(num / max(1, len(frozen.tasks)))
    taken: dict[str, set[str]] = {}
    total = 0
    for response, trace in enumerate(frozen.chosen.traces()):
        problems = taken.setdefault(trace.task, set())
        if total == num:
            return
        if trace.problem_id in problems or len(problems) == per_task:
            continue
        problems.add(trace.problem_id)
        total += 1
        own = slice(int(frozen.start_R[response]), int(frozen.start_R[response + 1]))
        kept = {name: values for name, values in trace.columns.items() if keep(name)}
        yield replace(
            trace, columns=kept | {name: np.asarray(values[own]) for name, values in columns.items()}
        )


def percent(value: float, digits: int = 0) -> str:
    """A fraction in words: 12 %."""
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def spread_of(interval: Interval, digits: int = 0) -> str:
    """A fraction with its interval: 12 % (10 to 14)."""
    if math.isnan(interval.low) or interval.low == interval.high == interval.value:
        return percent(interval.value, digits)
    low, high = (f"{100 * end:.{digits}f}" for end in (interval.low, interval.high))
    return f"{percent(interval.value, digits)} ({low} to {high})"


def plain(value: Any) -> Any:
    """JSON-serialisable: keys become text, tuples lists, and a number that is not there None."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
