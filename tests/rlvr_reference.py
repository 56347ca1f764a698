"""DAPO with token selection written out token by token in float64: what the trainer's gradients are held against.

Nothing of the trainer's own arithmetic is used: softmax and entropy by hand, the clipped loss by its definition, selection by sorting.
Which rows stand in which forward is read off the trainer, and so is the noise of `random`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from navtoken.rlvr.selection import SelectionOptions
from rlvr_runs import EPSILON_HIGH, EPSILON_LOW, GRADES, FixedRollouts, Key, rows_fed
from tiny_models import tiny_model

GAP = 2e-5
"""Nats by which the last token kept must differ from the first one dropped, where the trainer's entropies come from a forward in
float32: else rounding would decide."""


class Case(NamedTuple):
    """What a run was asked for."""

    selection: SelectionOptions
    kinds: dict[tuple[int, ...], str]
    """By prompt."""
    updates: int
    """Per rollout batch."""
    group: int
    told: bool
    """Are old log-probabilities and the batch's entropies the rollouts' own?"""


class Update(NamedTuple):
    """One update as it should be."""

    loss: float
    gradients: dict[str, Tensor]


def wide_model(weights: dict[str, Tensor]) -> nn.Module:
    model = tiny_model("qwen3").model.requires_grad_(True)
    model.load_state_dict({name: weight.double() for name, weight in weights.items()})
    return model  # type: ignore[no-any-return]


def logprobs_TV(model: nn.Module, key: Key) -> Tensor:
    prompt, response = key
    logits_TV = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    assert logits_TV.dtype == torch.float64
    return logits_TV - torch.log(torch.exp(logits_TV).sum(-1, keepdim=True))


@torch.no_grad()
def entropies_of(model: nn.Module, key: Key) -> list[float]:
    logp_TV = logprobs_TV(model, key)
    return (-(torch.exp(logp_TV) * logp_TV).sum(-1)).tolist()  # type: ignore[no-any-return]


def plain_weights(
    entropies: np.ndarray, options: SelectionOptions, noise: Any, exact_values: bool
) -> np.ndarray:
    rule, _, fraction = options.select.partition(":")
    size = len(entropies)
    kept = np.ones(size)
    if rule != "all":
        k = math.ceil(float(fraction) * size - 1e-9)
        key = {"top_entropy": -entropies, "bottom_entropy": entropies, "random": -np.asarray(noise)}[rule]
        order = np.argsort(key, kind="stable")
        last, following = key[order[k - 1]], key[order[k]]
        assert exact_values or rule == "random" or following - last > GAP, "rounding would decide: other seed"
        kept = np.zeros(size)
        kept[order[:k]] = 1.0
        if options.ties == "threshold" and rule != "random":
            kept = (key <= last).astype(float)
    return kept * (size / kept.sum()) if options.normaliser == "kept" else kept


def advantage_of(key: Key, case: Case) -> float:
    """Of a response in its group, by the outcomes alone; responses begin with 10, 11, ... in their groups."""
    scores = [GRADES[case.kinds[key[0]]](10 + sample) for sample in range(case.group)]
    own = GRADES[case.kinds[key[0]]](key[1][0])
    return float((own - np.mean(scores)) / (np.std(scores, ddof=1) + 1e-4))  # type: ignore[operator]


def shared_out(rows: Sequence[Key], weights: np.ndarray) -> dict[Key, np.ndarray]:
    ends = np.cumsum([len(response) for _, response in rows])
    assert ends[-1] == len(weights)
    return dict(zip(rows, np.split(weights, ends[:-1]), strict=True))


def reference(trainer: Any, rollouts: FixedRollouts, case: Case, noises: list[Tensor]) -> list[Update]:
    """All updates of a run with one process. `noises` are the pools', in the order in which they were selected from."""
    accumulated, noise = trainer.args.gradient_accumulation_steps, iter(noises)
    fed = [rows_fed(inputs) for inputs in trainer.fed]
    per_update = [fed[i : i + accumulated] for i in range(0, len(fed), accumulated)]
    out, weight_of = [], {}
    for number, forwards in enumerate(per_update):
        start = number - number % case.updates
        batch = [
            row for update in per_update[start : start + case.updates] for each in update for row in each
        ]
        writer, model = (wide_model(trainer.weights[at]) for at in (start, number))
        rows = [row for forward in forwards for row in forward]
        if case.selection.pool == "batch" and number == start:
            # In the order in which they were drawn, whatever order they were fed in.
            pool = sorted(batch, key=list(rollouts.given).index)
            entropies = [
                value
                for row in pool
                for value in (rollouts.given[row].entropies if case.told else entropies_of(writer, row)) or []
            ]
            weights = plain_weights(np.array(entropies), case.selection, next(noise, None), case.told)
            weight_of = shared_out(pool, weights)
        pools = {"batch": [], "mini": [rows], "micro": forwards}[case.selection.pool]
        for pool in pools:
            entropies = [value for row in pool for value in entropies_of(model, row)]
            weights = plain_weights(np.array(entropies), case.selection, next(noise, None), False)
            weight_of |= shared_out(pool, weights)
        num_tokens = sum(len(response) for _, response in batch)
        total = torch.zeros((), dtype=torch.float64)
        for row in rows:
            total = total + row_loss(model, writer, row, weight_of[row], case, rollouts)
        loss = total / (num_tokens / case.updates)
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
        out.append(Update(float(loss.detach()), gradients))
    return out


def row_loss(
    model: nn.Module, writer: nn.Module, row: Key, weights: np.ndarray, case: Case, rollouts: FixedRollouts
) -> Tensor:
    """Sum over the tokens of a response."""
    new_TV, old = logprobs_TV(model, row), rollouts.given[row].logprobs
    with torch.no_grad():
        old_TV = logprobs_TV(writer, row)
    advantage, total = advantage_of(row, case), torch.zeros((), dtype=torch.float64)
    for place, token in enumerate(row[1]):
        new = new_TV[place, token]
        if case.updates == 1:
            before = new.detach()
        elif case.told and old is not None:
            before = torch.tensor(old[place], dtype=torch.float64)
        else:
            before = old_TV[place, token]
        ratio = torch.exp(new - before)
        clipped = torch.clamp(ratio, 1 - EPSILON_LOW, 1 + EPSILON_HIGH)
        total = total - float(weights[place]) * torch.minimum(ratio * advantage, clipped * advantage)
    return total
