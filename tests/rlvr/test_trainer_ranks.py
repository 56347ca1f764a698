"""Training on two ranks of which one has all the signal: nobody waits for ever, and both end with the same weights."""

from typing import Any

import numpy as np
import pytest

from torchrun import run_ranks
from trainer_run import CASES, SIZES


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo ranks found. One that waits for the other would end in a timeout."""
    return run_ranks("trainer_run.py", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_ranks_stay_together(case: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[case] for rank in ranks)
    for rank in (first, second):
        assert (rank["steps"], rank["forwards"]) == (SIZES.steps, SIZES.steps * SIZES.accumulated)
        assert rank["rows"] == [SIZES.rows] * rank["forwards"], "a batch keeps its size"
        assert rank["moved"]
    assert first["draws"] == second["draws"]
    assert first["drawn"] == second["drawn"]
    assert first["weights"] == second["weights"]


@pytest.mark.parametrize("case", ["batch", "mini"])
def test_the_rank_without_signal_gets_other_problems(case: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[case] for rank in ranks)
    assert first["informative"] == second["informative"] == [SIZES.rows] * 4
    assert len(first["draws"]) > SIZES.steps
    logs = first["logged"][0]
    assert logs["refill/rounds"] > 1 and logs["refill/shortage"] == 0
    further = [[tuple(prompt) for prompt in rank["prompts"][1]] for rank in (first, second)]
    assert len({*further[0], *further[1]}) == len(further[0]) + len(further[1]) > 2, "shared out among ranks"


@pytest.mark.parametrize("case", ["never", "never, micro"])
def test_a_rank_without_any_signal_trains_along(case: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[case] for rank in ranks)
    assert sum(first["informative"]) > 0 and sum(second["informative"]) == 0
    assert first["logged"][0]["refill/shortage"] >= SIZES.problems
    assert len(second["draws"]) == 2 * SIZES.steps


@pytest.mark.parametrize("case", ["batch", "mini", "never"])
def test_all_ranks_choose_in_one_pool(case: str, ranks: list[dict[str, Any]]) -> None:
    """The pools are the same to the last bit on both ranks, and each rank's own tokens get the weights of their places."""
    first, second = (rank[case]["pools"] for rank in ranks)
    assert first == second and len(first) == SIZES.steps
    for pool, step in zip(first, range(SIZES.steps), strict=True):
        options = CASES[case]["selection"]
        key = pool["noise_N"] if options.select.startswith("random") else pool["entropy_N"]
        k = int(np.ceil(options.fraction * len(key) - 1e-9))
        kept = np.zeros(len(key))
        kept[np.argsort(-np.array(key), kind="stable")[:k]] = 1
        np.testing.assert_allclose(np.array(pool["weights"]) / max(pool["weights"]), kept)
        forwards = range(step * SIZES.accumulated, (step + 1) * SIZES.accumulated)
        own = [[row for at in forwards for row in rank[case]["own"][at]] for rank in ranks]
        values = [value for rows in own for row in rows for value in row]
        assert len(values) == len(key), "tokens of both ranks, and no padding"
        assert sum(value != 0 for value in values) == kept.sum()
    noises = [pool["noise_N"][0] for pool in first]
    assert len(set(noises)) == len(noises)


def test_sharded_weights_reach_the_engine_of_every_rank(ranks: list[dict[str, Any]]) -> None:
    """Accelerate gathers a state dict for the first rank alone."""
    assert [rank["shared"] for rank in ranks] == [True, True]


def test_cases_are_told_apart(ranks: list[dict[str, Any]]) -> None:
    ends = {case: str(ranks[0][case]["weights"]) for case in CASES}
    assert len(set(ends.values())) == len(CASES)
