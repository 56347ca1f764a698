"""Hindsight's grammar and its judgement of provisional tokens; the engine runs are in tests/engine."""

from math import inf

import pytest
import torch

from navtoken.policies import Action, Judged, PolicyError, Verdicts, Writer, Writes, make_policy
from navtoken.policies.hindsight import EVERY, MOST_PROVISIONAL, HindsightPolicy
from navtoken.policies.rules import EntropyPolicy, MarginPolicy, RandomPolicy


@pytest.mark.parametrize(
    "reference",
    [
        "hindsight:0.05,every=4",
        "hindsight:0,entropy=0.67",
        "hindsight:0.05,entropy=0.67,every=16",
        "hindsight:1.5,margin=0.1",
        "hindsight:0.123456789,random=0.13",
    ],
)
def test_a_reference_makes_the_policy_that_has_it(reference: str) -> None:
    policy = make_policy(reference)
    assert policy.reference == reference
    assert make_policy(policy.reference) == policy


def test_defaults() -> None:
    plain, ruled = make_policy("hindsight:0.05"), make_policy("hindsight:0.05,entropy=1")
    assert isinstance(plain, HindsightPolicy) and isinstance(ruled, HindsightPolicy)
    assert (plain.every, plain.base) == (EVERY, None)
    assert plain.reference == f"hindsight:0.05,every={EVERY}"
    assert (ruled.every, ruled.base) == (MOST_PROVISIONAL, EntropyPolicy(1.0))
    assert (plain.lookback, ruled.lookback) == (EVERY, MOST_PROVISIONAL)
    assert plain.verifies and not plain.lossless


def test_base_rules() -> None:
    bases = [make_policy(f"hindsight:0.1,{name}=0.2").base for name in ("entropy", "margin", "random")]  # type: ignore[attr-defined]
    assert bases == [EntropyPolicy(0.2), MarginPolicy(0.2), RandomPolicy(0.2)]


@pytest.mark.parametrize(
    ("reference", "remedy"),
    [
        ("hindsight", "write hindsight:0.05"),
        ("hindsight:some", "no number"),
        ("hindsight:-0.1", "give one from 0"),
        ("hindsight:nan", "give one from 0"),
        ("hindsight:0.1,every=0", "1 to 256"),
        ("hindsight:0.1,every=257", "1 to 256"),
        ("hindsight:0.1,every=2.5", "whole number"),
        ("hindsight:0.1,share=0.2", "has no option 'share'"),
        ("hindsight:0.1,entropy=1,margin=0.2", "one rule"),
        ("hindsight:0.1,threshold=0.4", "belong to router"),
        ("hindsight:0.1,entropy=1,threshold=0.4", "belong to router"),
        ("hindsight:0.1,random=2", "fraction"),
        ("hindsight:0.1,router=/nowhere", "holds no router"),
    ],
)
def test_references_that_do_not_fit_are_refused(reference: str, remedy: str) -> None:
    with pytest.raises(PolicyError, match=remedy):
        make_policy(reference)


def judge(policy: str, probs: list[list[float]], certain: list[int]) -> Verdicts:
    """What becomes of rows with provisional tokens of these probabilities; the LLM would write 100, 101, ... by place."""
    flat = torch.tensor([value for row in probs for value in (*row, 0.0)])
    judged = Judged(
        counts=[len(row) for row in probs],
        num_response=[before + len(row) for before, row in zip(certain, probs, strict=True)],
        token_ids_M=torch.zeros(len(flat), dtype=torch.long),
        logprob_M=flat.log(),
        noise_M=lambda purpose: torch.zeros(len(flat)),
        probs=lambda: pytest.fail("sampling parameters have no say"),  # type: ignore[arg-type, return-value]
        written_at=lambda places_B: 100 + places_B,
    )
    size = len(probs)
    nothing = torch.full((size,), -1)
    made = make_policy(policy)
    states = [made.start([1]) for _ in range(size)]
    writes = Writes(
        nothing,
        torch.zeros(size, 3),
        torch.zeros(size, 1),
        nothing,
        nothing,
        lambda p: nothing,
        states,
        judged,
    )
    return made.judge_writes(writes)


PROBS = [[0.9, 0.04, 0.9], [0.5, 0.052], [], [0.01, 0.01], [0.06] * 4]


@pytest.mark.parametrize(
    ("eps", "kept"),
    [(0.05, [1, 2, 0, 0, 4]), (0.0, [3, 2, 0, 2, 4]), (0.055, [1, 1, 0, 0, 4]), (1.1, [0] * 5)],
)
def test_the_first_improbable_token_and_all_behind_it_go(eps: float, kept: list[int]) -> None:
    certain = [0, 7, 3, 1, 2]
    verdicts = judge(f"hindsight:{eps},every=4", PROBS, certain)
    assert verdicts.actions_B.tolist() == [Action.REPLACE] * 5
    assert verdicts.positions_B is not None and verdicts.tokens_B is not None
    assert verdicts.positions_B.tolist() == [before + num for before, num in zip(certain, kept, strict=True)]
    first = [0, 4, 7, 8, 11]
    assert verdicts.tokens_B.tolist() == [100 + place + num for place, num in zip(first, kept, strict=True)]


def test_a_token_is_kept_at_the_threshold_and_what_is_no_number_is_not() -> None:
    at = judge("hindsight:1,every=4", [[1.0], [0.9999], [float("nan")]], [0, 0, 0])
    assert at.positions_B is not None
    assert at.positions_B.tolist() == [1, 0, 0]


def test_the_llm_is_called_after_so_many_tokens_since_its_last_word() -> None:
    policy = make_policy("hindsight:0.1,every=2")
    state = policy.start([1, 2])
    asked = []
    for writer in (Writer.SLM, Writer.SLM, Writer.LLM, Writer.SLM):
        policy.committed(state, 5, writer, 0.1)
        asked.append(policy.next_writer(state))
    assert asked == [Writer.SLM, Writer.LLM, Writer.SLM, Writer.SLM]
    policy.committed(state, 5, Writer.SLM, 0.1)
    policy.settle(state, 0, 0)
    assert policy.next_writer(state) is Writer.SLM


def test_what_can_be_captured_is_the_base_rules() -> None:
    heard: list = []
    deaf, hearing = (
        make_policy("hindsight:0.1,entropy=1"),
        EntropyPolicy(1.0).with_threshold(1.0, heard.append),
    )
    assert make_policy("hindsight:0.1").capturable and deaf.capturable
    assert not HindsightPolicy(0.1, 8, hearing).capturable


def test_a_base_rule_that_is_not_calibrated_is_refused() -> None:
    with pytest.raises(PolicyError, match="no threshold yet"):
        HindsightPolicy(0.1, 8, EntropyPolicy(share=0.2)).check_ready()
    HindsightPolicy(0.1, 8, EntropyPolicy(inf)).check_ready()
