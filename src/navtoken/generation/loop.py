"""Requests into the engine, finished traces out of it.

Requests are fed as rows become free, so a run of any size holds one batch in memory; traces come in the order in
which responses finish.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np

from navtoken.engine import Engine, Prefix, Record, Sequence
from navtoken.generation.options import GenerationOptions
from navtoken.policies import derive_seed
from navtoken.tasks import Problem, Task
from navtoken.tasks.prompts import Rendered, render
from navtoken.trace import COLUMNS, Key, Trace


@dataclass(frozen=True)
class Request:
    """One response to be had."""

    task: Task
    problem: Problem
    sample: int

    def key(self, policy: str) -> Key:
        return policy, self.task.name, self.problem.problem_id, self.sample


@dataclass
class _Flight:
    """A request that the engine works on."""

    request: Request
    prompt: Rendered
    seconds: float = 0.0


def respond(engine: Engine, requests: Iterable[Request], options: GenerationOptions) -> Iterator[Trace]:
    """Answer `requests` with `engine`: yields verified traces as they finish.

    A trace's ledger has the engine's counts and `seconds`, its part of the engine's time: each step is divided
    evenly among the rows in flight, so the sum over traces is the time that the engine took.
    """
    waiting = iter(requests)
    flights: dict[Sequence, _Flight] = {}
    prefixes: dict[str, Prefix] = {}
    while True:
        for request in islice(waiting, engine.options.max_rows - len(flights)):
            sequence, flight = _launch(engine, request, options, prefixes)
            flights[sequence] = flight
        if not flights:
            return
        started = perf_counter()
        events = engine.step()
        part = (perf_counter() - started) / len(flights)
        for flight in flights.values():
            flight.seconds += part
        for event in events:
            if event.finish_reason is not None:
                yield _trace(engine, event.sequence, flights.pop(event.sequence), options)


def _launch(
    engine: Engine, request: Request, options: GenerationOptions, prefixes: dict[str, Prefix]
) -> tuple[Sequence, _Flight]:
    """Queue a request; samples of one problem follow each other and share its prompt."""
    problem = request.problem
    prompt = render(engine.pair.tokenizer, request.task, problem, options.prompts)
    seed = derive_seed(options.seed, request.task.name, problem.problem_id)
    if problem.problem_id not in prefixes:
        prefixes.clear()
        prefixes[problem.problem_id] = Prefix(len(prompt.ids))
    sequence = engine.add(
        prompt.ids,
        options.sampling,
        options.limit(engine.pair),
        seed,
        request.sample,
        prefix=prefixes[problem.problem_id] if options.samples > 1 else None,
    )
    return sequence, _Flight(request, prompt)


def _trace(engine: Engine, sequence: Sequence, flight: _Flight, options: GenerationOptions) -> Trace:
    problem, task = flight.request.problem, flight.request.task
    text = response_text(engine.pair.tokenizer, sequence.response_ids, sequence.stop_string)
    correct = task.verify(problem, text)
    assert sequence.finish_reason is not None
    return Trace(
        task=task.name,
        problem_id=problem.problem_id,
        sample=sequence.sample,
        prompt=flight.prompt.text,
        prompt_ids=flight.prompt.ids,
        response_ids=sequence.response_ids,
        text=text,
        finish_reason=sequence.finish_reason,
        seed=sequence.seed,
        policy=engine.policy.reference,
        writer=sequence.record.writer,
        correct=correct,
        reward=float(correct),
        sampling={**vars(options.sampling), "max_tokens": options.limit(engine.pair)},
        ledger={**sequence.ledger.as_dict(), "seconds": flight.seconds},
        columns=columns_of(sequence.record),
    )


def response_text(tokenizer: Any, response_ids: list[int], stop_string: str | None = None) -> str:
    """The response as text, without special tokens and without the stop string that ended it."""

    def decode(ids: list[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    text = decode(response_ids)
    if stop_string is None:
        return text
    # The one that the last token completed: `min_tokens` may have let earlier ones pass.
    return text[: text.find(stop_string, max(0, len(decode(response_ids[:-1])) - len(stop_string) + 1))]


def columns_of(record: Record) -> dict[str, np.ndarray]:
    """The record's columns as arrays; those that were computed nowhere are left out."""
    arrays = {name: _array(name, values) for name, values in record.columns.items() if name in COLUMNS}
    return {name: array for name, array in arrays.items() if not _is_missing(name, array)}


def _array(name: str, values: list[Any]) -> np.ndarray:
    column = COLUMNS[name]
    if not column.is_row:
        return np.asarray(values, dtype=column.dtype)
    array = np.full((len(values), max(map(len, values), default=0)), column.missing, dtype=column.dtype)
    for row, cells in zip(array, values, strict=True):
        row[: len(cells)] = cells
    return array


def _is_missing(name: str, array: np.ndarray) -> bool:
    missing = np.isnan(array) if COLUMNS[name].dtype.kind == "f" else array == COLUMNS[name].missing
    return bool(missing.all())
