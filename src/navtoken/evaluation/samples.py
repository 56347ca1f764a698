"""From traces to what scaling needs of each response: whole, and cut off at a budget of tokens.

A response that is longer than a budget is verified as it stood there, and costs what it had cost by then. That is exact where one
model writes; under a policy that mixes two, both are taken to run as often at a response's beginning as at its end.

The prompt is taken out of every response's own cost, since samples share it: a ledger has it or not, depending on which sample
came first. Its last token, which each sample feeds again, counts once with the rest of it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from navtoken.checkpoints import ModelPair
from navtoken.engine import Costs, Ledger
from navtoken.engine.ledger import ModelLedger
from navtoken.evaluation.scaling import PromptCost, Response
from navtoken.evaluation.voting import SCORED_COLUMNS, SCORERS
from navtoken.generation import Cell
from navtoken.generation.loop import response_text
from navtoken.tasks import Problem, Task
from navtoken.trace import Key, Trace, read_traces

Budget = int | None
"""Tokens that a response may have; None is as many as it has."""


class Drawn(NamedTuple):
    """All that was drawn for one problem."""

    responses: dict[Budget, list[Response]]
    prompt: PromptCost


def drawn_responses(
    folder: Path, cells: Sequence[Cell], pair: ModelPair, budgets: Iterable[Budget]
) -> list[dict[str, Drawn]]:
    """Per cell, by problem, what is in the folder, whatever else is there."""
    wanted = {
        key: (index, request.problem) for index, cell in enumerate(cells) for key, request in _named(cell)
    }
    # Two names may stand for one policy.
    same = defaultdict(list)
    for index, cell in enumerate(cells):
        same[cell.policy.reference, cell.task.name].append(index)
    found: list[dict[str, Drawn]] = [{} for _ in cells]
    listed = list(dict.fromkeys(budgets))
    for trace in read_traces(folder, columns=SCORED_COLUMNS, keep=lambda key: key in wanted):
        index, problem = wanted[trace.key]
        cell = cells[index]
        costs = Costs(pair.slm.card, pair.llm.card, cell.policy.router_parameters)
        responses = {
            budget: response_of(trace, cell.task, problem, costs, pair.tokenizer, budget) for budget in listed
        }
        for other in same[trace.policy, trace.task]:
            drawn = found[other].setdefault(
                trace.problem_id, Drawn({budget: [] for budget in listed}, prompt_cost(trace, costs))
            )
            for budget, response in responses.items():
                drawn.responses[budget].append(response)
    # Their order on disk is that in which they finished, which resamples must not depend on.
    return [
        {problem: drawn[problem] for problem in dict.fromkeys(key[2] for key in cell.keys)}
        for cell, drawn in zip(cells, found, strict=True)
    ]


def _named(cell: Cell) -> Iterable[tuple[Key, Any]]:
    return zip(cell.keys, cell.requests, strict=True)


def response_of(
    trace: Trace, task: Task, problem: Problem, costs: Costs, tokenizer: Any, budget: Budget = None
) -> Response:
    """A response as it stood at a budget, and what it had cost."""
    length = len(trace.response_ids)
    whole = budget is None or length <= budget
    end = length if whole else budget or 0
    text = trace.text if whole else response_text(tokenizer, trace.response_ids[:end])
    ledger = Ledger.from_dict(trace.ledger)
    own = own_ledger(ledger, len(trace.prompt_ids), length, end)
    return Response(
        correct=bool(trace.correct) if whole else task.verify(problem, text),
        answer=task.answer_of(problem, text),
        tokens=end,
        flops=costs.flops(own),
        bytes=costs.bytes(own),
        seconds=trace.ledger.get("seconds", nan) * (end / length if length else 1.0),
        runs=(ledger.slm.tokens > 0, ledger.llm.tokens > 0),
        scores={name: scorer(trace, end) for name, scorer in SCORERS.items()},
    )


def own_ledger(ledger: Ledger, prompt_len: int, length: int, end: int) -> Ledger:
    """What the first `end` of a response's tokens took, prompt left out."""
    models = tuple(_own(model, prompt_len, length, end) for model in ledger.models)
    return replace(
        ledger,
        models=(models[0], models[1]),
        router_calls=round(ledger.router_calls * _part(end, length)),
    )


def _own(model: ModelLedger, prompt_len: int, length: int, end: int) -> ModelLedger:
    # The first token follows from the prompt, so a response of n tokens feeds n - 1 of them.
    fed = _part(end - 1, length - 1)
    passes = _part(end, length)
    attended = _part(_sum(prompt_len, prompt_len + end - 1), _sum(prompt_len, prompt_len + length - 1))
    read = _part(_sum(prompt_len - 1, prompt_len + end - 1), _sum(prompt_len - 1, prompt_len + length - 1))
    prefill = min(model.prefill_tokens, prompt_len)
    return ModelLedger(
        prefill_tokens=model.prefill_tokens - prefill,
        decode_tokens=round(model.decode_tokens * fed),
        catchup_tokens=round(model.catchup_tokens * fed),
        head_tokens=round(model.head_tokens * passes),
        attended_tokens=round((model.attended_tokens - _sum(prompt_len - prefill, prompt_len)) * attended),
        row_passes=round(model.row_passes * passes),
        read_tokens=round(model.read_tokens * read),
        passes=round(model.passes * passes),
    )


def prompt_cost(trace: Trace, costs: Costs) -> PromptCost:
    """What each model's pass over a trace's prompt costs."""
    num_tokens = len(trace.prompt_ids)
    cards = costs.slm, costs.llm
    slm, llm = (card.flops(num_tokens, _sum(0, num_tokens), 0) for card in cards)
    # The pass itself is in every response's own cost: each makes one, over the prompt's last token at least.
    slm_bytes, llm_bytes = (float(card.bytes(0, num_tokens, 0)) for card in cards)
    return PromptCost((slm, llm), (slm_bytes, llm_bytes))


def _sum(start: int, end: int) -> int:
    """start + 1, ..., end: what the tokens [start, end) attend to."""
    return (end * (end + 1) - start * (start + 1)) // 2


def _part(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 1.0
