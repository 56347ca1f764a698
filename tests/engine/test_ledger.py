"""The ledger's counts of one feed, and the costs made of them, against sums done by hand."""

from math import isnan
from pathlib import Path

import pytest

from fake_engine import CARD
from navtoken.engine import Costs, Engine, Ledger
from navtoken.engine.ledger import ModelLedger
from navtoken.policies import make_policy
from tiny_models import tiny_pair
from tiny_routers import tiny_router


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 5, (5, 0, 0)),
        (5, 6, (0, 1, 0)),
        (6, 10, (0, 1, 3)),
        (0, 9, (5, 1, 3)),
        (3, 6, (2, 1, 0)),
    ],
)
def test_every_fed_token_is_prefill_decode_or_catchup(start: int, end: int, expected: tuple) -> None:
    count = ModelLedger()
    count.record(start, end, prompt_len=5, num_logits=1)
    assert (count.prefill_tokens, count.decode_tokens, count.catchup_tokens) == expected
    assert count.tokens == end - start
    assert count.attended_tokens == sum(position + 1 for position in range(start, end))
    assert count.read_tokens == end


def test_a_part_of_a_row_that_is_fed_in_parts_predicts_nothing() -> None:
    count = ModelLedger()
    for start, end, num_logits in ((0, 4, 0), (4, 7, 0), (7, 9, 1)):
        count.record(start, end, prompt_len=5, num_logits=num_logits)
    assert (count.prefill_tokens, count.decode_tokens, count.catchup_tokens) == (5, 1, 3)
    assert (count.head_tokens, count.row_passes, count.read_tokens) == (1, 3, 4 + 7 + 9)


def a_ledger() -> Ledger:
    ledger = Ledger(
        written=[87, 13],
        router_calls=100,
        verifications=4,
        judged_drafts=12,
        accepted_drafts=6,
        fallback_tokens=2,
    )
    ledger.slm.record(0, 10, 10, 1)
    ledger.slm.passes = 1
    ledger.llm.record(4, 12, 10, 1)
    ledger.llm.passes = 1
    return ledger


def test_average_activated_parameters_is_the_papers_formula() -> None:
    small, large = CARD, type(CARD)(**{**vars(CARD), "active_parameters": 20_000})
    assert Costs(small, large).average_activated_parameters(a_ledger()) == 0.87 * 1000 + 0.13 * 20_000
    with_router = Costs(small, large, router_parameters=50).average_activated_parameters(a_ledger())
    assert with_router == 0.87 * 1000 + 0.13 * 20_000 + 50
    assert Costs(small, large).average_activated_parameters(Ledger()) == 0


def test_flops_and_bytes_count_both_models_and_the_router() -> None:
    costs = Costs(CARD, CARD, router_parameters=50)
    dense = 2 * (800 * (10 + 8) + 100 * 2)
    attention = 4 * (sum(range(1, 11)) + sum(range(5, 13)))
    assert costs.flops(a_ledger()) == dense + attention + 2 * 100 * 50
    models = 2 * (4000 - 400) + 8 * (10 + 10) + 8 * (12 + 8)
    # A hundred drafts were judged, but in one pass of the SLM: its weights were read once.
    assert costs.bytes(a_ledger()) == models + 50 * 4
    assert Costs(CARD, CARD).bytes(a_ledger()) == models
    # Of a single response every call is a pass of its own; passes without a call read no router.
    single = a_ledger()
    single.router_calls, single.slm.passes = 7, 10
    assert costs.bytes(single) - Costs(CARD, CARD).bytes(single) == 7 * 50 * 4


def test_a_ledger_survives_the_way_through_a_trace() -> None:
    ledger = a_ledger()
    again = Ledger.from_dict(ledger.as_dict())
    assert again == ledger
    again.add(ledger)
    assert again.written == [174, 26]
    assert again.llm.tokens == 2 * ledger.llm.tokens
    assert again.llm_share == ledger.llm_share
    assert (again.verifications, again.judged_drafts, again.fallback_tokens) == (8, 24, 4)
    assert ledger.acceptance_length == again.acceptance_length == 2.5
    assert isnan(Ledger().acceptance_length)


def test_the_router_of_a_request_is_paid_for(tmp_path: Path) -> None:
    pair = tiny_pair()
    card = tiny_router(tmp_path, pair)
    engine = Engine(pair, make_policy("slm"))
    assert engine.costs.router_parameters == 0
    router = make_policy(f"router:{tmp_path}")
    engine.add([5, 6, 7], max_tokens=4, policy=router)
    engine.add([5, 6, 8], max_tokens=4)
    list(engine.run())
    assert engine.ledger.router_calls > 0
    assert engine.costs.router_parameters == card.shape.parameters > 0
