"""One pool out of all ranks' tokens: the same weights as in one process, whatever each rank holds."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from navtoken.rlvr.pool import gather_columns, scattered
from pool_run import LENGTHS, SELECTIONS, columns_of, noise_of, weights_of
from torchrun import run_ranks

ALONE = SimpleNamespace(num_processes=1, process_index=0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo ranks found. One that waits for a rank without tokens would end in a timeout."""
    return run_ranks("pool_run.py", tmp_path_factory.mktemp("pool"), timeout=120)


@pytest.mark.parametrize("case", LENGTHS)
def test_ranks_select_what_one_process_selects(case: str, ranks: list[dict[str, Any]]) -> None:
    together_CN = torch.cat([columns_of(case, rank) for rank in (0, 1)], dim=1)
    weights = weights_of(together_CN, case)
    first = LENGTHS[case][0]
    for rank, own in ((0, slice(0, first)), (1, slice(first, None))):
        assert ranks[rank][case]["pool"] == together_CN.tolist(), "no padding, in the order of ranks"
        for found, weight_N in zip(ranks[rank][case]["weights"], weights, strict=True):
            assert found == weight_N[own].tolist()


@pytest.mark.parametrize("case", [case for case in LENGTHS if case != "nobody"])
def test_exactly_the_fraction_is_kept_over_all_ranks(case: str, ranks: list[dict[str, Any]]) -> None:
    total = sum(LENGTHS[case])
    for place, options in enumerate(SELECTIONS):
        kept = sum(weight > 0 for rank in ranks for weight in rank[case]["weights"][place])
        assert kept == -(-round(options.fraction * 100) * total // 100)


def test_ranks_do_not_each_keep_their_own_share(ranks: list[dict[str, Any]]) -> None:
    """A threshold of each rank's own tokens would keep the same share of both."""
    shares = [
        sum(weight > 0 for weight in ranks[rank]["unequal"]["weights"][0]) / LENGTHS["unequal"][rank]
        for rank in (0, 1)
    ]
    assert abs(shares[0] - shares[1]) > 0.05


def test_one_process_gathers_nothing() -> None:
    columns_CL = columns_of("unequal", 1)
    pool = gather_columns(columns_CL, ALONE)
    assert pool.columns_CN is columns_CL
    assert torch.equal(pool.own_part(noise_of("unequal")[:40]), noise_of("unequal")[:40])


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_values_go_back_to_their_places(mask: list[list[bool]]) -> None:
    mask_BT = torch.tensor(mask).long()
    values_L = torch.arange(1.0, 1 + int(mask_BT.sum()))
    places_BT = scattered(values_L, mask_BT)
    assert torch.equal(places_BT[mask_BT.bool()], values_L)
    assert int((places_BT != 0).sum()) == len(values_L)
