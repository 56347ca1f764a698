"""Groups without signal in training: replaced, left out of pool and normaliser, and no obstacle where there is nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from navtoken.rlvr.groups import DynamicSamplingOptions
from navtoken.rlvr.rewards import overlong
from navtoken.rlvr.selection import SelectionOptions
from rlvr_runs import GRADES, FixedRollouts, Key, Sizes, our_trainer, problem_rows, rows_fed
from tiny_models import EOS

SIZES = Sizes(rows=4, accumulated=4)
"""Four problems with four responses each, one update."""
AS_DRAWN = DynamicSamplingOptions(dynamic_sampling=False)
DULL = ("right", "wrong", "noise", "unscored")
"""Kinds of problems whose responses all have one outcome, or none."""


def prompts_of(kinds: list[str]) -> dict[str, list[tuple[int, ...]]]:
    out: dict[str, list[tuple[int, ...]]] = {}
    for row in problem_rows(kinds):
        out.setdefault(row["answer"], []).append(tuple(row["prompt_ids"]))
    return out


def tokens(rows: list[Key]) -> int:
    return sum(len(response) for _, response in rows)


@pytest.mark.parametrize("dull", DULL)
@pytest.mark.parametrize("pool", ["batch", "mini", "micro"])
def test_groups_without_signal_have_no_part_whatever_the_shaped_reward(
    dull: str, pool: Any, tmp_path: Path
) -> None:
    """0.1 + 0.2 and 0.3 are one outcome; a punishment of length differs in nearly every group."""
    kinds = [dull, "mixed", dull, "half"]
    rollouts = FixedRollouts()
    trainer = our_trainer(
        tmp_path,
        kinds,
        SIZES,
        SelectionOptions("random:0.5", pool),
        AS_DRAWN,
        rollouts,
        further_rewards=[overlong(max_tokens=8, cache=7)],
    )
    trainer.train()
    informative = [key for key in rollouts.given if key[0] not in prompts_of(kinds)[dull]]
    assert sorted(row for inputs in trainer.fed for row in rows_fed(inputs)) == sorted(informative)
    assert sum(len(inputs["advantages"]) for inputs in trainer.fed) == 16, "the batch keeps its size"
    for inputs in trainer.fed:
        assert int(inputs["num_items_in_batch"]) == tokens(informative)
        left_out_B = inputs["tool_mask"].sum(1) == 0
        assert (inputs["advantages"][left_out_B] == 0).all()
    pools = SIZES.accumulated if pool == "micro" else 1
    assert trainer.logged[0]["selection/pool_tokens"] * pools == tokens(informative)
    assert (trainer.logged[0]["refill/shortage"], trainer.logged[0]["refill/informative"]) == (2, 2)


def test_counted_they_have_the_shaped_rewards_advantage(tmp_path: Path) -> None:
    """What leaving them out keeps away: a gradient from length alone."""
    rollouts = FixedRollouts()
    trainer = our_trainer(
        tmp_path,
        ["right", "mixed", "wrong", "half"],
        SIZES,
        SelectionOptions("all"),
        DynamicSamplingOptions(dynamic_sampling=False, count_uninformative=True),
        rollouts,
        further_rewards=[overlong(max_tokens=8, cache=7)],
    )
    trainer.train()
    assert len([row for inputs in trainer.fed for row in rows_fed(inputs)]) == 16
    (dull,) = prompts_of(["right", "mixed", "wrong", "half"])["right"]
    of_dull = [
        inputs["advantages"][number].abs().max()
        for inputs in trainer.fed
        for number, (prompt, _) in enumerate(rows_fed(inputs))
        if prompt == dull
    ]
    assert max(of_dull) > 0.1
    assert trainer.logged[0]["selection/pool_tokens"] == tokens(list(rollouts.given))


def test_a_batch_is_filled_in_the_order_of_drawing(tmp_path: Path) -> None:
    kinds = ["right", "mixed", "wrong", "mixed", "half", "mixed", "right", "mixed", "mixed", "right"]
    rollouts = FixedRollouts()
    trainer = our_trainer(tmp_path, kinds, SIZES, rollouts=rollouts)
    trainer.train()
    by_kind = prompts_of(kinds)
    drawn = [tuple(prompt) for call in rollouts.calls for prompt in call]
    assert drawn[:4] == [tuple(row["prompt_ids"]) for row in problem_rows(kinds)[:4]]
    informative = [prompt for prompt in drawn if prompt in {*by_kind["mixed"], *by_kind["half"]}]
    fed = [row for inputs in trainer.fed for row in rows_fed(inputs)]
    assert len(fed) == 16
    assert {prompt for prompt, _ in fed} == set(informative[:4]), "first drawn, first taken, long or short"
    logs = trainer.logged[0]
    assert logs["refill/rounds"] == len(rollouts.calls) > 1
    assert (logs["refill/drawn"], logs["refill/informative"]) == (len(drawn), len(informative))
    assert (logs["refill/prompts"], logs["refill/shortage"]) == (len(drawn) - 4, 0)


def test_rounds_end_and_what_is_missing_is_logged(tmp_path: Path) -> None:
    kinds, rollouts = ["wrong", "mixed", *["right"] * 30], FixedRollouts()
    trainer = our_trainer(
        tmp_path,
        kinds,
        SIZES,
        dynamic=DynamicSamplingOptions(max_rounds=2),
        rollouts=rollouts,
    )
    trainer.train()
    logs = trainer.logged[0]
    assert len(rollouts.calls) == logs["refill/rounds"] == 3
    (only,) = prompts_of(kinds)["mixed"]
    found = sum(tuple(prompt) == only for call in rollouts.calls for prompt in call)
    assert 0 < found < 4 and logs["refill/shortage"] == 4 - found
    assert sum(len(inputs["advantages"]) for inputs in trainer.fed) == 16
    fed = [row for inputs in trainer.fed for row in rows_fed(inputs)]
    assert len(fed) == 4 * found and int(trainer.fed[0]["num_items_in_batch"]) == tokens(fed)
    assert any((gradient != 0).any() for gradient in trainer.gradients[0].values())


@pytest.mark.parametrize("pool", ["batch", "mini", "micro"])
def test_without_any_signal_nothing_is_learned_and_nothing_breaks(pool: Any, tmp_path: Path) -> None:
    sizes = Sizes(rows=4, accumulated=2, updates=2, steps=4)
    trainer = our_trainer(
        tmp_path,
        ["right", "wrong"] * 4,
        sizes,
        SelectionOptions("top_entropy:0.2", pool),
        DynamicSamplingOptions(max_rounds=1),
        further_rewards=[overlong(max_tokens=8, cache=7)],
    )
    trainer.train()
    assert trainer.losses == [0.0] * 8
    assert len(trainer.gradients) == 4
    assert all((gradient == 0).all() for gradients in trainer.gradients for gradient in gradients.values())
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, trainer.weights[0][name])
    assert not any(rows_fed(inputs) for inputs in trainer.fed)
    assert trainer.logged[0]["refill/shortage"] == 4 and trainer.logged[0]["selection/pool_tokens"] == 0


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("pool", ["batch", "mini"])
def test_responses_cut_off_are_left_out_where_that_is_asked_for(
    masked: bool, pool: Any, tmp_path: Path
) -> None:
    rollouts = FixedRollouts()
    trainer = our_trainer(
        tmp_path,
        ["mixed"] * 4,
        SIZES,
        SelectionOptions("top_entropy:0.3", pool, ties="exact"),
        rollouts=rollouts,
        mask_truncated_completions=masked,
    )
    trainer.train()
    whole = [key for key in rollouts.given if key[1][-1] == EOS or not masked]
    assert 0 < len([key for key in rollouts.given if key[1][-1] != EOS]) < 16
    assert sorted(row for inputs in trainer.fed for row in rows_fed(inputs)) == sorted(whole)
    assert trainer.logged[0]["selection/pool_tokens"] == tokens(whole)
    assert int(trainer.fed[0]["num_items_in_batch"]) == tokens(whole)


def test_a_response_without_an_outcome_is_not_moved_by_what_is_added(tmp_path: Path) -> None:
    """TRL adds up the rewards that are there: a punishment of 0 would make it the worst of its group."""
    trainer = our_trainer(
        tmp_path,
        ["half"] * 4,
        SIZES,
        SelectionOptions("all"),
        AS_DRAWN,
        further_rewards=[overlong(max_tokens=100, cache=1)],
    )
    trainer.train()
    advantages = {
        int(ids[0]): float(advantage[0])
        for inputs in trainer.fed
        for ids, advantage in zip(inputs["completion_ids"], inputs["advantages"], strict=True)
    }
    scored = {first: GRADES["half"](first) is not None for first in advantages}
    assert {first for first, advantage in advantages.items() if advantage} == {
        first for first, there in scored.items() if there
    }
    assert len(set(scored.values())) == 2
