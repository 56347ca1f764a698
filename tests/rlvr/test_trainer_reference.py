"""The trainer's gradients against DAPO with selection written out token by token (`rlvr_reference`)."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from navtoken.rlvr import trainer as trainer_module
from navtoken.rlvr.selection import SelectionOptions, TokenColumns, select
from rlvr_reference import Case, reference
from rlvr_runs import FixedRollouts, Sizes, our_trainer, problem_rows

KINDS = ["mixed", "right", "mixed", "mixed", "wrong", "mixed", "half", "mixed", "mixed", "mixed"]
TOLERANCE = 5e-5
"""Of the largest gradient of a weight; TRL scores tokens in float32."""
SEED = 3
"""One for which no pool ends among the first tokens of a group's responses, which have one entropy in exact arithmetic only."""
RULES = ("top_entropy:0.2", "bottom_entropy:0.3", "random:0.25")
FLAGS = (("kept", "threshold"), ("all", "exact"))
CASES = [
    *((rule, pool, *flags, True) for rule in RULES for pool in ("batch", "mini", "micro") for flags in FLAGS),
    *(("all", pool, "kept", "threshold", True) for pool in ("batch", "mini", "micro")),
    *((RULES[0], pool, "kept", "threshold", False) for pool in ("batch", "mini", "micro")),
]


@pytest.mark.parametrize(("rule", "pool", "normaliser", "ties", "told"), CASES)
def test_gradients_are_those_of_a_plain_loop(
    rule: str, pool: Any, normaliser: Any, ties: Any, told: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    noises: list[Tensor] = []

    def recording(columns: TokenColumns, options: SelectionOptions) -> Any:
        noises.append(columns.noise_N)
        return select(columns, options)

    monkeypatch.setattr(trainer_module, "select", recording)
    selection = SelectionOptions(rule, pool, normaliser, ties)
    sizes = Sizes(rows=4, accumulated=2, updates=2, group=4, steps=2)
    rollouts = FixedRollouts(told, off=0.6, seed=SEED)
    trainer = our_trainer(tmp_path, KINDS, sizes, selection, rollouts=rollouts)
    trainer.train()
    kinds = {tuple(row["prompt_ids"]): row["answer"] for row in problem_rows(KINDS)}
    case = Case(selection, kinds, sizes.updates, sizes.group, told)
    wanted = reference(trainer, rollouts, case, noises)
    assert len(wanted) == len(trainer.gradients) == 2
    for update, gradients, loss in zip(wanted, trainer.gradients, trainer.update_losses(), strict=True):
        assert loss == pytest.approx(update.loss, abs=2e-5)
        for name, gradient in gradients.items():
            largest = float(update.gradients[name].abs().max())
            assert largest > 1e-4, "nothing to compare"
            off = (gradient.double() - update.gradients[name]).abs().max()
            assert off <= TOLERANCE * largest, name
    if told:
        clipped = [
            logs["clip_ratio/region_mean"] for logs in trainer.logged if "clip_ratio/region_mean" in logs
        ]
        assert max(clipped) > 0
